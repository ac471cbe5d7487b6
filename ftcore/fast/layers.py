"""Training layers that are faster on a CPU: linear layers, T5's norm and self-attention, dropout.

Each replaces a layer of ftcore.models or torch.nn with the same parameters, and computes the same values and
gradients up to rounding; dropout draws other masks. On other devices and dtypes each runs its base class.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ftcore.models.attention import at_least_float32, can_fuse
from ftcore.models.gpt2 import Conv1D
from ftcore.models.t5 import T5Attention, T5LayerNorm

# Linear layers. PyTorch's float32 matrix products on a CPU run in MKL. oneDNN, which PyTorch includes too,
# takes about three quarters of the time for the output and for the input's gradient at training sizes.


class FastLinear(nn.Linear):
    """nn.Linear by oneDNN, on a CPU in float32."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not uses_onednn(inputs, self.weight):
            return super().forward(inputs)
        return _Linear.apply(inputs, self.weight, self.bias)

    @staticmethod
    def product(inputs: Tensor, weight: Tensor) -> Tensor:
        """`F.linear(inputs, weight)`, (..., out), without a gradient: the loss computes its own."""
        return linear(inputs, weight)


class FastConv1D(Conv1D):
    """GPT-2's Conv1D by oneDNN, on a CPU in float32."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not uses_onednn(inputs, self.weight):
            return super().forward(inputs)
        return _Linear.apply(inputs, self.weight.T, self.bias)


def uses_onednn(inputs: Tensor, weight: Tensor) -> bool:
    """Whether to call oneDNN directly: for float32 tensors on a CPU. For bfloat16, PyTorch does so itself."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and inputs.numel() > 0
    )


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` without autograd: inputs (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if not uses_onednn(inputs, weight):
        return F.linear(inputs, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`linear` with autograd."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        rows, grad_rows = inputs.flatten(0, -2), grad.flatten(0, -2)  # (N, in), (N, out)
        grad_inputs = linear(grad, weight.T) if needs_inputs else None
        grad_weight = None
        if needs_weight:  # in the memory layout of the weight, to avoid a copy
            is_transposed = not weight.is_contiguous()
            grad_weight = (rows.T @ grad_rows).T if is_transposed else grad_rows.T @ rows
        return grad_inputs, grad_weight, grad_rows.sum(0) if needs_bias else None


# T5's norm. One autograd function instead of five operations: the backward pass takes a third of the time.


class FastT5LayerNorm(T5LayerNorm):
    """T5's norm on a CPU, as one autograd function."""

    def forward(self, hidden: Tensor) -> Tensor:
        is_half = torch.finfo(hidden.dtype).bits < 32  # the base class rounds half types in its own way
        if hidden.device.type != "cpu" or hidden.dtype != self.weight.dtype or is_half:
            return super().forward(hidden)
        return _RMSNorm.apply(hidden, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """With n = x / rms(x), the output is w n and the gradient of x is (w g - n mean(w g n)) / rms(x)."""

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


# Dropout. PyTorch samples one Bernoulli variable per element, which takes longer than attention's products.
# Here 16 random bits decide for an element, and one 64-bit draw serves four elements.

LEVELS = 2**16  # values of 16 random bits


class FastDropout(nn.Dropout):
    """Dropout on a CPU, where 16 random bits decide for an element."""

    def forward(self, states: Tensor) -> Tensor:
        """The states, of any shape, with some of them 0."""
        if not self.training or self.p == 0 or states.device.type != "cpu":
            return super().forward(states)
        return apply_dropout(states, *dropout_mask(states, self.p))


def dropout_mask(states: Tensor, p: float) -> tuple[Tensor, float]:
    """Returns (mask, scale): bool of the shape of `states`, True with probability 1 - p, and 1 / (1 - p).

    p > 0 is rounded to a multiple of 1 / LEVELS, in both.
    """
    dropped = max(1, round(p * LEVELS))  # levels
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # (N / 4,)
    level = draws.view(torch.int16)[: states.numel()].view(states.shape)  # from -LEVELS / 2
    scale = LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0
    return level > dropped - LEVELS // 2 - 1, scale


def apply_dropout(states: Tensor, mask: Tensor, scale: float) -> Tensor:
    """states * mask * scale, of one shape, in one kernel; the same function is its own gradient."""
    return torch.ops.aten.native_dropout_backward(states, mask, scale)


# T5's self-attention. PyTorch's fused attention has no gradient for a bias, and T5 learns one. Its fallback
# passes several times over the scores of the whole batch, (B, H, T, S), which no cache holds. Here one row of
# the batch is computed at a time, so that its scores stay in the cache between two products.


class FastT5Attention(T5Attention):
    """T5's attention with a learned bias on a CPU, with its own gradient."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        is_learned = bias is not None and bias.requires_grad
        if not is_learned or query.device.type != "cpu" or not can_fuse(self.softmax, self.dropout):
            return super().attend(query, key, value, bias)
        p = self.dropout.p if self.training else 0.0
        with torch.autocast("cpu", enabled=False):  # it would compute the scores in half precision
            return _Attention.apply(query, key, value, bias, p)


class _Attention(torch.autograd.Function):
    """softmax(query @ key transposed + bias) @ value, one row of the batch at a time.

    Scores and softmax are at least float32. The attention weights saved for the backward pass, and all
    products there, have the dtype of `value`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (B, H, T, K)
        key: Tensor,  # (B, H, S, K)
        value: Tensor,  # (B, H, S, K)
        bias: Tensor,  # (1 or B, H, T, S)
        p: float,  # dropout
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output = value.new_empty(*query.shape[:3], value.shape[-1])  # (B, H, T, K)
        weights, masks = [], []  # one (H, T, S) per row
        for row, row_bias in enumerate(bias.expand(len(query), -1, -1, -1)):
            row_query, row_key = at_least_float32(query[row]), at_least_float32(key[row])
            scores = torch.baddbmm(at_least_float32(row_bias), row_query, row_key.transpose(1, 2))
            weights.append(scores.softmax(-1).to(value.dtype))
            dropped = weights[row]
            if p:
                mask, ctx.scale = dropout_mask(dropped, p)
                dropped = apply_dropout(dropped, mask, ctx.scale)
                masks.append(mask)
            torch.bmm(dropped, value[row], out=output[row])
        ctx.save_for_backward(query, key, value, *weights, *masks)
        ctx.bias_shape, ctx.bias_dtype = bias.shape, bias.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        weights, masks = saved[: len(query)], saved[len(query) :]
        grad = grad.contiguous()
        grad_query, grad_key, grad_value = map(torch.empty_like, (query, key, value))
        grad_bias = torch.empty(len(query), *ctx.bias_shape[1:], dtype=ctx.bias_dtype)  # (B, H, T, S)
        for row in range(len(query)):
            dropped = weights[row]
            grad_weights = grad[row] @ value[row].transpose(1, 2)  # (H, T, S)
            if masks:
                dropped = apply_dropout(dropped, masks[row], ctx.scale)
                grad_weights = apply_dropout(grad_weights, masks[row], ctx.scale)
            torch.bmm(dropped.transpose(1, 2), grad[row], out=grad_value[row])
            grad_scores = torch._softmax_backward_data(grad_weights, weights[row], -1, weights[row].dtype)
            torch.bmm(grad_scores, key[row], out=grad_query[row])
            torch.bmm(grad_scores.transpose(1, 2), query[row], out=grad_key[row])
            grad_bias[row] = grad_scores
        return grad_query, grad_key, grad_value, grad_bias.sum_to_size(ctx.bias_shape), None
