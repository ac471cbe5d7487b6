"""Step 11: the key-value cache.

Step 6 runs the whole text again for each new token. But no position of GPT-2 sees a later one, so the
vectors of earlier positions stay the same. Of these, only their keys and values are still needed, by
the attention of later positions. Keep them:

    without a cache                             with a cache

    [the cat sat]           -> on               [the cat sat]  -> on      cache: the cat sat
    [the cat sat on]        -> the                       [on]  -> the     cache: the cat sat on
    [the cat sat on the]    -> mat                      [the]  -> mat     cache: the cat sat on the
     computed: 12 positions                      computed: 5 positions

With P positions in the cache and T new ones, S = P + T:

    query       (B, H, T, K)     of the new positions
    key, value  (B, H, S, K)     those in the cache, then those of the new positions; kept for later
    visible     (T, S)           new position i is position P + i: it sees the keys 0 to P + i

                key 0  1  2 | 3  4
    query 3         x  x  x | x  .      P = 3, T = 2: the last two rows of the causal mask
    query 4         x  x  x | x  x      of all 5 positions

So wpe must be asked for position P + i too, not i.

You run your GPT-2 of step 6 once more, part by part: model.transformer has wte, wpe, h and ln_f; a
block of h has ln_1, attn, ln_2 and mlp; attn has c_attn and c_proj.
"""

import torch
from torch import Tensor, nn

from step03_masks import causal_mask, masked_attention
from step04_heads import merge_heads, split_heads

# A (key, value) for each block, both (B, H, P, K). An empty list before the first call.
Cache = list[tuple[Tensor, Tensor]]


def cached_attention(attn: nn.Module, hidden: Tensor, heads: int, cache: Cache, layer: int) -> Tensor:
    """Attention of the new positions to all positions.

    Args:
        attn: a SelfAttention of step 4, for its c_attn and c_proj.
        hidden: (B, T, D), the new positions only.
        cache: its entry number `layer` is extended by the new positions, or appended if missing.

    Returns:
        (B, T, D)
    """
    raise NotImplementedError


def cached_logits(model: nn.Module, new_ids: Tensor, heads: int, cache: Cache) -> Tensor:
    """GPT-2 on the new tokens only.

    Args:
        model: a GPT2 of step 6.
        new_ids: (B, T), the tokens after those in the cache.
        cache: extended by the new positions.

    Returns:
        (B, T, V), equal to the last T positions of model(all ids).
    """
    raise NotImplementedError


def write(model: nn.Module, ids: list[int], count: int, heads: int) -> list[int]:
    """Step 6's `write`, with a cache: the `count` most likely next tokens, one after the other."""
    raise NotImplementedError


# region Hint
# P is the size of a cached key: cache[0][0].shape[2], or 0 if the cache is empty.
# `torch.cat([old, new], dim=2)` joins keys along their positions.
# causal_mask(S)[-T:] are the last T rows.
# In `write`, the first call gets all ids, each later call the one token that was chosen last.
# endregion

# Questions
# 1. How many numbers does the cache of GPT-2 (12 blocks, D = 768) hold for 1000 positions?
# 2. The encoder of T5 has no causal mask. Could it have a cache?
#
# region Answers
# 1. 2 * 12 * 768 * 1000 = 18.4 million, 74 MB in float32.
# 2. No: when a token is added, all vectors of the encoder change, since each sees all others.
# endregion
