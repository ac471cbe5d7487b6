"""Step 11: the key-value cache. Writing 100 tokens without it computes the first token 100 times.

GPT-2 is causal: the keys and values of a position depend only on the tokens up to it, so they never change.
Keep them, and each step computes one position instead of all:

    without a cache                            with a cache

    step 1   the cat sat                       the cat sat     cache: k, v of the, cat, sat
    step 2   the cat sat on                    on              cache: ... and of on
    step 3   the cat sat on the                the             cache: ... and of the
             ------------------ computed       --- computed; attention reads k, v of all so far

Only attention looks at other positions, so only attention needs the cache. For T new positions after P in
the cache, S = P + T:

    query      (B, H, T, K)      of the new positions
    key, value (B, H, S, K)      cached ones first, then the new ones
    scores     (B, H, T, S)      mask: new position i sees the keys 0 ... P + i, that is the last
                                 T rows of the causal mask (S, S)

Positions count on: the first new token is at position P.

You write GPT-2's forward pass once more, as a function over the parts of your model of step 6
(model.transformer.wte, wpe, h, ln_f and model.lm_head; block.ln_1, attn, ln_2, mlp; attn.c_attn, c_proj).
"""

import torch
from step02_attention import attention
from step03_masks import causal_mask
from step04_heads import merge_heads, split_heads
from torch import Tensor, nn

# One pair per block: keys and values of all positions so far, (B, H, S, K). Empty before the first call.
Cache = list[tuple[Tensor, Tensor]]


def cached_attention(attn: nn.Module, hidden: Tensor, cache: Cache, layer: int) -> Tensor:
    """Attention of the new positions `hidden`, (B, T, D), to all so far; adds theirs to `cache[layer]`."""
    raise NotImplementedError


def cached_logits(model: nn.Module, new_ids: Tensor, cache: Cache) -> Tensor:
    """New tokens (B, T) after those in the cache -> logits (B, T, V), equal to those without a cache."""
    raise NotImplementedError


@torch.no_grad()
def write(model: nn.Module, prompt: Tensor, max_new_tokens: int) -> Tensor:
    """Greedy, with `cached_logits`: (B, T) -> (B, T + max_new_tokens), the prompt included.

    The first call gets the prompt, every later one only the token just chosen.
    """
    raise NotImplementedError
