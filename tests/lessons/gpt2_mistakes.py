"""Planted mistakes of steps 1 to 6."""

from tests.helpers.course_checks import Planted

MISTAKES = [
    # --- 1: softmax and cross-entropy
    Planted(
        1,
        "exponentials.sum(dim=-1, keepdim=True)",
        "exponentials.sum(dim=0, keepdim=True)",
        "softmax of scores (3, 4)",
        "runs over dimension 0",
    ),
    Planted(
        1,
        "exponentials.sum(dim=-1, keepdim=True)",
        "exponentials.sum()",
        "softmax of scores (3, 4)",
        "the whole tensor",
    ),
    Planted(
        1,
        "torch.exp(scores - scores.max(dim=-1, keepdim=True).values)",
        "torch.exp(scores)",
        "softmax([[100",
        "exp(100) is infinite",
    ),
    Planted(
        1,
        "torch.exp(scores - scores.max(dim=-1, keepdim=True).values)",
        "torch.exp(scores - scores.max())",
        "softmax([[100",
        "largest score of all rows",
    ),
    Planted(
        1,
        "    log_p = shifted - ",
        "    shifted = softmax(shifted)\n    log_p = shifted - ",
        "cross_entropy(logits, labels)",
        "Softmax is applied twice",
    ),
    Planted(
        1,
        "    log_p = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()",
        "    log_p = softmax(logits).log()",
        "cross_entropy([[200",
        "log(0) is -inf",
    ),
    Planted(1, "labels].mean()", "labels].sum()", "cross_entropy(logits, labels)", "expected their mean"),
    Planted(
        1,
        "labels].mean()",
        "labels].sum() / len(has_label)",
        "cross_entropy where some labels",
        "number of all rows",
    ),
    # --- 2: attention
    Planted(2, " / query.shape[-1] ** 0.5", "", "attention of query", "not divided by sqrt(K)"),
    Planted(
        2,
        " / query.shape[-1] ** 0.5",
        " * query.shape[-1] ** 0.5",
        "attention of query",
        "multiplied by sqrt(K)",
    ),
    Planted(2, " ** 0.5", "", "attention of query", "divided by K"),
    Planted(2, "softmax(scores)", "scores.softmax(dim=-2)", "attention of query", "over the queries"),
    Planted(2, "@ value", "@ key", "attention of query", "keys are mixed"),
    # --- 3: masks
    Planted(3, ".tril()", ".triu()", "causal_mask(4)", "transposed"),
    Planted(3, ".tril()", ".tril(1)", "causal_mask(4)", "the one after it"),
    Planted(3, ".tril()", ".tril(-1)", "causal_mask", "does not see itself"),
    Planted(3, "attention_mask == 1", "attention_mask == 0", "padding_mask of texts", "reversed"),
    Planted(3, "scores.masked_fill(~visible, ", "scores.masked_fill(visible, ", "causal mask", "reversed"),
    Planted(
        3, 'scores.masked_fill(~visible, float("-inf"))', "scores + visible", "causal mask", "added as 0/1"
    ),
    Planted(
        3, 'scores.masked_fill(~visible, float("-inf"))', "scores * visible", "causal mask", "multiplied"
    ),
    Planted(3, 'float("-inf")', "-1e-9", "causal mask", "filled with 0 or -1e-9"),
    Planted(
        3,
        'scores = scores.masked_fill(~visible, float("-inf"))\n    return softmax(scores) @',
        "return softmax(scores) * visible @",
        "causal mask",
        "after softmax",
    ),
    # --- 4: heads
    Planted(
        4,
        "states.view(batch, length, heads, width // heads).transpose(1, 2)",
        "states.view(batch, heads, length, width // heads)",
        "split_heads",
        "`view` alone",
    ),
    Planted(4, "states.transpose(1, 2).reshape(", "states.reshape(", "merge_heads", "not moved back"),
    Planted(
        4,
        "query, key, value = self.c_attn",
        "key, query, value = self.c_attn",
        "SelfAttention",
        "q, k, v in another order",
    ),
    Planted(4, "return self.c_proj(merge_heads(mixed))", "return merge_heads(mixed)", "SelfAttention"),
    # --- 5: the block
    Planted(
        5,
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
        "0.5 * x * (1 + torch.erf(x / math.sqrt(2)))",
        "gelu(x)",
        "exact GELU",
    ),
    Planted(
        5,
        "centred.pow(2).mean(dim=-1, keepdim=True)",
        "hidden.var(dim=-1, keepdim=True)",
        "LayerNorm(6)",
        "D - 1",
    ),
    Planted(
        5,
        "torch.sqrt(variance + self.eps)",
        "(torch.sqrt(variance) + self.eps)",
        "LayerNorm(6)",
        "outside of the square root",
    ),
    Planted(
        5,
        "centred = hidden - hidden.mean(dim=-1, keepdim=True)",
        "centred = hidden",
        "LayerNorm(6)",
        "RMSNorm",
    ),
    Planted(
        5,
        "return self.c_proj(gelu(self.c_fc(hidden)))",
        "return self.c_proj(torch.relu(self.c_fc(hidden)))",
        "MLP",
        "relu for gelu_new",
    ),
    Planted(
        5,
        "hidden = hidden + self.attn(self.ln_1(hidden), visible)",
        "hidden = self.attn(self.ln_1(hidden), visible)",
        "first in ln_2. Its input already differs: the mistake is before it, in Block.",
        "residual missing",
    ),
    Planted(5, "return hidden + self.mlp(", "return self.mlp(", "Block", "residual missing"),
    Planted(
        5,
        "        hidden = hidden + self.attn(self.ln_1(hidden), visible)\n",
        "        hidden = self.ln_1(hidden)\n        hidden = hidden + self.attn(hidden, visible)\n",
        "first in ln_2. Its input already differs: the mistake is before it, in Block.",
        "norm over the residual",
    ),
    Planted(
        5,
        """\
        hidden = hidden + self.attn(self.ln_1(hidden), visible)
        return hidden + self.mlp(self.ln_2(hidden))
""",
        """\
        hidden = self.ln_1(hidden + self.attn(hidden, visible))
        return self.ln_2(hidden + self.mlp(hidden))
""",
        "first in ln_1. Its input already differs: the mistake is before it, in Block.",
        "post-norm",
    ),
    Planted(
        5,
        "self.mlp(self.ln_2(hidden))",
        "self.mlp(self.ln_1(hidden))",
        "Not called: ln_2.",
        "norm used twice",
    ),
    # --- 6: GPT-2
    Planted(
        6,
        " + self.transformer.wpe(torch.arange(length))",
        "",
        "Not called: transformer.wpe.",
        "positions missing",
    ),
    Planted(
        6,
        "torch.arange(length))",
        "torch.arange(1, length + 1))",
        "first in transformer.wpe",
        "positions off by one",
    ),
    Planted(
        6,
        "self.lm_head(self.transformer.ln_f(hidden))",
        "self.lm_head(hidden)",
        "Not called: transformer.ln_f.",
        "final norm missing, in GPT2: transformer.ln_f",
    ),
    Planted(
        6,
        "        self.lm_head.weight = self.transformer.wte.weight\n",
        "",
        "first in lm_head",
        "untied head",
    ),
    Planted(
        6,
        "self.transformer.wte(input_ids) +",
        "self.transformer.wte(input_ids) * self.lm_head.in_features**0.5 +",
        "before it, in GPT2",
        "embedding scaled",
    ),
    Planted(
        6,
        "block(hidden, causal_mask(length))",
        "block(hidden, causal_mask(length).T)",
        "transformer.h.0.attn",
        "causal mask reversed",
    ),
    Planted(6, "logits[0, -1]", "logits[0, 0]", "write(model", "first position"),
    Planted(6, "ids[-count:]", "ids", "write(model", "the new ones only"),
]
