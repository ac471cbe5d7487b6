"""Gradient checkpointing (Chen et al. 2016): recompute activations in the backward pass to save memory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ftcore.models import Model
from ftcore.models.cache import LayerCache
from ftcore.models.gpt2 import GPT2Block
from ftcore.models.t5 import DecoderBlock, EncoderBlock

Block = EncoderBlock | DecoderBlock | GPT2Block


def checkpoint_blocks(model: Model) -> None:
    """Keep only the inputs of each block for the backward pass and recompute the rest there.

    Dropout masks are redrawn from the saved random state, so gradients are bit-identical. A hook on a block
    runs once; a hook on a module inside it runs again in the backward pass. A forward pass with a cache is
    not checkpointed, since recomputing it would append to the cache twice.
    """
    for block in blocks(model):
        train_with(block, partial(checkpoint, block.forward, use_reentrant=False))


def blocks(model: nn.Module) -> Iterator[Block]:
    """All transformer blocks in order; T5's encoder comes before its decoder."""
    return (module for module in model.modules() if isinstance(module, Block))


def train_with(block: Block, forward: Callable[..., Tensor]) -> None:
    """Use `forward` instead of the block's own forward pass in training: with gradients, without a cache."""
    block.forward = partial(_dispatch, forward, block.forward)  # type: ignore[method-assign]


def _dispatch(
    training: Callable[..., Tensor], inference: Callable[..., Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    has_cache = any(isinstance(value, LayerCache) for value in (*args, *kwargs.values()))
    forward = training if torch.is_grad_enabled() and not has_cache else inference
    return forward(*args, **kwargs)
