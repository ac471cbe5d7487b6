"""Step 9: T5's decoder, which reads what the encoder found and writes the answer.

A decoder block has one more layer, cross-attention. Its queries come from the decoder, its keys and
values from the encoder's output, here called the source:

    source (B, S, D)                 hidden (B, T, D)
        |                                |
        |                           layer.0  SelfAttention     visible: causal mask
        |                                |                     bias: step 7's, one direction only
        +--- keys and values ------> layer.1  EncDecAttention  source_visible: the source's padding
                                         |                     no bias
                                    layer.2  DenseReluDense
                                         |
                                    (B, T, D), to the next block; all blocks read the same source

Each layer normalizes hidden, and adds what it computes to hidden. The source is not normalized again:
the encoder ends with a norm.

The scores of cross-attention have the shape (B, H, T, S): a row for each token of the answer, a column
for each token of the source. So the columns that it may not see are the source's padding. The answer's
own padding needs no mask: it comes last, and the causal mask hides it.
"""

import torch
from ftcore.models import T5Config
from torch import Tensor, nn

from step03_masks import causal_mask, padding_mask
from step07_relative_position import RMSNorm, relative_position_bias
from step08_t5_encoder import FeedForwardLayer, SelfAttentionLayer, T5Attention


class CrossAttentionLayer(nn.Module):
    """The layer between the two that you know."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.EncDecAttention = T5Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, source: Tensor, source_visible: Tensor) -> Tensor:
        """(B, T, D), (B, S, D), (B, 1, 1, S) -> (B, T, D)"""
        raise NotImplementedError


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention, gated MLP."""

    def __init__(self, config: T5Config, has_table: bool):
        super().__init__()
        self.layer = nn.ModuleList(
            [SelfAttentionLayer(config, has_table), CrossAttentionLayer(config), FeedForwardLayer(config)]
        )

    def forward(
        self, hidden: Tensor, visible: Tensor, bias: Tensor, source: Tensor, source_visible: Tensor
    ) -> Tensor:
        """One block.

        Args:
            hidden: (B, T, D)
            visible: (T, T), bool
            bias: (1, H, T, T)
            source: (B, S, D)
            source_visible: (B, 1, 1, S), bool

        Returns:
            (B, T, D)
        """
        raise NotImplementedError


class Decoder(nn.Module):
    """Ids of the answer so far and the source -> a vector for each token of the answer."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            DecoderBlock(config, has_table=number == 0) for number in range(config.num_decoder_layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, decoder_input_ids: Tensor, source: Tensor, attention_mask: Tensor) -> Tensor:
        """The whole decoder.

        Args:
            decoder_input_ids: (B, T)
            source: (B, S, D), the encoder's output.
            attention_mask: (B, S), 1 where the source has a token and 0 for padding.

        Returns:
            (B, T, D)
        """
        raise NotImplementedError


# region Hint
# The decoder looks like the encoder of step 8, with bidirectional=False and a causal mask.
# T5Attention of step 8 takes hidden, source, visible and, if there is one, bias.
# endregion

# Questions
# 1. Which parts of the decoder give the same result again when the answer gets one token longer?
# 2. The answer is 5 tokens long, the source 200. How many scores does a head of cross-attention have?
#
# region Answers
# 1. Keys and values of the source, in every block, and everything at earlier positions of the answer.
# 2. 5 * 200 = 1000.
# endregion
