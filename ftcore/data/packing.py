"""Packing: several examples in a row, so that short ones fill the room that long ones need.

An example of a packed row sees nothing of its neighbours. `segment_ids` say which position belongs to which:
1 to the first example of its row, 2 to the second, and 0 to padding (as in Raffel et al. 2020's code).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftcore.data.tokenizer import IGNORED_LABEL


def pack(lengths: Sequence[Sequence[int]], limits: tuple[int, int]) -> list[list[int]]:
    """Deal examples to few rows, each a list of positions in `lengths`.

    The longest go first, each into the first row that has room for it (first-fit decreasing, Johnson 1973).

    Args:
        lengths: of each example, its number of input ids and of labels.
        limits: of both, the most that a row may have. An example that is longer gets a row to itself.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # that each row has left
    for example in sorted(range(len(lengths)), key=lambda example: tuple(lengths[example]), reverse=True):
        inputs, labels = lengths[example]
        fits = (row for row, left in enumerate(room) if inputs <= left[0] and labels <= left[1])
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(limits)
        rows[row].append(example)
        room[row] = room[row][0] - inputs, room[row][1] - labels
    return rows


def packed_rows(
    examples: Sequence[dict[str, Any]], limits: tuple[int, int], *, decoder_only: bool
) -> tuple[list[dict[str, Any]], list[dict[str, list[int]]]]:
    """The examples in the order in which rows hold them, and the rows: ids, labels and segment ids."""
    lengths = [(len(example["input_ids"]), len(example["labels"])) for example in examples]
    in_rows = [[examples[number] for number in row] for row in pack(lengths, limits)]
    return [example for row in in_rows for example in row], [_joined(row, decoder_only) for row in in_rows]


def packed_shape(lengths: np.ndarray, limits: tuple[int, int]) -> tuple[int, int, int]:
    """How many rows examples of `lengths` (examples, 2) take, and the longest row's inputs and labels."""
    rows = [lengths[row].sum(0) for row in pack(lengths.tolist(), limits)]
    inputs, labels = np.max(rows, axis=0).tolist()
    return len(rows), inputs, labels


def _joined(examples: Sequence[dict[str, Any]], decoder_only: bool) -> dict[str, list[int]]:
    """One row. T5's labels have segment ids of their own.

    A decoder-only model is never asked for an example's first token: in front of it stands another example's
    last.
    """
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "segment_ids": []}
    if not decoder_only:
        row["decoder_segment_ids"] = []
    for number, example in enumerate(examples, start=1):
        inputs, labels = example["input_ids"], example["labels"]
        row["input_ids"] += inputs
        row["segment_ids"] += [number] * len(inputs)
        row["labels"] += [IGNORED_LABEL, *labels[1:]] if decoder_only else labels
        if not decoder_only:
            row["decoder_segment_ids"] += [number] * len(labels)
    return row


def same_segment(queries: Tensor, keys: Tensor) -> Tensor:
    """Which keys a query may look at: (B, T) and (B, S) segment ids -> (B, T, S) bool."""
    return (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] != 0)


def starts(segment_ids: Tensor) -> Tensor:
    """Where a segment begins: (B, S) -> (B, S) bool."""
    before = segment_ids.roll(1, dims=1)
    before[:, :1] = 0
    return (segment_ids != before) & (segment_ids != 0)


def positions(segment_ids: Tensor) -> Tensor:
    """Counted from the beginning of each segment: (B, S) -> (B, S)."""
    here = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand(segment_ids.shape)
    return here - torch.where(starts(segment_ids), here, 0).cummax(1).values


def examples_of(batch: dict[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each example of a batch, packed or not: position in the dataset, input ids, labels but -100."""
    segment_ids = batch.get("segment_ids", batch["attention_mask"])
    label_segment_ids = batch.get("decoder_segment_ids", batch.get("segment_ids"))
    index = iter(batch["index"].tolist())
    if not len(batch["index"]):  # another process has all rows
        return
    for row, segments in enumerate(segment_ids):
        for number in range(1, int(segments.max()) + 1):
            labels = batch["labels"][row]
            mine = labels != IGNORED_LABEL
            if label_segment_ids is not None:
                mine &= label_segment_ids[row] == number
            yield next(index), batch["input_ids"][row][segments == number], labels[mine]
