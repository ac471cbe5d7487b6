"""A decoding step compiled to C++ by torch.compile.

A step costs more than reading the weights: Python, and hundreds of small operations that each synchronize
threads. Compiled code has few of either, and for a few rows its matrix products are specialized for
their number.
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
from ftcore.fast.compiler import compile_separately
from ftcore.fast.packed import FEW_ROWS, OneDnnLinear
from ftcore.models import KVCache

# Weights are constants, whose memory layout the compiler may change.
FREEZING = {"freezing": True}
# Matrix products are generated for their sizes.
AUTOTUNED = FREEZING | {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
# The fused attention kernel is made for many queries; for one query the compiler does better with the plain
# operations. Not where beams of a T5 source are several queries: it generates no products for those.
PLAIN, FUSED = [SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
# Integers that change every step and must not be compiled as constants.
DYNAMIC = "L['cache'].extent.length,L['cache'].extent.max_length"


class CompiledStep:
    """The `fast_step` of a model on a CPU: `next_logits` of one token per row, compiled at its first use.

    Each number of rows up to FEW_ROWS is compiled separately, with its own matrix products. All larger
    numbers share one program with oneDNN's products. Both serve every cache length. Weights are constants.
    """

    def __init__(self) -> None:
        self.few_rows, self.many_rows = compiled_next_logits(), compiled_next_logits()
        self.marked_key: Callable[[], Tensor | None] = lambda: None  # of the first layer of the last cache

    def __reduce__(self) -> tuple[type["CompiledStep"], tuple[()]]:
        return CompiledStep, ()  # compiled code reads the weights of the original model

    def __call__(
        self,
        model: Any,
        new_ids: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        encoder_output: Tensor | None,
        encoder_mask: Tensor | None,
    ) -> Tensor:
        new_ids = new_ids.flatten().clone()[:, None]  # (R, 1) with fixed strides, which are guarded
        is_few = len(new_ids) <= FEW_ROWS
        mark_sizes(new_ids, mask, encoder_output, encoder_mask, is_few=is_few)
        if self.marked_key() is not cache.layers[0].key:
            for layer in cache.layers:
                mark_sizes(layer.key, layer.value, *(layer.cross or ()), is_few=is_few, length_dimension=2)
            self.marked_key = weakref.ref(cache.layers[0].key)
            if not is_few:
                pack_weights(model)
        step, options = (self.few_rows, AUTOTUNED) if is_few else (self.many_rows, FREEZING)
        has_beams = encoder_output is not None and len(encoder_output) < len(new_ids)
        dynamic = torch.compiler.config.patch(dynamic_sources=DYNAMIC)  # type: ignore[attr-defined]
        with inductor.patch(options), dynamic, sdpa_kernel(FUSED if is_few and has_beams else PLAIN):
            return step(model, new_ids, cache, mask, encoder_output, encoder_mask)

    def supports(self, sources: int, rows: int) -> bool:
        """False where it would compile again: for few rows, and for one source, a special case of a size."""
        return sources > 1 and rows > FEW_ROWS


def compiled_next_logits() -> Callable[..., Tensor]:
    """Compile `next_logits`, (B, T) ids -> (B, V), anew: with guards on its inputs only."""
    return compile_separately(next_logits, options={"guard_filter_fn": guards_on_inputs})


def pack_weights(model: Any) -> None:
    """Pack all weights that a step reads, which are those outside of T5's encoder."""
    for name, layer in model.named_modules():
        if isinstance(layer, OneDnnLinear) and not name.startswith("encoder."):
            layer.pack()


def mark_sizes(*tensors: Tensor | None, is_few: bool, length_dimension: int = 1) -> None:
    """Make the number of rows static if few, else dynamic, and the length dynamic."""
    for tensor in tensors:
        if tensor is not None:
            mark_rows = mark_static if is_few else maybe_mark_dynamic
            mark_rows(tensor, 0)
            maybe_mark_dynamic(tensor, length_dimension)


def guards_on_inputs(guards: Any) -> list[bool]:
    """Which guards to keep, out of hundreds to thousands checked at every step: those on the other inputs.

    The model is frozen, and the properties of a cache follow from the model and the other inputs.
    """
    return [not re.search(r"\b(model|cache)\b", guard.name) and not guard.is_global for guard in guards]
