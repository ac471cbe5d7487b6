import math

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        mean_square = hidden.float().square().mean(-1, keepdim=True)  # (B, T, 1)
        return self.weight * (hidden * torch.rsqrt(mean_square + self.eps)).to(hidden.dtype)


def relative_position_bucket(
    distance: Tensor, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets * (distance > 0)
        distance = distance.abs()
    else:
        offset = 0
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    growth = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact)
    logarithmic = exact + (growth * (num_buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, logarithmic.clamp(max=num_buckets - 1))


def relative_position_bias(
    table: nn.Embedding, length: int, bidirectional: bool, max_distance: int = 128
) -> Tensor:
    positions = torch.arange(length)
    distance = positions[None, :] - positions[:, None]  # (T, S): key minus query
    buckets = relative_position_bucket(distance, bidirectional, table.num_embeddings, max_distance)
    return table(buckets).permute(2, 0, 1)[None]  # (T, S, H) -> (1, H, T, S)
