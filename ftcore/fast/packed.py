"""Linear layers for inference on a CPU, in float32, bfloat16 or int8, by oneDNN, PyTorch's CPU library.

A decoding step multiplies a few rows with every matrix of the model, so memory bandwidth limits it. Two
things help: a layout that the kernel reads sequentially, and fewer bytes per weight. Inputs and outputs are
float32 in all dtypes, so norms, attention and the residual stream lose no precision.

These layers cannot be trained or saved; the model they were made from can.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ftcore.decoding.state import next_logits

# oneDNN chooses the packed layout by the expected number of rows. The one for 64 is the best or nearly so
# from two texts to many beams.
PACKED_FOR_ROWS = 64
# Largest input of an int8 product. Processors without VNNI add two products in 16 bits: 2 * 127 * 127 fits.
LEVELS = 255 if torch.cpu._is_vnni_supported() else 127
FLOAT32_OUTPUTS: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")  # of an int8 product


class PackedLinear(nn.Module):
    """Base class: one layout of the matrix at a time, plain for one row and packed for several.

    Keeps dtype and shape of the original weight, and refuses to be saved.
    """

    matrix: Tensor  # plain, (out, in), or packed by oneDNN
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = torch.empty(weight.shape, dtype=torch.float32, device="meta")  # (out, in), no values
        self.register_buffer("bias", None if bias is None else bias.detach())

    def packed(self, matrix: Tensor) -> Tensor:
        """A plain matrix, (out, in), in oneDNN's layout."""
        raise NotImplementedError

    def plain(self, matrix: Tensor) -> Tensor:
        """A packed matrix as (out, in)."""
        raise NotImplementedError

    def product(self, inputs: Tensor, matrix: Tensor, *, packed: bool) -> Tensor:
        """(B, T, in) -> (B, T, out), by a matrix that is packed or plain, without the bias."""
        raise NotImplementedError

    def vector_product(self, inputs: Tensor) -> Tensor:
        """(1, 1, in) -> (1, 1, out), without the bias: compiled, a loop that reads the plain matrix once."""
        raise NotImplementedError

    def pack(self) -> Tensor:
        """Change to oneDNN's layout; returns the matrix, (out, in)."""
        matrix = self.matrix  # read once: other threads may change it
        if not matrix.is_mkldnn:
            self.matrix = matrix = self.packed(matrix)
        return matrix

    def unpack(self) -> Tensor:
        """Change to the plain layout; returns the matrix, (out, in)."""
        matrix = self.matrix
        if matrix.is_mkldnn:
            self.matrix = matrix = self.plain(matrix)
        return matrix

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        several = inputs.shape[0] > 1
        if not torch.compiler.is_compiling():
            matrix = self.pack() if several else self.matrix
            outputs = self.product(inputs, matrix, packed=matrix.is_mkldnn)
        elif several:
            outputs = self.product(inputs, self.matrix, packed=True)
        else:
            outputs = self.vector_product(inputs)
        return outputs if self.bias is None else outputs.add_(self.bias)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise ValueError("a model prepared for decoding cannot be saved: save the original model")

    def __getstate__(self) -> dict[str, Any]:
        """With a plain matrix: oneDNN's layout can be neither copied nor pickled."""
        matrix = self.plain(self.matrix) if self.matrix.is_mkldnn else self.matrix
        return self.__dict__ | {"_buffers": self._buffers | {"matrix": matrix}}


class FloatLinear(PackedLinear):
    """A matrix in float32 or bfloat16; in bfloat16, inputs and products are rounded too."""

    dtype: torch.dtype

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.register_buffer("matrix", weight.detach().to(self.dtype).contiguous())

    def packed(self, matrix: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(matrix, PACKED_FOR_ROWS)

    def plain(self, matrix: Tensor) -> Tensor:
        return matrix.to_dense()

    def product(self, inputs: Tensor, matrix: Tensor, *, packed: bool) -> Tensor:
        rounded = inputs.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(rounded, matrix, None, "none", [], "").float()

    def vector_product(self, inputs: Tensor) -> Tensor:
        return sums(inputs.to(self.dtype), self.matrix)


def sums(inputs: Tensor, matrix: Tensor) -> Tensor:
    """A product in float32 as compilers read it best: (1, 1, in) and (out, in) -> (1, 1, out)."""
    return (inputs.float()[..., None, :] * matrix.float()).sum(-1)


class Float32Linear(FloatLinear):
    """A matrix in float32."""

    dtype = torch.float32


class BFloat16Linear(FloatLinear):
    """A matrix in bfloat16."""

    dtype = torch.bfloat16


class Int8Linear(PackedLinear):
    """Weights as integers from -127 to 127 with one scale per output; inputs as integers too, row by row.

    A row of inputs is low + step * q, with q from 0 to LEVELS. Its product with a row of weights, scale * w,
    is scale * (step * sum(q w) + low * sum(w)), where only sum(q w) takes time. A compiled step of one row
    waits for memory alone: it multiplies the inputs as they are.
    """

    scale: Tensor  # (out,)
    weight_sum: Tensor  # (out,), scale * sum(w)

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        scale = (weight.detach().abs().amax(1) / 127).clamp(min=1e-30)
        integers = (weight.detach() / scale[:, None]).round_()  # (out, in)
        self.register_buffer("matrix", integers.to(torch.int8).contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("weight_sum", scale * integers.sum(1))

    def packed(self, matrix: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(matrix, None)

    def plain(self, matrix: Tensor) -> Tensor:
        return matrix.to_dense().T.contiguous()

    def product(self, inputs: Tensor, matrix: Tensor, *, packed: bool) -> Tensor:
        low, high = inputs.amin(-1, keepdim=True), inputs.amax(-1, keepdim=True)  # (B, T, 1)
        step = ((high - low) / LEVELS).clamp(min=1e-30)
        integers = (inputs - low).div_(step).round_()
        if packed:
            products = torch.ops.onednn.qlinear_pointwise(
                integers.to(torch.uint8), 1.0, 0, matrix, self.scale, None, None, *FLOAT32_OUTPUTS
            )
        else:  # for signed integers
            signed, low = (integers - 128).to(torch.int8).flatten(0, -2), low + 128 * step
            products = torch._int_mm(signed, matrix.T).unflatten(0, inputs.shape[:-1]) * self.scale
        return products.mul_(step).addcmul_(low, self.weight_sum)

    def vector_product(self, inputs: Tensor) -> Tensor:
        return sums(inputs, self.matrix) * self.scale


class MeanCenteredHead(nn.Module):
    """A language-modelling head whose mean row is kept in float32; only the differences from it are packed.

    GPT-2's logits are all near -100, where bfloat16's spacing is 0.5. The mean row contributes most of that.
    """

    mean: Tensor  # (in,)

    def __init__(self, weight: Tensor, layer_type: type[PackedLinear]):
        super().__init__()
        self.register_buffer("mean", weight.mean(0))
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


class PreparedStep:
    """The `fast_step` of a model on a CPU: `next_logits` with matrices laid out for the number of rows."""

    def __init__(self, model: nn.Module) -> None:
        named = model.named_modules()
        layers = (part for name, part in named if not name.startswith("encoder."))
        self.layers = [part for part in layers if isinstance(part, PackedLinear)]

    def __call__(self, model: Any, new_ids: Tensor, *arguments: Any) -> Tensor:
        """See `next_logits`."""
        self.arrange(len(new_ids))
        return next_logits(model, new_ids, *arguments)

    def arrange(self, rows: int) -> list[Tensor]:
        """Pack the layers' matrices for several rows, unpack them for one; returns them."""
        return [layer.pack() if rows > 1 else layer.unpack() for layer in self.layers]

    def supports(self, sources: int, rows: int) -> bool:
        """False where the matrices would be unpacked in the middle of a search."""
        return rows > 1
