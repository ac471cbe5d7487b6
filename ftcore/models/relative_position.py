"""T5's relative positions: which bucket a distance falls into, and what a head adds to its scores for it."""

import math

import torch
from torch import Tensor, nn


def relative_position_bucket(
    relative_position: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Tensor:
    """Key position minus query position -> bucket (Raffel et al. 2020, section 2.1), the same shape.

    Half of the buckets hold one distance each, the others grow logarithmically up to `max_distance` and
    the last takes the rest. Bidirectional: the upper half of the table is for keys after the query.
    Otherwise keys after the query share bucket 0 with distance 0; the causal mask hides them anyway.
    """
    if bidirectional:
        num_buckets //= 2
        side = torch.where(relative_position > 0, num_buckets, 0)
        distance = relative_position.abs()
    else:
        side = torch.zeros_like(relative_position)
        distance = (-relative_position).clamp(min=0)

    exact = num_buckets // 2
    # In float32 and in this order, as in the published code: a rounding apart would be a bucket apart.
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = exact + (growth * (num_buckets - exact)).long()
    return side + torch.where(distance < exact, distance, logarithmic.clamp(max=num_buckets - 1))


def relative_position_bias(
    table: nn.Embedding,
    query_length: int,
    key_length: int,
    max_distance: int,
    *,
    bidirectional: bool,
    query_positions: Tensor | None = None,
) -> Tensor:
    """Added to the scores, (1, H, T, S). The table is (buckets, H).

    The last query stands at the last key, unless `query_positions` (T,) say where the queries stand.
    """
    positions = torch.arange(key_length, device=table.weight.device)
    if query_positions is None:
        query_positions = positions[key_length - query_length :]
    buckets = relative_position_bucket(
        positions[None, :] - query_positions[:, None],
        bidirectional=bidirectional,
        num_buckets=table.num_embeddings,
        max_distance=max_distance,
    )
    # (T, S, H) -> (1, H, T, S), and laid out so: over strided scores the fused kernel takes twice the time.
    return table(buckets).permute(2, 0, 1)[None].contiguous()
