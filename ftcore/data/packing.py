"""Packing: several examples per row, so that less of a batch is padding.

Attention is restricted to the same example by `segment_ids`: 1 for the first example of a row, 2 for the
second, 0 for padding (as in the code of Raffel et al. 2020).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftcore.data.tokenizer import IGNORED_LABEL


def pack(lengths: Sequence[Sequence[int]], limits: tuple[int, int]) -> list[list[int]]:
    """Assign examples to few rows, as lists of indices, by first-fit decreasing (Johnson 1973).

    Args:
        lengths: the number of input ids and of labels of each example.
        limits: the maximum of both in a row. An example that exceeds one gets a row to itself.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # the remaining capacity of each row
    for example in sorted(range(len(lengths)), key=lambda example: tuple(lengths[example]), reverse=True):
        inputs, labels = lengths[example]
        fits = (row for row, left in enumerate(free) if inputs <= left[0] and labels <= left[1])
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            free.append(limits)
        rows[row].append(example)
        free[row] = free[row][0] - inputs, free[row][1] - labels
    return rows


def packed_rows(
    examples: Sequence[dict[str, Any]], limits: tuple[int, int], *, decoder_only: bool
) -> tuple[list[dict[str, Any]], list[dict[str, list[int]]]]:
    """Pack examples: (examples in the order of the rows, rows with ids, labels and segment ids)."""
    lengths = [(len(example["input_ids"]), len(example["labels"])) for example in examples]
    packed = [[examples[number] for number in row] for row in pack(lengths, limits)]
    return [example for row in packed for example in row], [_concatenate(row, decoder_only) for row in packed]


def packed_shape(lengths: np.ndarray, limits: tuple[int, int]) -> tuple[int, int, int]:
    """(rows, input length, label length) of a packed batch of examples of `lengths` (examples, 2)."""
    rows = [lengths[row].sum(0) for row in pack(lengths.tolist(), limits)]
    inputs, labels = np.max(rows, axis=0).tolist()
    return len(rows), inputs, labels


def _concatenate(examples: Sequence[dict[str, Any]], decoder_only: bool) -> dict[str, list[int]]:
    """Concatenate examples to one row.

    In a decoder-only model the first label of an example is ignored: it would be predicted from the last
    token of the previous example. T5's labels have segment ids of their own.
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
    """Attention mask of packed rows: (B, T) and (B, S) segment ids -> (B, T, S) bool, True = visible."""
    return (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] != 0)


def segment_starts(segment_ids: Tensor) -> Tensor:
    """Mask of the first position of each segment: (B, S) -> (B, S) bool."""
    before = segment_ids.roll(1, dims=1)
    before[:, :1] = 0
    return (segment_ids != before) & (segment_ids != 0)


def position_ids(segment_ids: Tensor) -> Tensor:
    """Position ids that restart at 0 in each segment: (B, S) -> (B, S)."""
    here = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand(segment_ids.shape)
    return here - torch.where(segment_starts(segment_ids), here, 0).cummax(1).values


def examples_of(batch: dict[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each example of a batch, packed or not: (index in the dataset, input ids, labels other than -100)."""
    segment_ids = batch.get("segment_ids", batch["attention_mask"])
    label_segment_ids = batch.get("decoder_segment_ids", batch.get("segment_ids"))
    index = iter(batch["index"].tolist())
    if not len(batch["index"]):  # a padding batch: other ranks have all rows
        return
    for row, segments in enumerate(segment_ids):
        for number in range(1, int(segments.max()) + 1):
            labels = batch["labels"][row]
            selected = labels != IGNORED_LABEL
            if label_segment_ids is not None:
                selected &= label_segment_ids[row] == number
            yield next(index), batch["input_ids"][row][segments == number], labels[selected]
