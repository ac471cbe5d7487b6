"""A model made ready for many calls of `generate`: matrices in order on a CPU, steps as graphs on a GPU."""

from typing import Any

import torch
from torch import Tensor, nn

from ftcore.fast.compiler import require_compiler
from ftcore.fast.cuda_graph import GraphStep
from ftcore.fast.packed import BFloat16Linear, Centred, Float32Linear, FrozenLinear, Int8Linear, shares
from ftcore.lora.lora import merge_lora
from ftcore.models import Model
from ftcore.models.attention import AttentionDropout
from ftcore.models.gpt2 import Conv1D
from ftcore.models.t5 import T5LayerSelfAttention

LAYERS = {torch.float32: Float32Linear, torch.bfloat16: BFloat16Linear, torch.int8: Int8Linear}


@torch.no_grad()
def prepare_for_decoding(model: Model, dtype: torch.dtype = torch.float32, *, compile: bool = False) -> Model:
    """A copy of the model for `generate`, made ready for its device.

    On a CPU it is the same page of code with other linear layers, whose matrices are laid out for speed. It
    does whatever the model does, but it cannot be trained or saved. On a GPU it is the model in `dtype`, and
    a step of `generate` is a CUDA graph, recorded when it is first needed.

    The model itself stays as it is. Both share the memory of what need not be converted, so after further
    training prepare it again; LoRA's changes are merged into the copy.

    Args:
        model: GPT-2 or T5 in float32, on the CPU or a GPU.
        dtype: on a CPU, what the matrices are kept in. float32 gives the model's own answers. bfloat16 halves
            and int8 (a scale for each output) quarters what memory has to hand over for each token; what that
            costs in quality stands in docs/generation.md. All else stays float32. On a GPU, float32 or
            bfloat16, for all that the model computes; one that is bfloat16 already may be given too.
        compile: on a CPU, make a step a program in C++. Writing it takes about half a minute, when it is
            first needed: once for each number of rows up to four, and once for all above.

    Raises:
        ValueError: another dtype or device, a model that is not in float32 or prepared already, or a PyTorch
            or a processor without these kernels; with `compile`, no C++ compiler, or no CPU.
    """
    require_possible(model, dtype)
    device = next(model.parameters()).device
    if compile:
        require_compilable(device)
    prepared: Any = merge_lora(model).eval().requires_grad_(False)
    if device.type == "cuda":
        return with_graphs(prepared, dtype)
    lay_out(prepared, LAYERS[dtype])
    if compile:
        from ftcore.fast.compiled_step import CompiledStep  # PyTorch's compiler takes seconds to import

        prepared.fast_step = CompiledStep()
    return prepared.eval()


def with_graphs(model: Any, dtype: torch.dtype) -> Any:
    """The model itself in `dtype`, whose steps `generate` records and repeats."""
    model.to(dtype).fast_step = GraphStep()
    return model


def lay_out(model: Any, layer_of: type[FrozenLinear]) -> None:
    """Put other layers in the place of the model's linear ones, and nothing in the place of dropout."""
    for part in model.modules():
        if isinstance(part, T5LayerSelfAttention):
            attention: Any = part.SelfAttention
            together = torch.cat([matrix(layer) for layer in (attention.k, attention.v, attention.q)])
            attention.k, attention.v, attention.q = shares(layer_of(together, None), 3)
    for name, part in list(model.named_modules()):
        if name == "lm_head" and layer_of is not Float32Linear:
            model.set_submodule(name, Centred(matrix(part), layer_of))
        elif isinstance(part, nn.Linear | Conv1D):
            model.set_submodule(name, layer_of(matrix(part), part.bias))
        elif isinstance(part, nn.Dropout) and not isinstance(part, AttentionDropout):
            # Idle, but called in every step; attention calls its own only where hooks want it.
            model.set_submodule(name, nn.Identity())


def matrix(layer: nn.Linear | Conv1D) -> Tensor:
    """(out, in), however the layer stores it."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def require_possible(model: Model, dtype: torch.dtype) -> None:
    """Raises ValueError where `prepare_for_decoding` cannot work."""
    device = next(model.parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the model is on {device}, expected a CPU or CUDA: generate with it as it is")
    dtypes = list(LAYERS) if device.type == "cpu" else [torch.float32, torch.bfloat16]
    if dtype not in dtypes:
        names = ", ".join(str(known) for known in dtypes)
        raise ValueError(f"dtype is {dtype}, expected one of {names} on {device}")
    if hasattr(model, "fast_step") or any(isinstance(module, FrozenLinear) for module in model.modules()):
        raise ValueError("the model is prepared already: prepare the one that it was made from")
    known = {torch.float32, dtype} if device.type == "cuda" else {torch.float32}
    other = next((p.dtype for p in model.parameters() if p.dtype not in known), None)
    if other is not None:
        raise ValueError(f"the model has {other} weights, expected float32: load it with dtype=torch.float32")
    if device.type == "cpu":
        require_kernels(dtype)


def require_kernels(dtype: torch.dtype) -> None:
    """Raises ValueError where this PyTorch or processor cannot multiply in such a layout."""
    if dtype != torch.int8 and not torch.backends.mkldnn.is_available():
        raise ValueError(
            "this PyTorch has no oneDNN, which packs the weights: generate with the model as it is"
        )
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("this processor has no instructions for bfloat16: take float32 or int8")


def require_compilable(device: torch.device) -> None:
    """Raises ValueError where no program can be made of a step."""
    if device.type != "cpu":
        raise ValueError(f"compile=True is for a CPU: on {device} a step is a CUDA graph without it")
    require_compiler(device, "compile=True")
