"""A model prepared for many calls of `generate`: packed weights on a CPU, CUDA graphs on a GPU."""

from typing import Any

import torch
from torch import Tensor, nn

from ftcore.fast.compiled_step import CompiledStep
from ftcore.fast.compiler import require_compiler
from ftcore.fast.cuda_graph import GraphStep
from ftcore.fast.packed import (
    BFloat16Linear,
    Float32Linear,
    FusedQKVSlice,
    Int8Linear,
    MeanCenteredHead,
    PackedLinear,
    PreparedStep,
)
from ftcore.lora.lora import merge_lora
from ftcore.models import Model
from ftcore.models.gpt2 import Conv1D
from ftcore.models.t5 import T5LayerSelfAttention

LAYER_TYPES = {torch.float32: Float32Linear, torch.bfloat16: BFloat16Linear, torch.int8: Int8Linear}


@torch.no_grad()
def prepare_for_decoding(model: Model, dtype: torch.dtype = torch.float32, *, compile: bool = False) -> Model:
    """Returns a copy of the model for fast inference on the model's device.

    On a CPU the copy has linear layers of oneDNN, and cannot be trained or saved. These are laid out anew,
    which takes tenths of a second for GPT-2 small, when decoding changes between one row and several. On a
    GPU it is the model in `dtype`, and `generate` runs each decoding step as a CUDA graph, captured at its
    first use. Hooks work, and disable compiled steps and graphs. The copy shares unconverted tensors with the
    model, so prepare again after further training. LoRA is merged into the copy.

    Args:
        model: GPT-2 or T5 in float32, on the CPU or a GPU.
        dtype: on a CPU, of the linear layers' weights; everything else stays float32. float32 gives the ids
            of the model itself; bfloat16 halves and int8 (one scale per output) quarters the bytes that are
            read per token; docs/generation.md has the cost in quality. On a GPU, float32 or bfloat16, of
            the whole computation; a bfloat16 model is accepted too.
        compile: on a CPU, compile the decoding step to C++ at its first use, which takes about a
            minute: once for a single row and once for more. The programs are kept in ~/.cache/ftcore, and
            serve later processes and other models of the same shape.

    Raises:
        ValueError: a dtype or device that is not supported, a model that is not float32 or already
            prepared, or a PyTorch or processor without these kernels; with `compile`, no C++ compiler where
            no program is kept, or not a CPU.
    """
    check_supported(model, dtype)
    device = next(model.parameters()).device
    if compile and device.type != "cpu":
        raise ValueError(f"compile=True is for a CPU: on {device} a step is a CUDA graph without it")
    prepared: Any = merge_lora(model).eval().requires_grad_(False)
    if device.type == "cuda":
        return use_graphs(prepared, dtype)
    replace_linears(prepared, LAYER_TYPES[dtype])
    prepared.eval().fast_step = CompiledStep(prepared) if compile else PreparedStep(prepared)
    if compile and not prepared.fast_step.cache.has_programs():
        require_compiler(device)
    return prepared


def use_graphs(model: Any, dtype: torch.dtype) -> Any:
    """Convert the model, in place, and let `generate` run its steps as CUDA graphs."""
    model.to(dtype).fast_step = GraphStep()
    return model


def replace_linears(model: Any, layer_type: type[PackedLinear]) -> None:
    """Replace linear layers by `layer_type` and dropout by Identity, in place."""
    for module in model.modules():
        if isinstance(module, T5LayerSelfAttention):
            attention: Any = module.SelfAttention
            weights = torch.cat([matrix(layer) for layer in (attention.k, attention.v, attention.q)])
            fused, latest = layer_type(weights, None), [None]
            attention.k, attention.v, attention.q = (FusedQKVSlice(fused, i, latest) for i in range(3))
    for name, module in list(model.named_modules()):
        if name == "lm_head" and layer_type is not Float32Linear:
            model.set_submodule(name, MeanCenteredHead(matrix(module), layer_type))
        elif isinstance(module, nn.Linear | Conv1D):
            model.set_submodule(name, layer_type(matrix(module), module.bias))
        elif type(module) is nn.Dropout:  # a no-op; AttentionDropout is not called at all
            model.set_submodule(name, nn.Identity())


def matrix(layer: nn.Linear | Conv1D) -> Tensor:
    """The weight as (out, in)."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def check_supported(model: Model, dtype: torch.dtype) -> None:
    """Raise ValueError where `prepare_for_decoding` cannot work."""
    device = next(model.parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the model is on {device}, expected a CPU or CUDA: use it unprepared")
    dtypes = list(LAYER_TYPES) if device.type == "cpu" else [torch.float32, torch.bfloat16]
    if dtype not in dtypes:
        names = ", ".join(map(str, dtypes))
        raise ValueError(f"dtype is {dtype}, expected one of {names} on {device}")
    if hasattr(model, "fast_step") or any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ValueError("the model is prepared already: prepare the original model")
    allowed = {torch.float32, dtype} if device.type == "cuda" else {torch.float32}
    other = next((p.dtype for p in model.parameters() if p.dtype not in allowed), None)
    if other is not None:
        raise ValueError(f"the model has {other} weights, expected float32: load it with dtype=torch.float32")
    if device.type != "cpu":
        return
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this PyTorch has no oneDNN: use the model unprepared")
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("this processor has no instructions for bfloat16: use float32 or int8")
