"""Which passes of a model read one text, and how what they gave becomes one tensor.

`generate` runs a model once per token, with a KVCache. To whoever looks inside, that is one text: what was
recorded in all the passes should be what a single pass over the whole text would have given.
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
class Text:
    """What a stack of blocks reads, in one pass or, with a cache, in several."""

    stack: str  # its dotted name
    cache: Callable[[], KVCache | None]  # a weak reference: who records does not keep it alive
    last: "Pass | None" = None
    # (R, positions): for each row of the last pass, in which row of its own pass a position was read
    history: Tensor | None = None


@dataclass(frozen=True)
class Pass:
    """One run of a stack: R rows of T tokens."""

    text: Text
    start: int  # its first position
    rows: int
    length: int

    def goes_on(self, earlier: "Pass | None") -> bool:
        return earlier is not None and earlier.text is self.text and earlier.start < self.start


class Passes:
    """Follows the stacks of a model as they read."""

    def __init__(self, model: nn.Module):
        self.stacks = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, GPT2Model | T5Encoder | T5Decoder)
        }
        self.now: Pass | None = None  # the one that began last
        self._texts: dict[str, Text] = {}

    def begin(self, stack: str, ids: Tensor, arguments: tuple[Any, ...]) -> None:
        """A stack is about to read `ids` (R, T). A cache among its arguments says whether it goes on."""
        cache = next((value for value in arguments if isinstance(value, KVCache)), None)
        text = self._texts.get(stack)
        if text is None or cache is None or cache.length == 0 or text.cache() is not cache:
            text = Text(stack, (lambda: None) if cache is None else weakref.ref(cache))
            self._texts[stack] = text
        start = 0 if cache is None else cache.length
        self.now = text.last = Pass(text, start, rows=len(ids), length=ids.shape[1])
        if cache is not None:
            text.history = _history(cache, self.stacks[stack], ids)


def _history(cache: KVCache, stack: nn.Module, ids: Tensor) -> Tensor:
    """(R, positions) as in Text. Searches tell the cache alone which rows go on, so the cache is asked:

    in a layer of its own it is given the numbers of the rows, and moves them as it moves keys.
    """
    blocks: Any = stack.h if isinstance(stack, GPT2Model) else stack.block
    rows, length = ids.shape
    numbers = torch.arange(rows, device=ids.device).view(rows, 1, 1, 1).expand(rows, 1, length, 1)
    moved, _ = cache.layer(len(blocks)).append(numbers, numbers)  # (R, 1, positions, 1)
    return moved[:, 0, :, 0].clone()


def join(name: str, steps: Sequence[tuple[Pass | None, Tensor]], unseen: float) -> Tensor:
    """What the passes of one text gave as one tensor, with the rows of its last pass.

    Args:
        name: of the activation.
        steps: every pass and what it gave, (R, T, ...) or attention, (R, H, T, S).
        unseen: stands for keys that later passes have and this one has not.

    Raises:
        ValueError: several passes, and one gave something else than a row of vectors for each row of tokens.
    """
    if len(steps) == 1:
        ((step, tensor),) = steps
        return tensor if step is None else _moved(step, _unfolded(step, tensor))
    along = 2 if steps[0][1].dim() == 4 else 1
    joined = []
    for step, tensor in steps:
        assert step is not None  # what was read outside of any text is never one of several
        tensor = _unfolded(step, tensor)
        # The head may have been asked for the last position only.
        if len(tensor) != step.rows or tensor.shape[along] not in (step.length, 1):
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} for {step.rows} rows of {step.length} tokens: "
                "such steps of a generation cannot be joined, record a single pass over the whole text"
            )
        joined.append(_moved(step, tensor))
    if along == 2:
        keys = max(tensor.shape[-1] for tensor in joined)
        joined = [F.pad(tensor, (0, keys - tensor.shape[-1]), value=unseen) for tensor in joined]
    return torch.cat(joined, along)


def _unfolded(step: Pass, tensor: Tensor) -> Tensor:
    """To T5's cross-attention N beams are more queries: (B, H, N * T, S) -> (B * N, H, T, S)."""
    beams = step.rows // len(tensor) if tensor.dim() == 4 else 1
    if beams == 1 or tensor.shape[2] != beams * step.length:
        return tensor
    return tensor.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)


def _moved(step: Pass, tensor: Tensor) -> Tensor:
    """One pass's tensor with a row for each row of its text's last pass."""
    if step is step.text.last or step.text.history is None:
        return tensor
    return tensor.index_select(0, step.text.history[:, step.start])
