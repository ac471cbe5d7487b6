"""Other ways to write steps 1 to 6: edits of a solution after which the step is still done."""

EXPONENTIALS = "exponentials = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)"
NEGATIVE_MEAN = "return -log_p[torch.arange(len(labels)), labels].mean()"
SCORES = "query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5"
CAUSAL = "torch.ones(length, length, dtype=torch.bool).tril()"
MASKED = 'scores.masked_fill(~visible, float("-inf"))'
SPLIT = "states.view(batch, length, heads, width // heads).transpose(1, 2)"
MERGE = "states.transpose(1, 2).reshape(batch, length, heads * width)"
MIXED = "mixed = masked_attention(query, key, value, visible)"
CHUNK = "query, key, value = self.c_attn(hidden).chunk(3, dim=-1)"
GELU = "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))"
NORM = "return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias"
FIRST_HALF = "hidden = hidden + self.attn(self.ln_1(hidden), visible)"
TIED = "self.lm_head.weight = self.transformer.wte.weight"
HEAD = "self.lm_head(self.transformer.ln_f(hidden))"
STYLES = [
    (1, EXPONENTIALS, "return scores.softmax(-1)"),
    (1, EXPONENTIALS, "return torch.exp(scores - scores.logsumexp(-1, keepdim=True))"),
    (1, EXPONENTIALS, "exponentials = (scores - scores.amax(-1, keepdim=True)).double().exp().float()"),
    (1, EXPONENTIALS, "exponentials = scores.sub_(scores.amax(-1, keepdim=True)).exp_()"),
    (1, "logits, labels = logits[has_label]", "logits.sub_(3.0)\n    logits, labels = logits[has_label]"),
    (1, NEGATIVE_MEAN, "return torch.nn.functional.cross_entropy(logits, labels)"),
    (1, NEGATIVE_MEAN, "return -torch.log_softmax(logits, 1).gather(1, labels[:, None]).mean()"),
    (1, NEGATIVE_MEAN, "return sum(-row[label] for row, label in zip(log_p, labels)) / len(labels)"),
    (
        2,
        f"scores = {SCORES}",
        'import torch\n    scores = torch.einsum("...tk,...sk->...ts", query, key / key.shape[-1] ** 0.5)',
    ),
    (2, SCORES, "query.div_(query.shape[-1] ** 0.5) @ key.mT"),
    (2, SCORES, "(query / query.shape[-1] ** 0.5) @ key.mT"),
    (2, "return softmax(scores) @ value", "return (value.mT @ softmax(scores).mT).mT"),
    (
        2,
        "return softmax(scores) @ value",
        "import torch\n    return torch.nn.functional.scaled_dot_product_attention(query, key, value)",
    ),
    (3, CAUSAL, "torch.arange(length)[:, None] >= torch.arange(length)"),
    (3, CAUSAL, "~torch.ones(length, length).triu(1).bool()"),
    (3, "(attention_mask == 1)[:, None, None]", "attention_mask.bool().unsqueeze(1).unsqueeze(2)"),
    (3, MASKED, "scores.masked_fill(~visible, -1e9)"),
    (3, MASKED, "scores.masked_fill(~visible, torch.finfo(scores.dtype).min)"),
    (3, MASKED, "torch.where(visible, scores, -torch.inf)"),
    (3, MASKED, "scores + (1.0 - visible.float()) * -1e9"),
    (3, MASKED, "scores + torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)"),
    (
        3,
        f"scores = {MASKED}\n    return softmax(scores)",
        "weights = scores.exp() * visible\n    return weights / weights.sum(-1, keepdim=True)",
    ),
    (3, SCORES, "query.div_(query.shape[-1] ** 0.5) @ key.mT"),
    (4, SPLIT, "torch.stack(states.chunk(heads, dim=-1), dim=1)"),
    (4, SPLIT, "states.unflatten(-1, (heads, -1)).permute(0, 2, 1, 3)"),
    (4, MERGE, "torch.cat(list(states.unbind(1)), dim=-1)"),
    (4, CHUNK, f"width = hidden.shape[-1]\n        {CHUNK.replace('chunk(3', 'split(width')}"),
    (
        4,
        MIXED,
        "mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)",
    ),
    (5, GELU, "x.mul_(0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))"),
    (5, GELU, 'nn.functional.gelu(x, approximate="tanh")'),
    (5, GELU, "x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))"),
    (5, NORM, "return nn.functional.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)"),
    (5, NORM, "return torch.addcmul(self.bias, centred * (variance + self.eps).rsqrt(), self.weight)"),
    (5, "class MLP", "LayerNorm = nn.LayerNorm\n\n\nclass MLP"),
    (
        5,
        FIRST_HALF,
        "old = hidden\n        hidden = self.attn(self.ln_1(old), visible)\n        hidden += old",
    ),
    (6, "ids = list(ids)", "pass"),
    (6, "self.transformer = nn.Module()", "self.transformer = nn.ModuleDict()"),
    (6, "wpe(torch.arange(length))", "wpe(torch.arange(length)[None])"),
    (6, "wpe(torch.arange(length))", "wpe.weight[:length]"),
    (6, TIED, "self.transformer.wte.weight = self.lm_head.weight"),
    (6, HEAD, "self.transformer.ln_f(hidden) @ self.transformer.wte.weight.T"),
]
