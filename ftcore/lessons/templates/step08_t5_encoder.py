"""Step 8: T5's encoder, built from your own parts.

Three differences from GPT-2's block:

- Attention does not divide the scores by sqrt(K). The published weights of q contain that factor already.
- The position bias of step 7 is added to the scores. Only block 0 has a table; all blocks use its bias.
- Norms are RMSNorm, and no linear layer has a bias.

    input_ids (B, T)
        |
    embedding                      no positions are added, and the embedding is not scaled
        |
        +----------------------.
        |                      |
        |   layer_norm -> SelfAttention    <- bias (B, H, T, T): positions + padding mask, the same
        |                      |              in every block
        + <--------------------'
        |
        +----------------------.
        |                      |
        |   layer_norm -> DenseReluDense
        |                      |
        + <--------------------'           ... and so on in the next block
        |
    final_layer_norm
        |
    one vector for each token (B, T, D)

Attention, with q, k, v and o matrices without bias, and H heads of width K (H * K need not be D):

    softmax(q k^T + bias) v, per head, then o

The feed-forward layer is gated: one half decides how much of the other passes (* is elementwise):

    wo(gelu(wi_0(x)) * wi_1(x))            gelu is the one of step 5

The names, such as `layer.0.SelfAttention.q`, are those of the published checkpoints. Keep them: then
`load_state_dict` works on your model too.
"""

from step02_attention import attention
from step03_masks import padding_mask
from step04_heads import merge_heads, split_heads
from step05_gpt2_block import gelu
from step07_relative_position import RMSNorm, relative_position_bias
from torch import Tensor, nn

from ftcore.models import T5Config


class T5Attention(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool = False):
        super().__init__()
        inner = config.num_heads * config.d_kv  # H * K
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias_table:  # used by the Encoder below
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, config.num_heads)

    def forward(self, hidden: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
        """Queries come from `hidden`, (B, T, D), keys and values from `source`, (B, S, D) -> (B, T, D).

        In the encoder both are the same tensor; in step 9 they are not. `bias` is added to the scores.
        """
        raise NotImplementedError


class FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, F) -> (B, T, D)"""
        raise NotImplementedError


class SelfAttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias_table)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """Norm, attention, residual connection: (B, T, D) -> (B, T, D)."""
        raise NotImplementedError


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """Norm, feed-forward layer, residual connection: (B, T, D) -> (B, T, D)."""
        raise NotImplementedError


class EncoderBlock(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool):
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(config, has_bias_table), FeedForwardLayer(config)])

    def forward(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """Both layers: (B, T, D) -> (B, T, D)."""
        raise NotImplementedError


class Encoder(nn.Module):
    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            EncoderBlock(config, has_bias_table=layer == 0) for layer in range(config.num_layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) ids, (B, T) mask of 1 at tokens and 0 at padding -> (B, T, D)."""
        raise NotImplementedError
