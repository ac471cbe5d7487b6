"""T5's self-attention, trained faster on a CPU.

PyTorch's fused attention has no gradient for a bias, and T5 learns one. What PyTorch does in its place walks
again and again over the scores of the whole batch, (B, H, T, S) numbers that no cache holds. Here the rows of
a batch pass one after another, and the scores of a row stay in the cache from one product to the next.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftcore.fast.dropout import draw, drop
from ftcore.models.attention import at_least_float32, can_fuse
from ftcore.models.t5 import T5Attention


class FastT5Attention(T5Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        is_learned = bias is not None and bias.requires_grad
        if not is_learned or query.device.type != "cpu" or not can_fuse(self.softmax, self.dropout):
            return super().attend(query, key, value, bias)
        dropout_p = self.dropout.p if self.training else 0.0
        with torch.autocast("cpu", enabled=False):  # it would round the scores to half precision
            return _Attention.apply(query, key, value, bias, dropout_p)


class _Attention(torch.autograd.Function):
    """softmax(query @ key transposed + bias) @ value, a row of the batch at a time.

    Scores and softmax are at least float32. The weights, which are kept for the backward pass, and all that
    is multiplied there have the type of the values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (B, H, T, K)
        key: Tensor,  # (B, H, S, K)
        value: Tensor,  # (B, H, S, K)
        bias: Tensor,  # (1 or B, H, T, S)
        dropout_p: float,
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        mixed = value.new_empty(*query.shape[:3], value.shape[-1])  # (B, H, T, K)
        weights, kept = [], []  # of each row, (H, T, S) as its scores
        for row, row_bias in enumerate(bias.expand(len(query), -1, -1, -1)):
            row_query, row_key = at_least_float32(query[row]), at_least_float32(key[row])
            scores = torch.baddbmm(at_least_float32(row_bias), row_query, row_key.transpose(1, 2))
            weights.append(scores.softmax(-1).to(value.dtype))
            used = weights[row]
            if dropout_p:
                row_kept, ctx.factor = draw(used, dropout_p)
                used = drop(used, row_kept, ctx.factor)
                kept.append(row_kept)
            torch.bmm(used, value[row], out=mixed[row])
        ctx.save_for_backward(query, key, value, *weights, *kept)
        ctx.bias_shape, ctx.bias_dtype = bias.shape, bias.dtype
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        weights, kept = saved[: len(query)], saved[len(query) :]
        grad = grad.contiguous()
        grad_query, grad_key, grad_value = map(torch.empty_like, (query, key, value))
        grad_bias = torch.empty(len(query), *ctx.bias_shape[1:], dtype=ctx.bias_dtype)  # (B, H, T, S)
        for row in range(len(query)):
            used = weights[row]
            grad_weights = grad[row] @ value[row].transpose(1, 2)  # (H, T, S)
            if kept:
                used = drop(used, kept[row], ctx.factor)
                grad_weights = drop(grad_weights, kept[row], ctx.factor)
            torch.bmm(used.transpose(1, 2), grad[row], out=grad_value[row])
            grad_scores = torch._softmax_backward_data(grad_weights, weights[row], -1, weights[row].dtype)
            torch.bmm(grad_scores, key[row], out=grad_query[row])
            torch.bmm(grad_scores.transpose(1, 2), query[row], out=grad_key[row])
            grad_bias[row] = grad_scores
        return grad_query, grad_key, grad_value, grad_bias.sum_to_size(ctx.bias_shape), None
