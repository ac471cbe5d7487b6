"""Step 7: RMSNorm and relative positions, the two things T5 does differently from GPT-2 at the bottom.

RMSNorm divides each vector x, (D,), by its root mean square. Unlike LayerNorm it subtracts no mean and adds
no bias:

    y = weight * x / sqrt(mean(x^2) + eps)        mean over the D numbers of x, computed in float32

T5 has no position vectors. Instead, attention adds a learned number to each score, which depends only on the
head and on the distance from query to key:

    distance = position of the key - position of the query

Far distances need less precision than near ones, so distances are sorted into buckets. A table (buckets, H)
has one number per bucket and head. The decoder looks back only and uses all n buckets for the past:

    8 buckets, max_distance 16, bidirectional=False        (a key behind the query has a negative distance)

    distance  ... -13 -12 -11 -10  -9  -8  -7  -6  -5  -4  -3  -2  -1   0   1   2 ...
    bucket          7   7   6   6   6   6   5   5   4   4   3   2   1   0   0   0
                  \_________ logarithmic: 4 to 7 _________/ \__ exact __/ later keys: bucket 0

With d the distance back, 0 for later keys:

    d < n/2:     bucket = d
    otherwise:   bucket = n/2 + floor(log(d / (n/2)) / log(max_distance / (n/2)) * (n - n/2)), at most n - 1

The encoder looks in both directions (bidirectional=True). Each direction gets half of the buckets: the same
rule with n/2 in place of n and d = |distance|; keys after the query then add n/2 to their bucket.
"""

import math

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), in the dtype of `hidden`."""
        raise NotImplementedError


def relative_position_bucket(
    distance: Tensor, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Distances, whole numbers of any shape -> buckets, whole numbers of the same shape."""
    raise NotImplementedError


def relative_position_bias(
    table: nn.Embedding, length: int, bidirectional: bool, max_distance: int = 128
) -> Tensor:
    """The numbers to add to the scores, (1, H, T, S) with T = S = length, from the table (buckets, H)."""
    raise NotImplementedError
