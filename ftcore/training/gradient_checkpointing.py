"""Gradient checkpointing (Chen et al. 2016): less memory for activations, paid with a second forward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ftcore.models import Model
from ftcore.models.cache import LayerCache
from ftcore.models.gpt2 import GPT2Block
from ftcore.models.t5 import DecoderBlock, EncoderBlock


def checkpoint_blocks(model: Model) -> None:
    """Let every block keep nothing but its inputs for the backward pass, and compute the rest again there.

    Dropout draws the same numbers again, so the gradients are the same bit for bit. A hook on a block runs
    once; one on a module inside it runs again in the backward pass. Without gradients, as in a validation,
    and with a cache, which a second pass would fill twice, the blocks are what they were.
    """
    for module in model.modules():
        if isinstance(module, EncoderBlock | DecoderBlock | GPT2Block):
            module.forward = partial(_recompute, module.forward)  # type: ignore[method-assign]


def _recompute(forward: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    has_cache = any(isinstance(value, LayerCache) for value in (*inputs, *named.values()))
    if has_cache or not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
