"""--compile: forward and backward pass of a block as programs that PyTorch's compiler writes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ftcore.fast.compiler import compile_apart
from ftcore.models import Model
from ftcore.models.attention import has_hooks
from ftcore.training.gradient_checkpointing import Block, blocks, train_with


def compile_blocks(model: Model) -> None:
    """Train with compiled blocks: a program for each kind, good for batches of any size.

    The first step takes as long as it takes to write them. Dropout draws other numbers than without them. A
    block in which a hook waits computes as its model's page says.
    """
    kinds = {type(block) for block in blocks(model)}
    programs = {kind: compile_apart(kind.forward) for kind in kinds}
    for block in blocks(model):
        train_with(block, partial(_compute, block, programs[type(block)], block.forward))


def _compute(
    block: Block, program: Callable[..., Tensor], page: Callable[..., Tensor], *inputs: Tensor | None
) -> Tensor:
    if _is_watched(block):
        return page(*inputs)
    for tensor in inputs:
        if tensor is not None:
            # (B, T, D) or (B, H, T, S): the program is for one width and so many heads, but any B, T and S.
            for dimension in (0, 1) if tensor.dim() == 3 else (0, 2, 3):
                torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return program(block, *inputs)


def _is_watched(block: Block) -> bool:
    """Hooks on the block itself are called around it. T5's table of position biases is read by its stack."""
    inside = (part for part in block.modules() if part is not block and not isinstance(part, nn.Embedding))
    return any(map(has_hooks, inside))
