"""A model made ready for many calls of `generate` on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

from ftcore.decoding.packed import BFloat16Linear, Centred, Float32Linear, FrozenLinear, Int8Linear, shares
from ftcore.models import Model
from ftcore.models.compiler import require_compiler
from ftcore.models.gpt2 import Conv1D
from ftcore.models.lora import merge_lora
from ftcore.models.t5 import T5LayerSelfAttention

LAYERS = {torch.float32: Float32Linear, torch.bfloat16: BFloat16Linear, torch.int8: Int8Linear}


@torch.no_grad()
def prepare_for_decoding(model: Model, dtype: torch.dtype = torch.float32, *, compile: bool = False) -> Model:
    """A copy of the model for `generate`, whose matrices are laid out for speed.

    It is the same page of code with other linear layers, so it does whatever the model does, but it cannot be
    trained or saved. The model itself stays as it is. Both share the memory of what is not laid out anew, so
    after further training prepare it again; LoRA's changes are merged into the copy.

    Args:
        model: GPT-2 or T5 in float32, on the CPU.
        dtype: what the matrices are kept in. float32 gives the model's own answers. bfloat16 halves and int8
            (a scale for each output) quarters what memory has to hand over for each token; what that costs in
            quality stands in docs/generation.md. All else stays float32.
        compile: make a step a program in C++. Writing it takes about half a minute, when it is first needed:
            once for each number of rows up to four, and once for all above.

    Raises:
        ValueError: another dtype, a model that is not on the CPU, not in float32 or prepared already, or a
            PyTorch or a processor without these kernels; with `compile`, no C++ compiler.
    """
    require_possible(model, dtype)
    if compile:
        require_compiler(torch.device("cpu"), "compile=True")
    layer_of = LAYERS[dtype]
    prepared: Any = merge_lora(model).eval().requires_grad_(False)
    for part in prepared.modules():
        if isinstance(part, T5LayerSelfAttention):
            attention: Any = part.SelfAttention
            together = torch.cat([matrix(layer) for layer in (attention.k, attention.v, attention.q)])
            attention.k, attention.v, attention.q = shares(layer_of(together, None), 3)
    for name, part in list(prepared.named_modules()):
        if name == "lm_head" and dtype != torch.float32:
            prepared.set_submodule(name, Centred(matrix(part), layer_of))
        elif isinstance(part, nn.Linear | Conv1D):
            prepared.set_submodule(name, layer_of(matrix(part), part.bias))
        elif isinstance(part, nn.Dropout):  # idle, but asked in every step
            prepared.set_submodule(name, nn.Identity())
    if compile:
        from ftcore.decoding.compiled import CompiledStep  # PyTorch's compiler takes seconds to import

        prepared.compiled_step = CompiledStep()
    return prepared.eval()


def matrix(layer: nn.Linear | Conv1D) -> Tensor:
    """(out, in), however the layer stores it."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def require_possible(model: Model, dtype: torch.dtype) -> None:
    """Raises ValueError where `prepare_for_decoding` cannot work."""
    if dtype not in LAYERS:
        names = ", ".join(str(known) for known in LAYERS)
        raise ValueError(f"dtype is {dtype}, expected one of {names}")
    if any(isinstance(module, FrozenLinear) for module in model.modules()):
        raise ValueError("the model is prepared already: prepare the one that it was made from")
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        raise ValueError(
            f"the model is on {parameter.device}, but weights are packed for CPUs: generate with it as it is"
        )
    other = next((p.dtype for p in model.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise ValueError(f"the model has {other} weights, expected float32: load it with dtype=torch.float32")
    if dtype != torch.int8 and not torch.backends.mkldnn.is_available():
        raise ValueError(
            "this PyTorch has no oneDNN, which packs the weights: generate with the model as it is"
        )
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("this processor has no instructions for bfloat16: take float32 or int8")
