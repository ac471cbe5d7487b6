"""T5's norm, trained faster on a CPU: written out, its gradient takes a third of the time."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftcore.models.t5 import T5LayerNorm


class FastT5LayerNorm(T5LayerNorm):
    def forward(self, hidden: Tensor) -> Tensor:
        is_half = torch.finfo(hidden.dtype).bits < 32  # which has its own rules of rounding
        if hidden.device.type != "cpu" or hidden.dtype != self.weight.dtype or is_half:
            return super().forward(hidden)
        return _RMSNorm.apply(hidden, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """With n = x / rms(x), the output is w n; the gradient of x is (w g - n mean(w g n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse_rms = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)  # (..., 1)
        normed = hidden * inverse_rms  # (..., D)
        ctx.save_for_backward(normed, inverse_rms, weight)
        return weight * normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse_rms, weight = ctx.saved_tensors
        product = grad * normed  # (..., D)
        grad_weight = product.flatten(0, -2).sum(0)  # (D,)
        mean = (product @ weight).unsqueeze(-1) / len(weight)  # (..., 1)
        grad_hidden = (grad * weight).addcmul_(normed, mean, value=-1).mul_(inverse_rms)
        return grad_hidden, grad_weight, None
