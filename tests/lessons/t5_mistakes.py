"""Planted mistakes of steps 7 to 10."""

from tests.helpers.course_checks import Planted

MISTAKES = [
    # --- 7: RMSNorm, relative positions
    Planted(
        7,
        "        mean_square = hidden.float()",
        "        hidden = hidden - hidden.mean(-1, keepdim=True)\n        mean_square = hidden.float()",
        "RMSNorm(6)",
        "this is LayerNorm",
    ),
    Planted(
        7,
        "hidden * torch.rsqrt(mean_square + self.eps)",
        "hidden / (mean_square.sqrt() + self.eps)",
        "RMSNorm(6)",
        "eps is outside",
    ),
    Planted(7, ".square().mean(-1, keepdim=True)", ".square().mean()", "RMSNorm(6)", "whole tensor"),
    Planted(7, "hidden.float().square()", "hidden.square()", "float16", "infinite in float16"),
    Planted(7, "self.weight * (", "(", "RMSNorm(6)", "weight is not used"),
    Planted(
        7,
        "    if bidirectional:\n",
        "    if False:\n",
        "relative_position_bucket(distance, True",
        "decoder's buckets",
    ),
    Planted(
        7,
        "        distance = (-distance).clamp(min=0)",
        "        distance = distance.clamp(min=0)",
        "relative_position_bucket(distance, False",
        "sign is reversed",
    ),
    Planted(
        7,
        "num_buckets * (distance > 0)",
        "num_buckets * (distance < 0)",
        "distance -1: bucket 7",
        "sign is reversed",
    ),
    Planted(
        7, "return offset + torch.where", "return 1.0 * offset + torch.where", "dtype float32, expected int64"
    ),
    Planted(7, "num_buckets * (distance > 0)", "0", "distance 1: bucket", "upper half"),
    Planted(
        7,
        "positions[None, :] - positions[:, None]",
        "positions[:, None] - positions[None, :]",
        "relative_position_bias(table, 23",
        "Rows and columns are swapped",
    ),
    Planted(
        7,
        "relative_position_bucket(distance, bidirectional, table",
        "relative_position_bucket(distance, True, table",
        "relative_position_bias(table, 23, False",
        "not passed on",
    ),
    # --- 8: T5's encoder
    Planted(
        8,
        "scores = query @ key.transpose(-2, -1)",
        "scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5",
        "T5Attention",
        "extra 1/sqrt(d)",
    ),
    Planted(
        8, "            scores = scores + bias", "            pass", "T5Attention", "position bias missing"
    ),
    Planted(8, "self.k(source)", "self.k(hidden)", "T5Attention", "Keys are computed from hidden"),
    Planted(8, "split_heads(self.v(source)", "split_heads(self.k(source)", "T5Attention"),
    Planted(8, "* self.wi_1(hidden)", "+ self.wi_1(hidden)", "FeedForward", "halves are added"),
    Planted(
        8,
        "gelu(self.wi_0(hidden)) * self.wi_1(hidden)",
        "self.wi_0(hidden) * gelu(self.wi_1(hidden))",
        "FeedForward",
        "wi_1's half",
    ),
    Planted(
        8,
        "self.embed_tokens(input_ids)",
        "self.embed_tokens(input_ids) * 24**0.5",
        "Encoder",
        "embedding scaled",
    ),
    Planted(8, "has_table=number == 0", "has_table=True", "Encoder has 3 tables", "Only block 0"),
    Planted(8, "True, self.max_distance", "False, self.max_distance", "block.0", "decoder's buckets"),
    Planted(
        8,
        "            hidden = block(hidden, visible, bias)\n",
        "            hidden = block(hidden, visible, bias)\n            bias = 0 * bias\n",
        "block.1",
        "position bias missing",
    ),
    # --- 9: T5's decoder
    Planted(
        9,
        "self.layer_norm(hidden), source,",
        "self.layer_norm(hidden), self.layer_norm(source),",
        "CrossAttentionLayer",
        "source is normalized again",
    ),
    Planted(
        9,
        "return hidden + self.EncDecAttention",
        "return self.EncDecAttention",
        "CrossAttentionLayer",
        "residual",
    ),
    Planted(
        9,
        "self.EncDecAttention(self.layer_norm(hidden)",
        "self.EncDecAttention(hidden",
        "CrossAttentionLayer",
        "norm",
    ),
    Planted(
        9,
        "source, source_visible)\n\n",
        "source, source_visible | True)\n\n",
        "CrossAttentionLayer",
        "padding is seen",
    ),
    Planted(
        9,
        "        hidden = self_attention(hidden, visible, bias)\n"
        "        hidden = cross_attention(hidden, source, source_visible)\n",
        "        hidden = cross_attention(hidden, source, source_visible)\n"
        "        hidden = self_attention(hidden, visible, bias)\n",
        "DecoderBlock",
        "Cross-attention comes first",
    ),
    Planted(9, "False, self.max_distance", "True, self.max_distance", "block.0", "encoder's buckets"),
    Planted(
        9,
        "causal_mask(length), bias, source, padding_mask(attention_mask)",
        "padding_mask(attention_mask) & causal_mask(length), bias, source, padding_mask(attention_mask)",
        "Decoder",
        "self-attention too",
    ),
    Planted(
        9,
        "source, padding_mask(attention_mask)",
        "source, padding_mask(attention_mask) & causal_mask(length)",
        "Decoder",
        "It may see the whole source",
    ),
    Planted(
        9,
        "causal_mask(length), bias, source, padding_mask(attention_mask)",
        "padding_mask(attention_mask) & causal_mask(length), bias, source,"
        " padding_mask(attention_mask * 0 + 1)",
        "Decoder",
        "expected in cross-attention",
    ),
    Planted(
        9,
        "block(hidden, causal_mask(length)",
        "block(hidden, causal_mask(length) | True",
        "Decoder",
        "causal mask missing",
    ),
    # --- 10: T5
    Planted(10, "hidden * self.width**-0.5", "hidden", "lm_head", "unscaled head"),
    Planted(10, "        self.lm_head.weight = self.shared.weight\n", "", "lm_head", "untied head"),
    Planted(10, "torch.cat([first, labels[:, :-1]], dim=1)", "labels", "shift_right", "not shifted"),
    Planted(
        10, "torch.cat([first, labels[:, :-1]], dim=1)", "labels.roll(1, 1)", "shift_right", "comes round"
    ),
    Planted(
        10,
        "torch.cat([first, labels[:, :-1]], dim=1)",
        "torch.cat([labels[:, 1:], first], dim=1)",
        "shift_right",
    ),
    Planted(10, "shifted.masked_fill(shifted == -100, pad)", "shifted", "shift_right", "-100"),
    Planted(10, "len(found) <= most", "len(found) < most", "answer(model", "a token too short"),
    Planted(
        10,
        "return found[1:]",
        "return [token for token in found[1:] if token != end]",
        "answer(model",
        "is not returned",
    ),
    Planted(10, "found[-1] != end", "True", "answer(model", "goes on"),
    Planted(10, "return found[1:]", "return found", "answer(model", "start token is returned"),
]
