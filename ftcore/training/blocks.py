"""The blocks of a model, where training changes how they compute."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.models.cache import LayerCache
from ftcore.models.gpt2 import GPT2Block
from ftcore.models.t5 import DecoderBlock, EncoderBlock

Block = EncoderBlock | DecoderBlock | GPT2Block


def blocks(model: nn.Module) -> Iterator[Block]:
    """From the first to the last; T5's encoder comes before its decoder."""
    return (module for module in model.modules() if isinstance(module, Block))


def train_with(block: Block, forward: Callable[..., Tensor]) -> None:
    """Let `forward` take the place of a block's own where gradients are wanted.

    Without gradients, as in a validation, and with a cache, the block computes as before.
    """
    block.forward = partial(_choose, forward, block.forward)  # type: ignore[method-assign]


def _choose(
    training: Callable[..., Tensor], otherwise: Callable[..., Tensor], *inputs: Any, **named: Any
) -> Tensor:
    has_cache = any(isinstance(value, LayerCache) for value in (*inputs, *named.values()))
    chosen = training if torch.is_grad_enabled() and not has_cache else otherwise
    return chosen(*inputs, **named)
