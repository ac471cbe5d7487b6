"""Step 9: T5's decoder, which writes the answer and reads the encoder's output.

A decoder block has a third layer between the two that you know: cross-attention. Its queries come from the
decoder, its keys and values from the encoder's output, called `source`.

      source (B, S, D), from the encoder          decoder_input_ids (B, T)
          |                                           |
          |                                       embedding
          |                                           |
          |                                       layer.0  SelfAttention     bias (1, H, T, T)
          |                                           |      positions + causal mask
          '--------- keys and values -----------> layer.1  EncDecAttention   source_bias (B, 1, 1, S)
                                                      |      padding mask of the source, no positions
                                                  layer.2  DenseReluDense
                                                      |
                                                  ... next block, same bias and same source
                                                      |
                                                  final_layer_norm
                                                      |
                                                  (B, T, D)

Every layer normalizes its input and adds its output to it. `source` is not normalized again: the encoder
ends with a norm.

The scores of cross-attention are (B, H, T, S): decoder positions by source positions. So its mask says which
source tokens are padding. The decoder's own padding needs no mask: it comes last, and the causal mask hides it.
"""

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

    def forward(self, hidden: Tensor, source: Tensor, source_bias: Tensor | None) -> Tensor:
        """(B, T, D) and the encoder's output (B, S, D) -> (B, T, D)"""
        raise NotImplementedError


class DecoderBlock(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool):
        super().__init__()
        self.layer = nn.ModuleList(
            [
                SelfAttentionLayer(config, has_bias_table),
                CrossAttentionLayer(config),
                FeedForwardLayer(config),
            ]
        )

    def forward(self, hidden: Tensor, bias: Tensor, source: Tensor, source_bias: Tensor | None) -> Tensor:
        """All three layers: (B, T, D) -> (B, T, D)."""
        raise NotImplementedError


class Decoder(nn.Module):
    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            DecoderBlock(config, has_bias_table=layer == 0) for layer in range(config.num_decoder_layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, decoder_input_ids: Tensor, source: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) ids, the encoder's output (B, S, D), the source's mask (B, S) -> (B, T, D).

        Position biases of a decoder look back only: bidirectional=False.
        """
        raise NotImplementedError
