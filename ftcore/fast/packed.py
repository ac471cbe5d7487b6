"""Linear layers for inference on a CPU, with weights packed once in float32, bfloat16 or int8.

A decoding step multiplies a few rows with every matrix of the model, so memory bandwidth limits it. Two
things help: a packed layout that the kernel reads sequentially, and fewer bytes per weight. Inputs and
outputs are float32 in all dtypes, so norms, attention and the residual stream lose no precision.

These layers cannot be trained or saved; the model they were made from can.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN chooses the packed layout by the expected number of rows. The one for 64 is the best or nearly so
# from a few texts to many beams.
PACKED_FOR_ROWS = 64
# From this many rows on, as for a prompt, int8 weights are widened and multiplied as bfloat16.
MANY_ROWS = 32
# Up to this many rows the compiler's matrix products are faster than oneDNN's.
FEW_ROWS = 4


class PackedLinear(nn.Module):
    """Base class: keeps dtype and shape of the original weight, and refuses to be saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = torch.empty(weight.shape, dtype=torch.float32, device="meta")  # (out, in), no values
        self.bias = None if bias is None else bias.detach()

    def _save_to_state_dict(self, *_: Any) -> None:
        raise ValueError("a model prepared for decoding cannot be saved: save the original model")


class OneDnnLinear(PackedLinear):
    """Floating-point weights, kept plain and, from the first call that needs it, packed by oneDNN."""

    dtype: torch.dtype
    plain: Tensor  # (out, in)

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.register_buffer("plain", weight.detach().to(self.dtype).contiguous())
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        self.packed: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out), rounded to the packed type and back."""
        rounded = inputs.to(self.dtype)
        if torch.compiler.is_compiling() and len(inputs) <= FEW_ROWS:
            return F.linear(rounded, self.plain, self.bias).float()
        if len(inputs) > 1:
            return product(rounded, self.pack(), self.bias).float()
        if inputs.shape[-2] > 1:  # a single prompt gains nothing from the packed layout
            return product(rounded, self.plain, self.bias).float()
        return self.multiply_vector(rounded).float()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # oneDNN's layout can be neither copied nor pickled

    def pack(self) -> Tensor:
        """The weight, (out, in), in oneDNN's layout; packed when first asked for."""
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.plain, PACKED_FOR_ROWS)
        return self.packed

    def multiply_vector(self, rounded: Tensor) -> Tensor:
        """(1, T, in) -> (1, T, out), of a single row."""
        return product(rounded, self.pack(), self.bias)


class Float32Linear(OneDnnLinear):
    """A packed matrix in float32."""

    dtype = torch.float32

    def multiply_vector(self, rounded: Tensor) -> Tensor:
        # Faster with the roles exchanged: the weight as the input rows, the vector as the matrix.
        outputs = product(self.plain, rounded.flatten()[None])[:, 0]  # (out,)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*rounded.shape[:-1], -1)


class BFloat16Linear(OneDnnLinear):
    """Rounds its inputs and outputs to bfloat16 too."""

    dtype = torch.bfloat16


class Int8Linear(PackedLinear):
    """Weight-only int8 quantization: integers from -127 to 127, one scale per output.

    Inputs are rounded to bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.out_features, in_features = weight.shape
        # The kernel reads blocks of 16 inputs and several outputs, beyond the end of other sizes: pad them.
        out_padding, self.in_padding = -self.out_features % 16, -in_features % 16
        # The scale may be rounded down to bfloat16, so the largest weights are clamped.
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()  # (out,)
        quantized = (weight / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.scale = F.pad(scale, (0, out_padding))
        self.quantized = F.pad(quantized, (0, self.in_padding, 0, out_padding)).contiguous()  # (out, in)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = inputs.flatten(0, -2).bfloat16()  # (R, in)
        if self.in_padding:
            rows = F.pad(rows, (0, self.in_padding))
        if len(rows) < MANY_ROWS:
            outputs = torch._weight_int8pack_mm(rows, self.quantized, self.scale)
        else:
            outputs = F.linear(rows, self.quantized.bfloat16()) * self.scale
        outputs = outputs[:, : self.out_features].float()
        if self.bias is not None:
            outputs += self.bias
        return outputs.unflatten(0, inputs.shape[:-1])


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs (..., in) @ weight (out, in) transposed + bias, by oneDNN; the weight plain or packed."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class MeanCenteredHead(nn.Module):
    """A language-modelling head whose mean row is kept in float32; only the differences from it are packed.

    GPT-2's logits are all near -100, where bfloat16's spacing is 0.5. The mean row contributes most of that.
    """

    def __init__(self, weight: Tensor, layer_type: type[PackedLinear]):
        super().__init__()
        self.mean = weight.mean(0)  # (in,)
        self.differences = layer_type(weight - self.mean, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.differences(inputs).add_((inputs @ self.mean)[..., None])


class FusedQKVSlice(nn.Module):
    """One of three layers that read the same inputs: the first call computes all outputs by one product.

    Args:
        fused: the three weights, of equal shapes, concatenated along the outputs.
        index: 0, 1 or 2, in the order of the calls; the last one drops the outputs.
        latest: a shared list of one item, (inputs, outputs) or None, replaced whole for thread safety.
    """

    def __init__(self, fused: PackedLinear, index: int, latest: list[Any]):
        super().__init__()
        self.fused, self.index, self.latest = fused, index, latest

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), this slice of the product; the first slice computes all three."""
        latest = self.latest[0]
        if latest is None or latest[0] is not inputs:
            latest = (inputs, self.fused(inputs).chunk(3, dim=-1))
        self.latest[0] = None if self.index == 2 else latest
        return latest[1][self.index]
