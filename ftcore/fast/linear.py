"""Linear layers that train faster on a CPU: the same products by oneDNN.

For float32, PyTorch hands matrix products on a CPU to MKL. oneDNN, which comes with PyTorch too, takes about
three quarters of the time for a layer's output and for the gradient of its input, at the sizes of training.
For the gradient of the weight both take the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ftcore.models.gpt2 import Conv1D


class FastLinear(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        if not is_faster(inputs, self.weight):
            return super().forward(inputs)
        return _Linear.apply(inputs, self.weight, self.bias)


class FastConv1D(Conv1D):
    def forward(self, inputs: Tensor) -> Tensor:
        if not is_faster(inputs, self.weight):
            return super().forward(inputs)
        return _Linear.apply(inputs, self.weight.T, self.bias)


def is_faster(inputs: Tensor, weight: Tensor) -> bool:
    """Float32 on a CPU. For bfloat16 PyTorch takes oneDNN by itself."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and inputs.numel() > 0
    )


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` without a gradient: inputs (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if not is_faster(inputs, weight):
        return F.linear(inputs, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`linear` with its gradients."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
        rows, grad_rows = inputs.flatten(0, -2), grad.flatten(0, -2)  # (N, in), (N, out)
        grad_inputs = linear(grad, weight.T) if wants_inputs else None
        grad_weight = None
        if wants_weight:  # laid out as the weight is, or it would be copied
            is_transposed = not weight.is_contiguous()
            grad_weight = (rows.T @ grad_rows).T if is_transposed else grad_rows.T @ rows
        return grad_inputs, grad_weight, grad_rows.sum(0) if wants_bias else None
