"""Other ways to write steps 7 to 10: edits of a solution after which the step is still done."""

NORM = "return self.weight * (hidden * torch.rsqrt(mean_square + self.eps)).to(hidden.dtype)"
LOGARITHMIC = """growth = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact)
    logarithmic = exact + (growth * (num_buckets - exact)).long()"""
DISTANCE = "positions[None, :] - positions[:, None]"
PERMUTED = "table(buckets).permute(2, 0, 1)[None]"
SCORES = "scores = query @ key.transpose(-2, -1)"
MIXED = "return self.o(merge_heads(weights @ value))"
WEIGHTS = 'weights = softmax(scores.masked_fill(~visible, float("-inf")))'
QUERY = "query = split_heads(self.q(hidden), self.num_heads)"
KEY_VALUE = """key = split_heads(self.k(source), self.num_heads)
        value = split_heads(self.v(source), self.num_heads)"""
GATED = "return self.wo(gelu(self.wi_0(hidden)) * self.wi_1(hidden))"
NORMED = """normed = self.layer_norm(hidden)
        return hidden + self.SelfAttention(normed, normed, visible, bias)"""
SHIFTED = "shifted = torch.cat([first, labels[:, :-1]], dim=1)"
LOGITS = "return self.lm_head(hidden * self.width**-0.5)"
STYLES = [
    (7, NORM, "return nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)"),
    (7, NORM, "return (hidden.float() / (mean_square + self.eps).sqrt()).type_as(hidden) * self.weight"),
    (7, "hidden.float().square()", "hidden.to(torch.float64).pow(2)"),
    (
        7,
        LOGARITHMIC,
        "ratio = torch.log2(distance.clamp(min=1) / exact) / math.log2(max_distance / exact)\n"
        "    logarithmic = (exact + ratio * (num_buckets - exact)).floor().long()",
    ),
    (
        7,
        LOGARITHMIC,
        "far = distance.clamp(min=1).double().log() - math.log(exact)\n"
        "    logarithmic = exact + (far / math.log(max_distance / exact) * (num_buckets - exact)).long()",
    ),
    (7, DISTANCE, "positions.unsqueeze(0) - positions.unsqueeze(1)"),
    (7, PERMUTED, "torch.stack([column[buckets] for column in table.weight.T]).unsqueeze(0)"),
    (7, PERMUTED, 'torch.einsum("tsh->hts", table.weight[buckets]).unsqueeze(0)'),
    (8, SCORES, 'import torch\n        scores = torch.einsum("bhtk,bhsk->bhts", query, key)'),
    (8, WEIGHTS, "weights = (scores + (~visible) * -1e9).softmax(-1)"),
    (
        8,
        WEIGHTS,
        "weights = scores.exp() * visible\n        weights = weights / weights.sum(-1, keepdim=True)",
    ),
    (
        8,
        MIXED,
        "mask = visible if bias is None else bias.masked_fill(~visible, float('-inf'))\n"
        "        mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0)\n"
        "        return self.o(merge_heads(mixed))",
    ),
    (
        8,
        MIXED,
        "batch, length, _ = hidden.shape\n"
        "        return self.o((weights @ value).permute(0, 2, 1, 3).reshape(batch, length, -1))",
    ),
    (
        8,
        KEY_VALUE,
        "import torch\n        both = source @ torch.cat([self.k.weight, self.v.weight]).T\n"
        "        key, value = (split_heads(part, self.num_heads) for part in both.chunk(2, -1))",
    ),
    (8, QUERY, "query = self.q(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)"),
    (
        8,
        GATED,
        "return self.wo(nn.functional.gelu(self.wi_0(hidden), approximate='tanh') * self.wi_1(hidden))",
    ),
    (
        8,
        GATED,
        "return (gelu(self.wi_0(hidden)) * self.wi_1(hidden)) @ self.wo.weight.T",
    ),
    (8, NORMED, "return self.SelfAttention(*[self.layer_norm(hidden)] * 2, visible, bias).add(hidden)"),
    (
        8,
        "        hidden = self.embed_tokens(input_ids)\n        for block",
        "        visible = visible.expand(-1, 1, input_ids.shape[1], -1)\n"
        "        hidden = self.embed_tokens(input_ids)\n        for block",
    ),
    (
        9,
        "        hidden = self_attention(hidden, visible, bias)\n"
        "        hidden = cross_attention(hidden, source, source_visible)\n"
        "        return feed_forward(hidden)",
        "        hidden = self_attention(hidden, visible=visible, bias=bias)\n"
        "        return feed_forward(cross_attention(hidden, source_visible=source_visible, source=source))",
    ),
    (9, "hidden, causal_mask(length)", "hidden, causal_mask(length)[None, None]"),
    (10, LOGITS, "return hidden @ self.shared.weight.T / self.width**0.5"),
    (10, LOGITS, "return self.lm_head(hidden) * self.width**-0.5"),
    (10, SHIFTED, "shifted = labels.roll(1, 1)\n    shifted[:, :1] = first"),
    (10, SHIFTED, "shifted = nn.functional.pad(labels[:, :-1], (1, 0), value=start)"),
    (10, "int(logits[0, -1].argmax())", "logits.softmax(-1)[0, -1].topk(1).indices.item()"),
]
