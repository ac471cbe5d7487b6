"""A step of decoding as one program, which PyTorch's compiler writes in C++ for this model and processor.

A step costs more than reading the matrices: Python, hundreds of small operations, the start of two threads
for each of them. The program has little of that and, for one row or a few, products made for so many.
"""

import re
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import mark_static, maybe_mark_dynamic
from torch._inductor import config as inductor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ftcore.decoding.state import next_logits
from ftcore.fast.compiler import compile_apart
from ftcore.fast.packed import FEW_ROWS, OneDnnLinear
from ftcore.models import KVCache

# Weights are constants, which may be laid out anew.
FROZEN = {"freezing": True}
# And products are written for the sizes they have.
OWN_PRODUCTS = FROZEN | {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
# Attention's fused kernel is for many queries; of the textbook's lines the compiler makes more. But where a
# source of T5 has beams, and so several queries, it has no product of its own for them.
TEXTBOOK, FUSED = [SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
# What grows from step to step, and must not be taken for a constant.
GROWING = "L['cache'].extent.length,L['cache'].extent.max_length"


class CompiledStep:
    """`next_logits` for one new token of each row, compiled when it is first needed.

    Each number of rows up to FEW_ROWS has a program of its own, with products written for it. Above, one
    program is good for any number, and has oneDNN's products. Both kinds are good for all lengths, and know
    nothing of hooks, nor of weights that change.
    """

    def __init__(self) -> None:
        self.few, self.many = program(), program()
        # The cache that came last, its tensors marked.
        self.marked: Callable[[], KVCache | None] = lambda: None

    def __call__(
        self, model: Any, new_ids: Tensor, cache: KVCache, mask: Tensor | None, encoder_output: Tensor | None
    ) -> Tensor:
        new_ids = new_ids.flatten().clone()[:, None]  # (R, 1); strides are part of what a program is made for
        is_few = len(new_ids) <= FEW_ROWS
        mark_sizes(new_ids, mask, encoder_output, is_few=is_few)
        if self.marked() is not cache:
            for layer in cache.layers:
                mark_sizes(layer.key, layer.value, *(layer.cross or ()), is_few=is_few, lengths=2)
            self.marked = weakref.ref(cache)
            if not is_few:
                pack_matrices(model)
        step, choices = (self.few, OWN_PRODUCTS) if is_few else (self.many, FROZEN)
        has_beams = encoder_output is not None and len(encoder_output) < len(new_ids)
        growing = torch.compiler.config.patch(dynamic_sources=GROWING)  # type: ignore[attr-defined]
        with inductor.patch(choices), growing, sdpa_kernel(FUSED if is_few and has_beams else TEXTBOOK):
            return step(model, new_ids, cache, mask, encoder_output)

    def suits(self, sources: int, rows: int) -> bool:
        """One source is a case of its own to the compiler, and so is each number of few rows."""
        return sources > 1 and rows > FEW_ROWS


def program() -> Callable[..., Tensor]:
    return compile_apart(next_logits, options={"guard_filter_fn": guards_on_inputs})


def pack_matrices(model: Any) -> None:
    """Lay out what a step multiplies with, which the encoder of T5 has no part in."""
    for name, layer in model.named_modules():
        if isinstance(layer, OneDnnLinear) and not name.startswith("encoder."):
            layer.pack()


def mark_sizes(*tensors: Tensor | None, is_few: bool, lengths: int = 1) -> None:
    """Tell the compiler that few rows are a constant, but many and dimension `lengths` may have any size."""
    for tensor in tensors:
        if tensor is not None:
            mark_rows = mark_static if is_few else maybe_mark_dynamic
            mark_rows(tensor, 0)
            maybe_mark_dynamic(tensor, lengths)


def guards_on_inputs(guards: Any) -> list[bool]:
    """Which of the compiler's conditions to ask at every step, of the hundreds to thousands there are.

    The model is frozen, and what is particular about a cache follows from the model and the other inputs.
    """
    return [not re.search(r"\b(model|cache)\b", guard.name) and not guard.is_global for guard in guards]
