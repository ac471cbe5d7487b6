import torch
from step01_softmax import softmax
from torch import Tensor


def causal_mask(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def padding_mask(attention_mask: Tensor) -> Tensor:
    return (attention_mask == 1)[:, None, None]


def masked_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~visible, float("-inf"))
    return softmax(scores) @ value
