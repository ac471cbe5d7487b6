"""Other ways to write steps 11 and 12: edits of a solution after which the step is still done."""

CHUNKS = "query, key, value = (split_heads(states, heads) for states in attn.c_attn(hidden).chunk(3, dim=-1))"
VISIBLE = "visible = causal_mask(key.shape[2])[-hidden.shape[1] :]"
OUTPUT = "return attn.c_proj(merge_heads(masked_attention(query, key, value, visible)))"
NEW = "new: list[int] = []\n    while len(new) < most and end not in new:\n"
LOG_P = "log_p = logits(running)[:, -1].log_softmax(dim=-1)"
RESULT = "_, text = max(complete)"
STYLES = [
    (11, CHUNKS, "query, key, value = split_heads(attn.c_attn(hidden), 3 * heads).chunk(3, dim=1)"),
    (
        11,
        VISIBLE,
        "total, new = key.shape[2], hidden.shape[1]\n"
        "    visible = torch.arange(total) <= torch.arange(total - new, total)[:, None]",
    ),
    (
        11,
        OUTPUT,
        "mixed = nn.functional.scaled_dot_product_attention(query, key, value, visible)\n"
        "    return attn.c_proj(mixed.transpose(1, 2).flatten(2))",
    ),
    (11, "fed = new_ids[-1:] or ids", "fed = ids if not cache else [new_ids[-1]]"),
    (11, "gpt2.wpe(positions)", "gpt2.wpe.weight[past : past + new_ids.shape[1]]"),
    (
        11,
        "    cache: Cache = []\n    new_ids: list[int] = []\n",
        "    cache: Cache = []\n    new_ids: list[int] = []\n    if len(ids) > 1:\n"
        "        cached_logits(model, torch.tensor([ids[:-1]]), heads, cache)\n        ids = ids[-1:]\n",
    ),
    (12, LOG_P, "log_p = logits(running).softmax(-1)[:, -1].log()"),
    (12, LOG_P, "log_p = torch.cat([logits(beam[None])[:, -1].log_softmax(-1) for beam in running])"),
    (
        12,
        "candidates = scores[:, None] + log_p",
        "candidates = scores.unsqueeze(1) + log_p.double()",
    ),
    (12, RESULT, "_, text = sorted(complete, key=lambda pair: -pair[0])[0]"),
    (
        12,
        "candidates.flatten().topk(2 * beams)",
        "(part[: 2 * beams] for part in candidates.flatten().sort(descending=True))",
    ),
]
