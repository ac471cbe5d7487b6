from step03_masks import causal_mask, padding_mask
from step07_relative_position import RMSNorm, relative_position_bias
from step08_t5_encoder import FeedForwardLayer, SelfAttentionLayer, T5Attention
from torch import Tensor, nn

from ftcore.models import T5Config


class CrossAttentionLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.EncDecAttention = T5Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, source: Tensor, source_visible: Tensor) -> Tensor:
        return hidden + self.EncDecAttention(self.layer_norm(hidden), source, source_visible)


class DecoderBlock(nn.Module):
    def __init__(self, config: T5Config, has_table: bool):
        super().__init__()
        self.layer = nn.ModuleList(
            [
                SelfAttentionLayer(config, has_table),
                CrossAttentionLayer(config),
                FeedForwardLayer(config),
            ]
        )

    def forward(
        self, hidden: Tensor, visible: Tensor, bias: Tensor, source: Tensor, source_visible: Tensor
    ) -> Tensor:
        self_attention, cross_attention, feed_forward = self.layer
        hidden = self_attention(hidden, visible, bias)
        hidden = cross_attention(hidden, source, source_visible)
        return feed_forward(hidden)


class Decoder(nn.Module):
    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            DecoderBlock(config, has_table=number == 0) for number in range(config.num_decoder_layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, decoder_input_ids: Tensor, source: Tensor, attention_mask: Tensor) -> Tensor:
        length = decoder_input_ids.shape[1]
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = relative_position_bias(table, length, False, self.max_distance)
        hidden = self.embed_tokens(decoder_input_ids)
        for block in self.block:
            hidden = block(hidden, causal_mask(length), bias, source, padding_mask(attention_mask))
        return self.final_layer_norm(hidden)
