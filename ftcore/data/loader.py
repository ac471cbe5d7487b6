"""Batches of examples, in an order that is a pure function of (seed, epoch) and can be resumed anywhere.

An optimizer step uses batch_size * accumulate examples, as `accumulate` micro-batches. The examples of a step
are chosen first and split afterwards, so 4 micro-batches of 8 contain the same examples as one batch of 32.

With `bucket`, a step has examples of similar length, which avoids nearly all padding (without buckets a third
to a half of all positions on SQuAD and on short messages). The shuffled epoch is cut into pools of many
steps; each pool is sorted by length and cut into steps; the steps are shuffled. So an example is batched with
others of its length, but not with the same ones in every epoch, and short and long steps alternate at random.
Within a step the examples stay sorted, so that its micro-batches have little padding too; since their
gradients are summed, that order has no effect on training.
"""

import signal
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor

from ftcore.data.dataset import ExampleDataset
from ftcore.data.packing import packed_rows, packed_shape
from ftcore.data.tokenizer import IGNORED_LABEL

# Steps per pool. More means less padding, fewer means better shuffling. With 100, 1% of the input positions
# of SQuAD in batches of 8 is padding (without buckets 38%).
_POOL = 100


class BatchError(OSError):
    """The examples of a batch cannot be read."""


@dataclass(eq=False)
class BucketBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Yields micro-batches as lists of dataset indices.

    Only the last step and its last micro-batch may be smaller; no example is dropped.
    """

    lengths: np.ndarray  # (examples, 2), the number of input ids and of labels of each example
    batch_size: int  # examples per micro-batch
    accumulate: int  # micro-batches per optimizer step
    shuffle: bool  # a new order in each epoch; without it the order is always the same
    seed: int  # of the order, 0 or more
    bucket: bool  # group examples of similar length
    # Each rank gets every N-th row of a micro-batch, for balanced lengths; of a short one that may be none.
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    start: int = 0  # micro-batches of this epoch to skip

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulate < 1:
            raise ValueError(
                f"batch_size is {self.batch_size} and accumulate {self.accumulate}; expected 1 or more"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")
        if not len(self.lengths):
            raise ValueError("the data set has no examples")

    def order(self) -> np.ndarray:
        """(examples,) dataset indices, step after step; all steps but the last have the full size."""
        size, count = self.batch_size * self.accumulate, len(self.lengths)
        if not self.shuffle:
            order = np.arange(count)
            return self._longest_first(order) if self.bucket else order

        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(count)
        if not self.bucket:
            return order
        # The short step is taken before sorting, or it would always have the shortest examples of a pool.
        full, short = np.split(order, [count - count % size])  # views of `order`, changed in place
        for pool in np.split(full, range(size * _POOL, len(full), size * _POOL)):
            pool[:] = self._longest_first(pool)
        steps = full.reshape(-1, size)
        steps[:] = steps[random.permutation(len(steps))]
        short[:] = self._longest_first(short)
        return order

    def _longest_first(self, indices: np.ndarray) -> np.ndarray:
        """Stable sort by input length, then by label length.

        Longest first, so that a validation set that is too large for memory fails at its first batch.
        """
        inputs, labels = self.lengths[indices].T
        return indices[np.lexsort((-labels, -inputs))]

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, even if this one starts in the middle."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Lazily: as lists of ints the indices of a large corpus take ten times the memory.
        order, size = self.order(), self.batch_size
        starts = range(self.start * size, len(order), size)
        return (order[start : start + size][self.rank :: self.world_size].tolist() for start in starts)


class DataLoader(torch.utils.data.DataLoader):
    """Yields micro-batches of LongTensors, B examples each:

        input_ids       (B, S)  padded with pad_id
        attention_mask  (B, S)  1 for tokens, 0 for padding
        labels          (B, T)  padded with -100 by length, so that EOS is learnt even if it is the pad token;
                                T = S for GPT-2
        index           (B,)    indices of the examples in the dataset

    A rank without rows in a batch gets one padding token, (1, 1), without label or index.

    Packed rows have several examples each, and two more tensors (see packing.py):

        segment_ids          (B, S)  which example a position belongs to, from 1; 0 for padding
        decoder_segment_ids  (B, T)  the same for T5's labels

    `len(loader)` is the number of micro-batches per epoch. Every optimizer step but the epoch's last has
    exactly `accumulate` of them.

    Args:
        dataset: an `ExampleDataset`. Its `epoch` is set.
        batch_size: examples per micro-batch.
        pad_id: padding token of input_ids.
        accumulate, shuffle, seed, bucket, rank, world_size: see `BucketBatchSampler`.
        pad_to_max_length: pad to the dataset's limits instead of to the longest example of the batch.
        num_workers: worker processes that prepare batches; their number does not affect the batches. If one
            is lost (killed for lack of memory, for example), the calling process prepares the rest, and
            `lost_worker` has the reason.
        padding_side: "right" or "left"; T5's labels are always padded on the right.
        pack: put several examples into a row, up to the dataset's limits.
        pin_memory: page-locked batches, for asynchronous copies to a GPU.
    """

    dataset: ExampleDataset
    batch_sampler: BucketBatchSampler

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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; expected 'left' or 'right'")
        sampler = BucketBatchSampler(
            dataset.lengths, batch_size, accumulate, shuffle, seed, bucket, rank, world_size
        )
        if pack and pad_to_max_length:
            raise ValueError("pack contradicts pad_to_max_length: packed rows are as long as their examples")
        # Read only if needed: a user's own dataset may have no limits.
        limits = (dataset.max_input_length, dataset.max_label_length) if pack or pad_to_max_length else None
        self._row_limits, self._padded_to = limits if pack else None, None if pack else limits
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=partial(
                _collate,
                row_limits=self._row_limits,
                padded_to=self._padded_to or (None, None),
                decoder_only=dataset.decoder_only,
                pad_id=pad_id,
                padding_side=padding_side,
            ),
            pin_memory=pin_memory,
            # torch draws a base seed for workers at the start of each iteration. Taken from the global
            # generator, it would change the dropout of a resumed run.
            generator=torch.Generator(),
        )
        self.lost_worker: str | None = None
        self._resume_at = 0  # first batch of the next iteration
        self._taken = 0  # batches of this epoch that have been yielded

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} batches>"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return -(-len(self) // self.batch_sampler.accumulate)

    def shapes(self) -> np.ndarray:
        """(micro-batches, 3): rows, input and label length of each micro-batch, before it is sharded."""
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
        """Set the epoch of the next iteration; the one that `load_state_dict` restored continues."""
        if epoch != self.batch_sampler.epoch:
            self.batch_sampler.epoch = epoch
            self._resume_at = self._taken = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        self.dataset.epoch = self.batch_sampler.epoch
        self.batch_sampler.start = self._taken = self._resume_at
        self._resume_at = 0
        while True:
            try:
                for batch in self._batches():
                    self._taken += 1  # counted here, since workers prefetch
                    yield batch
                return
            except Exception as error:  # of many types; that of a faulty example is raised again below
                if self.num_workers == 0:
                    raise
                self.lost_worker = str(error) or type(error).__name__
                self.num_workers, self.batch_sampler.start = 0, self._taken

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """torch's iterator, without its handler of SIGCHLD.

        That would raise the loss of a worker anywhere in this process, in the middle of an optimizer step for
        example; the iterator itself notices it within seconds.
        """
        number = getattr(signal, "SIGCHLD", signal.SIGINT)  # Windows has none, and torch no handler there
        handler = signal.getsignal(number)  # None: not set by Python
        batches = super().__iter__()
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
        return batches

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch, and what the order depends on.

        After the last batch of an epoch, a loader that resumes there yields nothing until `set_epoch`.
        """
        return {"epoch": self.batch_sampler.epoch, "batches": self._taken, **self._order_state()}

    def rewind(self) -> None:
        """Set the position back to the start of an optimizer step whose batches were not all read."""
        self._taken -= self._taken % self.batch_sampler.accumulate

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a saved position.

        Raises:
            ValueError: this loader has other data or options, which would change the order.
        """
        for name, value in self._order_state().items():
            if state.get(name) != value:
                raise ValueError(
                    f"cannot resume in the data: {name} was {state.get(name)} when the position was saved "
                    f"and is {value} now"
                )
        self.batch_sampler.epoch = state["epoch"]
        self._resume_at = self._taken = state["batches"]

    def _order_state(self) -> dict[str, int]:
        """Everything that the order depends on besides the epoch."""
        sampler = self.batch_sampler
        options = ("batch_size", "accumulate", "seed", "shuffle", "bucket")
        return {
            "examples": len(sampler.lengths),
            "example_lengths_crc32": zlib.crc32(np.ascontiguousarray(sampler.lengths).data),
            **{name: int(getattr(sampler, name)) for name in options},
        }


def _collate(
    examples: list[dict[str, Any]],
    *,
    row_limits: tuple[int, int] | None,
    padded_to: tuple[int | None, int | None],
    decoder_only: bool,
    pad_id: int,
    padding_side: str,
) -> dict[str, Tensor]:
    rows = examples
    if row_limits is not None:
        examples, rows = packed_rows(examples, row_limits, decoder_only=decoder_only)
    label_padding_side = padding_side if decoder_only else "right"
    # A rank without rows must run the model too: its collectives would block the other ranks otherwise.
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
    """Pad rows of ids to one (B, S) tensor; S is `length`, or that of the longest row."""
    length = length or max(map(len, rows))
    padding = [[value] * (length - len(row)) for row in rows]
    if side == "left":
        rows, padding = padding, list(rows)
    return torch.LongTensor([start + end for start, end in zip(rows, padding, strict=True)])
