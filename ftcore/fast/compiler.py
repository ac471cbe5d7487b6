"""torch.compile: whether it works here, functions compiled separately, compiled training blocks."""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.models import Model
from ftcore.models.attention import has_hooks
from ftcore.training.gradient_checkpointing import Block, blocks, train_with


def require_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile lacks a C++ compiler (CPU) or Triton (other devices)."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds to import

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise ValueError("compile=True needs a C++ compiler, such as g++") from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(f"compile=True needs Triton on {device}: install it, or leave compile out")


def compile_separately(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`torch.compile(function, **settings)` of a copy of the function.

    The compiler caches its results, at most eight, by code object. With a copy each caller has its own cache.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    rest = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    return torch.compile(FunctionType(code, *rest), **settings)


def compile_blocks(model: Model) -> None:
    """Compile the forward and backward pass of the model's blocks for training, in place.

    Blocks of one class share compiled code, which serves batches of any size. The first step includes the
    compilation. Dropout draws other masks than uncompiled. A block with a hook inside runs uncompiled.
    """
    compiled = {kind: compile_separately(kind.forward) for kind in {type(block) for block in blocks(model)}}
    for block in blocks(model):
        train_with(block, partial(_forward, block, compiled[type(block)], block.forward))


def _forward(
    block: Block, compiled: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor | None
) -> Tensor:
    if _has_hooks_inside(block):
        return plain(*inputs)
    for tensor in inputs:
        if tensor is not None:
            # (B, T, D) or (B, H, T, S): D and H are constants of the compiled code; B, T and S vary.
            for dimension in (0, 1) if tensor.dim() == 3 else (0, 2, 3):
                torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return compiled(block, *inputs)


def _has_hooks_inside(block: Block) -> bool:
    """Hooks that compiled code would skip. Not those of the block itself, which run around its forward, nor
    those of T5's position table, which the stack reads before its blocks run."""
    inside = (part for part in block.modules() if part is not block and not isinstance(part, nn.Embedding))
    return any(map(has_hooks, inside))
