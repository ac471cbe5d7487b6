import torch
from step03_masks import masked_attention
from torch import Tensor, nn


def split_heads(states: Tensor, heads: int) -> Tensor:
    batch, length, width = states.shape
    return states.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    batch, heads, length, width = states.shape
    return states.transpose(1, 2).reshape(batch, length, heads * width)


class Conv1D(nn.Module):
    """GPT-2's linear layer: like nn.Linear, but its weight is stored (in, out)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight + self.bias


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        query, key, value = self.c_attn(hidden).chunk(3, dim=-1)
        query = split_heads(query, self.heads)
        key = split_heads(key, self.heads)
        value = split_heads(value, self.heads)
        mixed = masked_attention(query, key, value, visible)
        return self.c_proj(merge_heads(mixed))
