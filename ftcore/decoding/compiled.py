"""A step of decoding as one program, which PyTorch's compiler writes in C++ for this model and processor.

A step of one row costs more than reading the matrices: Python, a hundred small operations, the start of two
threads for each product. The program has none of that, and products made for so few rows.
"""

import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import mark_static, maybe_mark_dynamic
from torch._inductor import config as inductor
from torch._inductor.cpp_builder import get_cpp_compiler

from ftcore.decoding.stepper import next_logits
from ftcore.models import KVCache

# Weights are constants, which may be laid out anew; products are written for the sizes they have.
CHOICES = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}
# What grows from step to step, and must not be taken for a constant.
GROWING = "L['cache'].length,L['cache'].max_length"


class CompiledStep:
    """`next_logits` for one new token of each row, compiled when a number of rows is first seen.

    The program is good for all lengths. It knows nothing of hooks, nor of weights that change.
    """

    def __init__(self) -> None:
        # Programs are kept with a function's code, eight at most: each model gets code of its own.
        own = FunctionType(next_logits.__code__.replace(), next_logits.__globals__)
        self.program: Callable[..., Tensor] = torch.compile(
            own, options={"guard_filter_fn": guards_on_inputs}
        )
        self.marked: Callable[[], KVCache | None] = lambda: (
            None
        )  # the cache that came last, its tensors marked

    def __call__(
        self, model: Any, new_ids: Tensor, cache: KVCache, mask: Tensor | None, encoder_output: Tensor | None
    ) -> Tensor:
        new_ids = new_ids.flatten().clone()[:, None]  # (R, 1); strides are part of what a program is made for
        mark_lengths(new_ids, mask, encoder_output)
        if self.marked() is not cache:
            for layer in cache.layers:
                mark_lengths(layer.key, layer.value, *(layer.cross or ()), lengths=2)
            self.marked = weakref.ref(cache)
        growing = torch.compiler.config.patch(dynamic_sources=GROWING)  # type: ignore[attr-defined]
        with inductor.patch(CHOICES), growing:
            return self.program(model, new_ids, cache, mask, encoder_output)


def mark_lengths(*tensors: Tensor | None, lengths: int = 1) -> None:
    """Tell the compiler that rows are a constant, and that dimension `lengths` may have any size."""
    for tensor in tensors:
        if tensor is not None:
            mark_static(tensor, 0)
            maybe_mark_dynamic(tensor, lengths)


def guards_on_inputs(guards: Any) -> list[bool]:
    """Which of the compiler's conditions to ask at every step: not those of the model, which is frozen."""
    return [not guard.name.startswith("L['model']") and not guard.is_global for guard in guards]


def require_compiler() -> None:
    """Raises ValueError where PyTorch finds no C++ compiler."""
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError("compile=True needs a C++ compiler, such as g++, and finds none") from error
