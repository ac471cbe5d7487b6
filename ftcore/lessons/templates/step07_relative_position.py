"""Step 7: RMSNorm and relative positions.

T5 differs from GPT-2 in two small parts. The first is its norm: RMSNorm divides a vector by its
root mean square. No mean is subtracted and no bias is added.

    y = weight * x / sqrt(mean(x^2) + eps)        mean: over the D numbers of x

In float16 numbers end at 65504, and 300^2 is more than that: compute the mean in float32.

The second: T5 has no position vectors. Its attention adds a learned number to each score, which
depends on the head and on how far the key is from the query:

    distance = position of the key - position of the query        negative: the key is behind

The difference between 1 and 2 positions matters, that between 61 and 62 does not. So distances share
buckets, the wider the farther away, and a table (buckets, H) has a number for each bucket and head.
The decoder only looks back. With n = 8 buckets and max_distance = 16 it has these:

    distance  ... -13 -12 -11 -10  -9  -8  -7  -6  -5  -4  -3  -2  -1   0   1   2 ...
    bucket          7   7   6   6   6   6   5   5   4   4   3   2   1   0   0   0
                  |-------- wider and wider --------| |-- one each --|  later keys: 0

With d for how far the key is behind (0 for later keys), and a // b for whole division:

    d < n // 2:    bucket = d
    otherwise:     bucket = n // 2 + int(log(d / (n // 2)) / log(max_distance / (n // 2)) * (n - n // 2))
                   but at most n - 1

The encoder looks both ways (bidirectional=True), and each direction has half of the buckets: halve n,
apply the same rule to d = |distance|, and add this half of n for keys after the query.

    distance  ...  -7  -6  -5  -4  -3  -2  -1   0   1   2   3   4   5   6   7 ...
    bucket          3   3   2   2   2   2   1   0   5   6   6   6   6   7   7
"""

import math

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divide the last dimension by its root mean square; complete but for forward."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D), with the dtype of hidden"""
        raise NotImplementedError


def relative_position_bucket(
    distance: Tensor, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """The bucket of each distance.

    Args:
        distance: whole numbers, any shape.
        bidirectional: True in the encoder, False in the decoder.

    Returns:
        Whole numbers from 0 to num_buckets - 1, the same shape.
    """
    raise NotImplementedError


def relative_position_bias(
    table: nn.Embedding, length: int, bidirectional: bool, max_distance: int = 128
) -> Tensor:
    """What is added to the scores of each head, query and key.

    Args:
        table: the numbers, (buckets, H); table.num_embeddings is the number of buckets.
        length: T, the number of positions.

    Returns:
        (1, H, T, T): a row is a query, a column a key.
    """
    raise NotImplementedError


# region Hint
# log(0) is -inf, but the rule with log is for d >= n // 2 only: compute it for d.clamp(min=1), and let
# `torch.where(condition, this, that)` choose for each number. `.long()` cuts off decimals like int.
# positions[None, :] - positions[:, None] is a (T, T) table of differences; which one is the query?
# table(buckets) looks up (T, T) buckets: (T, T, H). `permute` puts its dimensions in another order.
# endregion

# Questions
# 1. T5 is run on a text twice as long as any in training. What do its positions do? GPT-2's?
# 2. Why does no key after the query need a bucket in the decoder?
#
# region Answers
# 1. T5: distances beyond max_distance share the last bucket, which was trained. GPT-2 has no vector
#    for a position it was not built with: wpe ends there.
# 2. The causal mask hides them: whatever is added to -inf stays -inf.
# endregion
