import torch
from step02_attention import attention
from step03_masks import causal_mask
from step04_heads import merge_heads, split_heads
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]


def cached_attention(attn: nn.Module, hidden: Tensor, cache: Cache, layer: int) -> Tensor:
    new = [split_heads(states, attn.num_heads) for states in attn.c_attn(hidden).chunk(3, dim=-1)]
    query, key, value = new
    if layer < len(cache):
        key = torch.cat([cache[layer][0], key], dim=2)
        value = torch.cat([cache[layer][1], value], dim=2)
        cache[layer] = (key, value)
    else:
        cache.append((key, value))
    bias = causal_mask(key.shape[2])[..., -hidden.shape[1] :, :]
    return attn.c_proj(merge_heads(attention(query, key, value, bias)))


def cached_logits(model: nn.Module, new_ids: Tensor, cache: Cache) -> Tensor:
    body = model.transformer
    past = cache[0][0].shape[2] if cache else 0
    positions = torch.arange(past, past + new_ids.shape[1])
    hidden = body.wte(new_ids) + body.wpe(positions)
    for layer, block in enumerate(body.h):
        hidden = hidden + cached_attention(block.attn, block.ln_1(hidden), cache, layer)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    return model.lm_head(body.ln_f(hidden))


@torch.no_grad()
def write(model: nn.Module, prompt: Tensor, max_new_tokens: int) -> Tensor:
    cache: Cache = []
    ids, new_ids = prompt, prompt
    for _ in range(max_new_tokens):
        new_ids = cached_logits(model, new_ids, cache)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, new_ids], dim=1)
    return ids
