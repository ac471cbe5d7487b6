"""Linear layers for reading: a matrix laid out once for the CPU's kernels, in float32, bfloat16 or int8.

A step of decoding multiplies a few rows with every matrix of the model, so it takes as long as memory needs
to hand them over. Two things help: an order in which the kernel reads straight ahead, and fewer bytes a
number. Whatever the matrix is kept in, such a layer takes and gives float32: norms, attention and the
residual stream between the matrices lose nothing.

None of these layers can be trained or saved; the model they were made from can.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The kernels choose the order by the number of rows they are told to expect. That for 64 is the best or next
# to it for all from the rows of a few texts to the beams of many.
ROWS = 64
# From so many rows on, as when a prompt is read, int8 is widened once and multiplied as bfloat16.
MANY_ROWS = 32
# Up to so many rows the compiler's own products are faster than oneDNN's.
FEW_ROWS = 4


class FrozenLinear(nn.Module):
    """What all of these layers have in common: they say what they are, and refuse to be saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        # Type and shape for those who ask for them, without numbers.
        self.weight = torch.empty(weight.shape, dtype=torch.float32, device="meta")  # (out, in)
        self.bias = None if bias is None else bias.detach()

    def _save_to_state_dict(self, *_: Any) -> None:
        raise ValueError("a model prepared for decoding cannot be saved: save the one that it was made from")


class OneDnnLinear(FrozenLinear):
    """A matrix in one floating-point type, as it is and, from the first call that gains by it, packed."""

    dtype: torch.dtype
    plain: Tensor  # (out, in)

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.register_buffer("plain", weight.detach().to(self.dtype).contiguous())
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        self.packed: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        rounded = inputs.to(self.dtype)  # (B, T, in)
        if torch.compiler.is_compiling() and len(inputs) <= FEW_ROWS:  # a program has products of its own
            return F.linear(rounded, self.plain, self.bias).float()
        if len(inputs) > 1:
            return self.multiply_packed(rounded).float()
        if inputs.shape[-2] > 1:  # one text's many tokens gain nothing by another order
            return product(rounded, self.plain, self.bias).float()
        return self.multiply_vector(rounded).float()

    def multiply_packed(self, rounded: Tensor) -> Tensor:
        return product(rounded, self.pack(), self.bias)

    def pack(self) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.plain, ROWS)
        return self.packed

    def multiply_vector(self, rounded: Tensor) -> Tensor:
        return self.multiply_packed(rounded)


class Float32Linear(OneDnnLinear):
    dtype = torch.float32

    def multiply_vector(self, rounded: Tensor) -> Tensor:
        # The kernel is faster where the matrix is given as the rows, and the vector as the matrix.
        outputs = product(self.plain, rounded.flatten()[None])[:, 0]  # (out,)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*rounded.shape[:-1], -1)


class BFloat16Linear(OneDnnLinear):
    """What it reads and gives is rounded to bfloat16 too."""

    dtype = torch.bfloat16


class Int8Linear(FrozenLinear):
    """The matrix as whole numbers from -127 to 127, and a scale for each output.

    Only the matrix is quantised: inputs are rounded to bfloat16 and no further.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.out_features, in_features = weight.shape
        # The kernel takes 16 inputs at a time and several outputs, and reads past the end of what is no
        # multiple of that.
        more_outputs, self.more_inputs = -self.out_features % 16, -in_features % 16
        # In bfloat16 the scale may fall below the largest weight's due: hence the clamp.
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()  # (out,)
        quantised = (weight / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.scale = F.pad(scale, (0, more_outputs))
        self.quantised = F.pad(quantised, (0, self.more_inputs, 0, more_outputs)).contiguous()  # (out, in)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.flatten(0, -2).bfloat16()  # (R, in)
        if self.more_inputs:
            rows = F.pad(rows, (0, self.more_inputs))
        if len(rows) < MANY_ROWS:
            outputs = torch._weight_int8pack_mm(rows, self.quantised, self.scale)
        else:
            outputs = F.linear(rows, self.quantised.bfloat16()) * self.scale
        outputs = outputs[:, : self.out_features].float()
        if self.bias is not None:
            outputs += self.bias
        return outputs.unflatten(0, inputs.shape[:-1])


def product(inputs: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs (..., in) @ matrix.T + bias by oneDNN; the matrix (out, in) packed or plain."""
    return torch.ops.mkldnn._linear_pointwise(inputs, matrix, bias, "none", [], "")


class Centred(nn.Module):
    """A head whose outputs have much in common, which a coarse number type is spared.

    GPT-2's logits all lie around -100, where bfloat16 knows steps of a half. The mean of the matrix's rows
    makes most of that. It is multiplied apart, in float32, and only what distinguishes the rows is packed.
    """

    def __init__(self, weight: Tensor, layer_of: type[FrozenLinear]):
        super().__init__()
        self.mean = weight.mean(0)  # (in,)
        self.differences = layer_of(weight - self.mean, None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.differences(inputs).add_((inputs @ self.mean)[..., None])


def shares(together: FrozenLinear, count: int) -> list["Share"]:
    """Layers for matrices of one size that read the same vectors, asked in this order.

    `together` is all of them, one below the other: a single multiplication costs less than several.
    """
    latest: list[tuple[Tensor, tuple[Tensor, ...]] | None] = [None]
    return [Share(together, count, index, latest) for index in range(count)]


class Share(nn.Module):
    """One of several matrices. The first that is asked multiplies for all, the last keeps nothing."""

    def __init__(
        self,
        together: FrozenLinear,
        count: int,
        index: int,
        latest: list[tuple[Tensor, tuple[Tensor, ...]] | None],
    ):
        super().__init__()
        self.together = together
        self.count = count
        self.index = index
        self.latest = latest  # what was read, and what came of it: one object, should threads share a model

    def forward(self, inputs: Tensor) -> Tensor:
        latest = self.latest[0]
        if latest is None or latest[0] is not inputs:
            latest = (inputs, self.together(inputs).chunk(self.count, dim=-1))
        self.latest[0] = None if self.index + 1 == self.count else latest
        return latest[1][self.index]
