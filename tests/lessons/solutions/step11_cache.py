import torch
from step03_masks import causal_mask, masked_attention
from step04_heads import merge_heads, split_heads
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]


def cached_attention(attn: nn.Module, hidden: Tensor, heads: int, cache: Cache, layer: int) -> Tensor:
    query, key, value = (split_heads(states, heads) for states in attn.c_attn(hidden).chunk(3, dim=-1))
    if layer == len(cache):
        cache.append((key, value))
    else:
        past_key, past_value = cache[layer]
        key = torch.cat([past_key, key], dim=2)
        value = torch.cat([past_value, value], dim=2)
        cache[layer] = (key, value)
    visible = causal_mask(key.shape[2])[-hidden.shape[1] :]
    return attn.c_proj(merge_heads(masked_attention(query, key, value, visible)))


def cached_logits(model: nn.Module, new_ids: Tensor, heads: int, cache: Cache) -> Tensor:
    gpt2 = model.transformer
    past = cache[0][0].shape[2] if cache else 0
    positions = torch.arange(past, past + new_ids.shape[1])
    hidden = gpt2.wte(new_ids) + gpt2.wpe(positions)
    for layer, block in enumerate(gpt2.h):
        hidden = hidden + cached_attention(block.attn, block.ln_1(hidden), heads, cache, layer)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    return model.lm_head(gpt2.ln_f(hidden))


@torch.no_grad()
def write(model: nn.Module, ids: list[int], count: int, heads: int) -> list[int]:
    cache: Cache = []
    new_ids: list[int] = []
    for _ in range(count):
        fed = new_ids[-1:] or ids
        logits = cached_logits(model, torch.tensor([fed]), heads, cache)
        new_ids.append(int(logits[0, -1].argmax()))
    return new_ids
