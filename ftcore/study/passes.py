"""Join the forward passes of one generation into one tensor.

`generate` runs a model once per token with a KVCache. The joined recording has the values that a single pass
over the whole sequence would give.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.models import KVCache
from ftcore.models.gpt2 import GPT2Model
from ftcore.models.t5 import T5Decoder, T5Encoder


@dataclass
class Sequences:
    """The sequences a stack of blocks reads, in one pass or, with a cache, in several."""

    cache: Callable[[], KVCache | None]  # a weak reference, so that recording does not keep the cache alive
    last: "Pass | None" = None
    # (R, positions): for each row of the last pass, the row in which each position was read at the time
    history: Tensor | None = None


@dataclass(frozen=True)
class Pass:
    """One forward pass of a stack: R rows of T tokens."""

    sequences: Sequences
    start: int  # its first position
    rows: int
    length: int

    def continues(self, earlier: "Pass | None") -> bool:
        """Whether this pass reads the cache that an earlier one filled."""
        return earlier is not None and earlier.sequences is self.sequences and earlier.start < self.start


class Passes:
    """Tracks the forward passes of a model's stacks."""

    def __init__(self, model: nn.Module):
        self.stacks = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, GPT2Model | T5Encoder | T5Decoder)
        }
        self.current: Pass | None = None  # the one that began last
        self.running: set[str] = set()  # stacks
        self._sequences: dict[str, Sequences] = {}

    def begin(self, stack: str, ids: Tensor, arguments: tuple[Any, ...]) -> None:
        """Register a pass over `ids` (R, T); it continues the last one if both use the same filled cache."""
        cache = next((value for value in arguments if isinstance(value, KVCache)), None)
        sequences = self._sequences.get(stack)
        if sequences is None or cache is None or cache.length == 0 or sequences.cache() is not cache:
            sequences = Sequences((lambda: None) if cache is None else weakref.ref(cache))
            self._sequences[stack] = sequences
        start = 0 if cache is None else cache.length
        self.current = sequences.last = Pass(sequences, start, rows=len(ids), length=ids.shape[1])
        self.running.add(stack)
        if cache is not None:
            sequences.history = _history(cache, self.stacks[stack], ids)

    def end(self, stack: str, _: Tensor, __: tuple[Any, ...]) -> None:
        """Note that a stack has computed its output, (B, T, D)."""
        self.running.discard(stack)


def _history(cache: KVCache, stack: nn.Module, ids: Tensor) -> Tensor:
    """`Sequences.history` after this pass: (R, positions).

    Only the cache knows how a search reorders its rows. Row numbers are therefore stored in an extra cache
    layer, which is reordered with the keys.
    """
    blocks: Any = stack.h if isinstance(stack, GPT2Model) else stack.block
    rows, length = ids.shape
    numbers = torch.arange(rows, device=ids.device).view(rows, 1, 1, 1).expand(rows, 1, length, 1)
    reordered, _ = cache.layer(len(blocks)).append(numbers, numbers)  # (R, 1, positions, 1)
    return reordered[:, 0, :, 0].clone()


def join(name: str, steps: Sequence[tuple[Pass | None, Tensor]], unseen: float) -> Tensor:
    """Concatenate the activations of consecutive passes, with rows as in the last pass.

    Args:
        name: of the activation, for errors.
        steps: each pass with its activation, (R, T, ...) or, for attention, (R, H, T, S).
        unseen: fills keys that only later passes have.

    Raises:
        ValueError: several passes, and an activation that has no dimensions of rows and tokens.
    """
    if len(steps) == 1:
        ((step, tensor),) = steps
        return tensor if step is None else _reordered(step, _split_beams(step, tensor))
    dim = 2 if steps[0][1].dim() == 4 else 1
    joined = []
    for step, tensor in steps:
        assert step is not None  # only a pass of a stack can continue another
        tensor = _split_beams(step, tensor)
        if len(tensor) == 1:  # position embeddings, the same in every row
            tensor = tensor.expand(step.rows, *tensor.shape[1:])
        # Length 1: the head may be applied to the last position only.
        if len(tensor) != step.rows or tensor.shape[dim] not in (step.length, 1):
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} for {step.rows} rows of {step.length} tokens: "
                "such steps of a generation cannot be joined, record a single pass over the whole text"
            )
        joined.append(_reordered(step, tensor))
    if dim == 2:
        keys = max(tensor.shape[-1] for tensor in joined)
        joined = [F.pad(tensor, (0, keys - tensor.shape[-1]), value=unseen) for tensor in joined]
    return torch.cat(joined, dim)


def _split_beams(step: Pass, tensor: Tensor) -> Tensor:
    """T5's cross-attention treats N beams as extra queries: (B, H, N * T, S) -> (B * N, H, T, S)."""
    beams = step.rows // len(tensor) if tensor.dim() == 4 else 1
    if beams == 1 or tensor.shape[2] != beams * step.length:
        return tensor
    return tensor.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)


def _reordered(step: Pass, tensor: Tensor) -> Tensor:
    """Rows of one pass, selected to match the rows of the last pass."""
    if step is step.sequences.last or step.sequences.history is None:
        return tensor
    return tensor.index_select(0, step.sequences.history[:, step.start])
