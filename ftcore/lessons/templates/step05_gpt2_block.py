"""Step 5: GPT-2's block.

GPT-2 is a stack of equal blocks. A block has two parts: attention, which moves information between
positions, and a feed-forward layer, the MLP, which works on each position alone. Both only add to
the vectors that run through the model, the residual stream:

    hidden ----+------------------------(+)----+-----------------(+)---->
               |                         |     |                  |
               +--> ln_1 --> attn -------+     +--> ln_2 --> mlp -+

LayerNorm: subtract the mean of a vector's D numbers and divide by their standard deviation, then
scale and shift by learned numbers:

    (x - mean) / sqrt(variance + eps) * weight + bias        variance = mean of (x - mean)^2

MLP: c_fc (D -> 4D), gelu, c_proj (4D -> D).

GELU is a smooth relu. GPT-2 was trained with this approximation of it:

    gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

The names (weight, bias, c_fc, c_proj, ln_1, attn, ln_2, mlp) are those in GPT-2's files.
"""

import math

import torch
from torch import Tensor, nn

from step04_heads import Conv1D, SelfAttention


def gelu(x: Tensor) -> Tensor:
    """GPT-2's activation function, for each number: any shape."""
    raise NotImplementedError


class LayerNorm(nn.Module):
    """Normalize the last dimension."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        # weight (D,), ones at first, and bias (D,), zeros: both nn.Parameter
        raise NotImplementedError

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        raise NotImplementedError


class MLP(nn.Module):
    """Feed-forward layer, D -> 4D -> D."""

    def __init__(self, width: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        raise NotImplementedError


class Block(nn.Module):
    """Attention and feed-forward layer, each with a norm before it, each added to the stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """(B, T, D) and step 3's masks -> (B, T, D)"""
        raise NotImplementedError


# region Hint
# `x.mean(dim=-1, keepdim=True)`. torch's `var` divides by D - 1 unless told `correction=0`.
# A block's forward has two lines, each `hidden = hidden + ...`. What is added is computed from the
# norm of hidden; hidden itself stays as it is.
# endregion

# Questions
# 1. All weights of attn.c_proj and mlp.c_proj are 0. What does the block do?
# 2. What does a LayerNorm return for 10 * x, compared with x?
#
# region Answers
# 1. Nothing: both parts add 0. A deep model is easy to train from there, and GPT-2 starts near it.
# 2. The same, up to eps: the deviation is 10 times as large too. A block sees directions, not sizes.
# endregion
