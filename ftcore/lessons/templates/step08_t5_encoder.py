"""Step 8: T5's encoder.

It is built like GPT-2, but reads in both directions, and differs in four things:

- The scores are not divided by sqrt(K): T5's q was trained to be smaller by that factor.
- The bias of step 7 is added to the scores. Block 0 has the only table; all blocks add its bias.
- Norms are RMSNorm, and nn.Linear is used, without biases.
- The MLP is gated: one half says how much of the other half passes.

      ids (B, T) -> embed_tokens -> block 0 -> ... -> block N-1 -> final_layer_norm -> (B, T, D)

                    a block, which adds to the stream twice, as in step 5
      hidden ----+--------------------------------(+)---+---------------------------------(+)--->
                 |                                 |    |                                  |
                 +-> layer_norm -> SelfAttention --+    +-> layer_norm -> DenseReluDense --+
                                    ^       ^
                        bias (1, H, T, T)   visible (B, 1, 1, T), step 3's padding mask

    scores  = q . k + bias                   and -inf where visible is False
    output  = o(softmax(scores) mixes v)     H heads of width K. H * K may differ from D:
                                             q, k and v map D to H * K, o maps back

    gated MLP = wo(gelu(wi_0(x)) * wi_1(x))  with step 5's gelu; * multiplies number by number

The constructors are complete, since the names in T5's files are long, such as
block.0.layer.0.SelfAttention.q.weight. Write the forward methods.
"""

import torch
from ftcore.models import T5Config
from torch import Tensor, nn

from step01_softmax import softmax
from step03_masks import padding_mask
from step04_heads import merge_heads, split_heads
from step05_gpt2_block import gelu
from step07_relative_position import RMSNorm, relative_position_bias


class T5Attention(nn.Module):
    """Attention without the scale, from `hidden` to `source`."""

    def __init__(self, config: T5Config, has_table: bool = False):
        super().__init__()
        inner = config.num_heads * config.d_kv  # H * K
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_table:  # for the Encoder below
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, config.num_heads)

    def forward(self, hidden: Tensor, source: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries ask `source`, which is `hidden` itself in the encoder, but not in step 9.

        Args:
            hidden: (B, T, D), where queries come from.
            source: (B, S, D), where keys and values come from.
            visible: bool, broadcastable to (B, H, T, S).
            bias: added to the scores, broadcastable to (B, H, T, S); None: nothing is added.

        Returns:
            (B, T, D)
        """
        raise NotImplementedError


class FeedForward(nn.Module):
    """The gated MLP, D -> F -> D."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        raise NotImplementedError


class SelfAttentionLayer(nn.Module):
    """The first half of a block."""

    def __init__(self, config: T5Config, has_table: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_table)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        raise NotImplementedError


class FeedForwardLayer(nn.Module):
    """The second half of a block."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        raise NotImplementedError


class EncoderBlock(nn.Module):
    """Both halves."""

    def __init__(self, config: T5Config, has_table: bool):
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(config, has_table), FeedForwardLayer(config)])

    def forward(self, hidden: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        raise NotImplementedError


class Encoder(nn.Module):
    """Ids -> a vector for each token, which knows the whole text."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            EncoderBlock(config, has_table=number == 0) for number in range(config.num_layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The whole encoder.

        Args:
            input_ids: (B, T)
            attention_mask: (B, T), 1 for a token and 0 for padding, as tokenizers return it.

        Returns:
            (B, T, D)
        """
        raise NotImplementedError


# region Hint
# Attention: split_heads(self.q(hidden), self.num_heads) is (B, H, T, K); k and v likewise from source.
# A layer normalizes once, and gives the result to SelfAttention twice: as hidden and as source.
# The table is self.block[0].layer[0].SelfAttention.relative_attention_bias.
# endregion

# Questions
# 1. Every block learns what to attend to. Why can one table of position biases serve all of them?
# 2. T5 has no mask but padding in the encoder. Why can GPT-2 not do that?
#
# region Answers
# 1. The bias is only a term of the score: q and k of each block decide how much it weighs against the
#    words. uMT5, a later T5, has a table in every block.
# 2. GPT-2 is trained to predict the next token at each position: it would see the answer. T5's
#    encoder predicts nothing; it reads the question, and the decoder writes.
# endregion
