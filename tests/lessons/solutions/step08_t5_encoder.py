from step01_softmax import softmax
from step03_masks import padding_mask
from step04_heads import merge_heads, split_heads
from step05_gpt2_block import gelu
from step07_relative_position import RMSNorm, relative_position_bias
from torch import Tensor, nn

from ftcore.models import T5Config


class T5Attention(nn.Module):
    def __init__(self, config: T5Config, has_table: bool = False):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_table:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, config.num_heads)

    def forward(self, hidden: Tensor, source: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        query = split_heads(self.q(hidden), self.num_heads)
        key = split_heads(self.k(source), self.num_heads)
        value = split_heads(self.v(source), self.num_heads)
        scores = query @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        weights = softmax(scores.masked_fill(~visible, float("-inf")))
        return self.o(merge_heads(weights @ value))


class FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.wo(gelu(self.wi_0(hidden)) * self.wi_1(hidden))


class SelfAttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_table: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_table)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
        normed = self.layer_norm(hidden)
        return hidden + self.SelfAttention(normed, normed, visible, bias)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.DenseReluDense(self.layer_norm(hidden))


class EncoderBlock(nn.Module):
    def __init__(self, config: T5Config, has_table: bool):
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(config, has_table), FeedForwardLayer(config)])

    def forward(self, hidden: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
        self_attention, feed_forward = self.layer
        return feed_forward(self_attention(hidden, visible, bias))


class Encoder(nn.Module):
    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            EncoderBlock(config, has_table=number == 0) for number in range(config.num_layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        visible = padding_mask(attention_mask)
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = relative_position_bias(table, input_ids.shape[1], True, self.max_distance)
        hidden = self.embed_tokens(input_ids)
        for block in self.block:
            hidden = block(hidden, visible, bias)
        return self.final_layer_norm(hidden)
