"""Examples become batches, in an order that is a pure function of (seed, epoch) and can be taken up anywhere.

An optimizer step sees one *window* of batch_size * accumulate examples, as `accumulate` micro-batches.
Windows are chosen first and split afterwards, so 4 micro-batches of 8 hold the same examples as one batch
of 32.

With `bucket`, a window holds examples of similar length, which saves nearly all of the padding (without
it, a third to a half of all positions on SQuAD and on short messages). The shuffled epoch is cut into
pools of many windows, each pool sorted by length and cut into windows, and the windows shuffled: an
example meets others of its length, but not the same ones in every epoch, and short and long windows
follow each other at random. Inside a window the order by length stays, so that its micro-batches are
tight too. Their gradients are summed, so that order teaches the model nothing.
"""

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor

from ftcore.data.dataset import ExampleDataset
from ftcore.data.packing import packed_rows, packed_shape
from ftcore.data.tokenizer import IGNORED_LABEL

# Windows of a pool. More make batches tighter, fewer mix the examples better. With 100, 1% of the
# input positions of SQuAD in batches of 8 is padding (without buckets 38%).
_POOL = 100


class WindowSampler(torch.utils.data.Sampler[list[int]]):
    """Yields micro-batches as lists of dataset positions.

    Args:
        lengths: int array (examples, 2), the number of input ids and of labels of each example.
        batch_size: examples of a micro-batch.
        accumulate: micro-batches of a window.
        shuffle: a new order in each epoch; without it the order is always the same.
        seed: the order's seed, 0 or more.
        bucket: put examples of similar length together.
        process, processes: deal the rows of each micro-batch to so many processes, and yield those of this
            one: every N-th, so that all have as long ones. Of a short micro-batch that may be none.

    Only the last window may be short, and its last micro-batch; nothing is ever left out.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        accumulate: int,
        *,
        shuffle: bool,
        seed: int,
        bucket: bool,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size < 1 or accumulate < 1:
            raise ValueError(f"batch_size is {batch_size} and accumulate {accumulate}; expected 1 or more")
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more")
        if not len(lengths):
            raise ValueError("the data set holds no examples")
        self.lengths, self.batch_size, self.accumulate = lengths, batch_size, accumulate
        self.shuffle, self.seed, self.bucket = shuffle, seed, bucket
        self.process, self.processes = process, processes
        self.epoch = 0
        self.start = 0  # micro-batches of this epoch to leave out

    def order(self) -> np.ndarray:
        """(examples,) dataset positions, window after window, each of the full size but perhaps the last."""
        size, count = self.batch_size * self.accumulate, len(self.lengths)
        if not self.shuffle:
            order = np.arange(count)
            return self._longest_first(order) if self.bucket else order

        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(count)
        if not self.bucket:
            return order
        # The short window is taken before sorting, or it would always hold the shortest of a pool.
        full, short = np.split(order, [count - count % size])  # parts of `order`, changed in place
        for pool in np.split(full, range(size * _POOL, len(full), size * _POOL)):
            pool[:] = self._longest_first(pool)
        windows = full.reshape(-1, size)
        windows[:] = windows[random.permutation(len(windows))]
        short[:] = self._longest_first(short)
        return order

    def _longest_first(self, positions: np.ndarray) -> np.ndarray:
        """Sort by input length, then by label length, equal ones staying in their order.

        The longest come first, so that a validation set that does not fit into memory says so at once.
        """
        inputs, labels = self.lengths[positions].T
        return positions[np.lexsort((-labels, -inputs))]

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, wherever this one starts."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # A window is a whole number of batches, so they can be cut from the whole epoch; and one at a time,
        # since as lists the positions of a large corpus take ten times the memory.
        order, size = self.order(), self.batch_size
        starts = range(self.start * size, len(order), size)
        share = slice(self.process, None, self.processes)
        return (order[start : start + size][share].tolist() for start in starts)


class DataLoader(torch.utils.data.DataLoader):
    """Yields micro-batches of LongTensors, B examples each:

        input_ids       (B, S)  padded with pad_id
        attention_mask  (B, S)  1 where there is a token
        labels          (B, T)  padded with -100 by length: EOS is learnt even where it is the pad token too.
                                GPT-2 has T = S
        index           (B,)    the examples' positions in the dataset

    A batch of which another process has all rows is one of padding, (1, 1), without a label and an index.

    Packed rows hold several examples each, and there are two tensors more (see packing.py):

        segment_ids          (B, S)  which of them a position belongs to, from 1; 0 for padding
        decoder_segment_ids  (B, T)  the same of T5's labels

    `len(loader)` counts the micro-batches of an epoch, `loader.windows_per_epoch` the optimizer steps. Every
    window but the epoch's last has exactly `accumulate` micro-batches.

    Args:
        dataset: a `Dataset`, or `CausalLMDataset` or `SpanCorruption` of a corpus. It is told the epoch.
        batch_size: examples of a micro-batch.
        pad_id: fills input_ids.
        accumulate, shuffle, seed, bucket, process, processes: see `WindowSampler`.
        pad_to_max_length: pad to the dataset's limits instead of to the longest example of the batch.
        num_workers: processes that prepare batches; the batches are the same with any number.
        padding_side: "right" or "left"; T5's labels are padded on the right in any case.
        pack: put several examples into a row, as many as the dataset's limits have room for.
        pin_memory: page-locked batches, for copying to a GPU in the background.
    """

    batch_sampler: WindowSampler

    def __init__(
        self,
        dataset: ExampleDataset,
        batch_size: int,
        *,
        pad_id: int,
        accumulate: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        bucket: bool = True,
        pad_to_max_length: bool = False,
        num_workers: int = 0,
        padding_side: str = "right",
        pack: bool = False,
        pin_memory: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; expected 'left' or 'right'")
        sampler = WindowSampler(
            dataset.lengths,
            batch_size,
            accumulate,
            shuffle=shuffle,
            seed=seed,
            bucket=bucket,
            process=process,
            processes=processes,
        )
        if pack and pad_to_max_length:
            raise ValueError("pack contradicts pad_to_max_length: packed rows are as long as their examples")
        # A dataset of one's own needs to know its limits only where they are asked for.
        limits = (dataset.max_input_length, dataset.max_label_length) if pack or pad_to_max_length else None
        self._row_limits, self._padded_to = limits if pack else None, None if pack else limits
        collate = partial(
            _collate,
            row_limits=self._row_limits,
            padded_to=self._padded_to or (None, None),
            decoder_only=dataset.decoder_only,
            pad_id=pad_id,
            padding_side=padding_side,
            label_padding_side=padding_side if dataset.decoder_only else "right",
        )
        super().__init__(
            dataset,  # type: ignore[arg-type]  # `ExampleDataset` has all that torch needs
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            # torch draws a number for its workers whenever iteration starts. From the global generator, this
            # would make a resumed run's dropout differ from an uninterrupted one's.
            generator=torch.Generator(),
        )
        self._resume_at = 0  # where the next iteration starts
        self._taken = 0  # batches of this epoch that the caller has been handed

    @property
    def windows_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self) // self.batch_sampler.accumulate)

    def shapes(self) -> np.ndarray:
        """Of this epoch's micro-batches, before they are dealt to processes: (micro-batches, 3), the rows and
        the positions that each row has for inputs and for labels, padding included."""
        sampler = self.batch_sampler
        lengths = sampler.lengths[sampler.order()]
        starts = np.arange(0, len(lengths), sampler.batch_size)
        if self._row_limits is not None:
            batches = (lengths[start : start + sampler.batch_size] for start in starts)
            return np.array([packed_shape(batch, self._row_limits) for batch in batches])
        rows = np.diff(np.append(starts, len(lengths)))
        widths = np.maximum.reduceat(lengths, starts).astype(np.int64)
        return np.column_stack([rows, widths if self._padded_to is None else 0 * widths + self._padded_to])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows.

        Another epoch starts at its beginning; the one that `load_state_dict` restored goes on where it was.
        """
        if epoch != self.batch_sampler.epoch:
            self.batch_sampler.epoch = epoch
            self._resume_at = self._taken = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        self.dataset.epoch = self.batch_sampler.epoch  # type: ignore[attr-defined]
        self.batch_sampler.start = self._taken = self._resume_at
        self._resume_at = 0
        for batch in super().__iter__():
            self._taken += 1  # counted when handed out: workers are ahead of this
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, and what the order depends on.

        After an epoch's last batch the position is the epoch's end: a loader that goes on from there yields
        nothing, and the next `set_epoch` starts the next epoch.
        """
        return {"epoch": self.batch_sampler.epoch, "batches": self._taken, **self._order()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position.

        Raises:
            ValueError: this loader has other data or options, so that the position would be another one.
        """
        for name, here in self._order().items():
            if state.get(name) != here:
                raise ValueError(
                    f"cannot go on in the data: {name} was {state.get(name)} when the position was saved "
                    f"and is {here} now"
                )
        self.batch_sampler.epoch = state["epoch"]
        self._resume_at = self._taken = state["batches"]

    def _order(self) -> dict[str, int]:
        """Everything that the order depends on besides the epoch."""
        sampler = self.batch_sampler
        return {
            "examples": len(sampler.lengths),
            "example_lengths_crc32": zlib.crc32(np.ascontiguousarray(sampler.lengths).data),
            "batch_size": sampler.batch_size,
            "accumulate": sampler.accumulate,
            "seed": sampler.seed,
            "shuffle": int(sampler.shuffle),
            "bucket": int(sampler.bucket),
        }


def _collate(
    examples: list[dict[str, Any]],
    *,
    row_limits: tuple[int, int] | None,
    padded_to: tuple[int | None, int | None],
    decoder_only: bool,
    pad_id: int,
    padding_side: str,
    label_padding_side: str,
) -> dict[str, Tensor]:
    rows = examples
    if row_limits is not None:
        examples, rows = packed_rows(examples, row_limits, decoder_only=decoder_only)
    # Without a row a process goes through the model all the same: in it, the processes wait for each other.
    inputs = [row["input_ids"] for row in rows] or [[pad_id]]
    labels = [row["labels"] for row in rows] or [[IGNORED_LABEL]]
    batch: dict[str, Tensor] = {
        "input_ids": pad_rows(inputs, pad_id, padding_side, padded_to[0]),
        "attention_mask": pad_rows([[1] * len(row) for row in inputs], 0, padding_side, padded_to[0]),
        "labels": pad_rows(labels, IGNORED_LABEL, label_padding_side, padded_to[1]),
        "index": torch.tensor([example["index"] for example in examples], dtype=torch.long),
    }
    for name, side in (("segment_ids", padding_side), ("decoder_segment_ids", label_padding_side)):
        if rows and name in rows[0]:
            batch[name] = pad_rows([row[name] for row in rows], 0, side)
    return batch


def pad_rows(
    rows: Sequence[list[int]], value: int, side: str = "right", length: int | None = None
) -> LongTensor:
    """Rows of ids of different lengths as one (B, S) tensor; S is `length`, or that of the longest row."""
    length = length or max(len(row) for row in rows)
    padding = [[value] * (length - len(row)) for row in rows]
    if side == "left":
        return torch.LongTensor([gap + row for row, gap in zip(rows, padding, strict=True)])
    return torch.LongTensor([row + gap for row, gap in zip(rows, padding, strict=True)])
