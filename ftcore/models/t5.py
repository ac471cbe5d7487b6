"""T5 (Raffel et al. 2020), top to bottom: encoder, decoder, head.

Covers T5 v1.0 (relu, tied and scaled head), v1.1 (gated gelu, untied head) and, through their configurations,
mT5 and uMT5. Module and parameter names are those of the published checkpoints in Hugging Face's format, so
loading is a plain `load_state_dict`. Shape letters: see attention.py. Configuration: T5Config in config.py.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.models.attention import (
    AttentionDropout,
    Softmax,
    at_least_float32,
    attend,
    attention_mask_bias,
    merge_heads,
    split_heads,
)
from ftcore.models.cache import KVCache, LayerCache
from ftcore.models.config import ACTIVATIONS, CheckpointMixin, T5Config, check_ids


class T5LayerNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019): no mean, no bias."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        mean_square = at_least_float32(hidden).square().mean(-1, keepdim=True)  # squares overflow float16
        hidden = hidden * torch.rsqrt(mean_square + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden = hidden.to(self.weight.dtype)
        return self.weight * hidden


def relative_position_bucket(
    relative_position: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Tensor:
    """Key position minus query position -> bucket (Raffel et al. 2020, section 2.1), same shape.

    Half of the buckets hold one distance each; the others grow logarithmically up to `max_distance`, and the
    last holds everything beyond. Bidirectional: keys after the query use the upper half of the table.
    Otherwise they share bucket 0 with distance 0, and the causal mask hides them.
    """
    if bidirectional:
        num_buckets //= 2
        offset = torch.where(relative_position > 0, num_buckets, 0)
        distance = relative_position.abs()
    else:
        offset = torch.zeros_like(relative_position)
        distance = (-relative_position).clamp(min=0)

    exact = num_buckets // 2
    # float32 and this order of operations, as in the published code: rounding differently changes buckets.
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = exact + (growth * (num_buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, logarithmic.clamp(max=num_buckets - 1))


def relative_position_bias(
    table: nn.Embedding,  # (buckets, H)
    query_length: int,
    key_length: int,
    max_distance: int,
    *,
    bidirectional: bool,
) -> Tensor:
    """Additive bias of the scores, (1, H, T, S). The last query is aligned with the last key."""
    positions = torch.arange(key_length, device=table.weight.device)
    buckets = relative_position_bucket(
        positions[None, :] - positions[key_length - query_length :, None],
        bidirectional=bidirectional,
        num_buckets=table.num_embeddings,
        max_distance=max_distance,
    )
    # (T, S, H) -> (1, H, T, S). Contiguous: the fused kernel takes twice as long with a strided bias.
    return table(buckets).permute(2, 0, 1)[None].contiguous()


class T5Attention(nn.Module):
    """Multi-head attention without biases and without the scale 1/sqrt(K).

    That factor is part of the initial scale of q instead (Mesh TensorFlow, the code of Raffel et al. 2020).
    """

    def __init__(self, config: T5Config, has_relative_attention_bias: bool = False):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias: nn.Embedding | None = None  # read by the stack, see T5Encoder
        if has_relative_attention_bias:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, config.num_heads)
        self.softmax = Softmax()
        self.dropout = AttentionDropout(config.dropout_rate)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> 2 x (B, H, S, K)"""
        return split_heads(self.k(states), self.num_heads), split_heads(self.v(states), self.num_heads)

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attend from `hidden`, (N * B, T, D), to B rows of keys; the N beams of a source share its row.

        Raises:
            ValueError: the rows of `hidden` are not a multiple of those of the keys.
        """
        rows, sources = hidden.shape[0], key.shape[0]
        if rows % sources:
            raise ValueError(f"{rows} decoder rows for {sources} sources, expected as many or a multiple")
        query = self.q(hidden)  # (N * B, T, H * K)
        per_source = query.unflatten(0, (sources, -1)).flatten(1, 2)  # (B, N * T, H * K)
        mixed = self.attend(split_heads(per_source, self.num_heads), key, value, bias)  # (B, H, N * T, K)
        return self.o(merge_heads(mixed).reshape(query.shape))  # (N * B, T, D)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Per-head q, k, v -> per-head outputs, (B, H, T, K)."""
        return attend(query, key, value, bias=bias, scale=1.0, softmax=self.softmax, dropout=self.dropout)


class T5DenseActDense(nn.Module):
    """Feed-forward layer: activation(wi) in v1.0, activation(wi_0) * wi_1 in v1.1 (Shazeer 2020)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.is_gated = bool(config.is_gated_act)
        if self.is_gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.act = ACTIVATIONS[str(config.dense_act_fn)]()

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, F) -> (B, T, D)."""
        if self.is_gated:
            hidden = self.act(self.wi_0(hidden)) * self.wi_1(hidden)
        else:
            hidden = self.act(self.wi(hidden))
        return apply_outside_float16(self.wo, self.dropout(hidden))


# T5 was trained in bfloat16, whose range is that of float32. Two things exceed the range of float16 (65504):
# the sums of `wo`, and the residual stream. `load_model` therefore keeps the weight of `wo` in float32, and
# the next two functions do the rest. In all other types they change nothing.


def apply_outside_float16(wo: nn.Linear, hidden: Tensor) -> Tensor:
    """Compute `wo(hidden)`, (B, T, F) -> (B, T, D), in float32 if everything else is float16."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return wo(hidden.to(wo.weight.dtype))
    if torch.get_autocast_dtype(device) != torch.float16:
        return wo(hidden)
    with torch.autocast(device, enabled=False):
        return wo(hidden.to(wo.weight.dtype))


def clamp_overflow(hidden: Tensor) -> Tensor:
    """Clamp float16 infinities to 1000 below the largest number, as transformers does; same shape."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(torch.float16).max
    bound = torch.where(hidden.isinf().any(), largest - 1000, largest)  # `if` would synchronize with the GPU
    return hidden.clamp(-bound, bound)


class T5LayerSelfAttention(nn.Module):
    """Pre-norm self-attention, added to the residual stream."""

    def __init__(self, config: T5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_relative_attention_bias)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, position_bias: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). The bias, (1 or B, H, T, S), includes the mask."""
        normed = self.layer_norm(hidden)
        key, value = self.SelfAttention.keys_values(normed)
        if cache is not None:
            key, value = cache.append(key, value)
        return hidden + self.dropout(self.SelfAttention(normed, key, value, position_bias))


class T5LayerCrossAttention(nn.Module):
    """Pre-norm attention to the encoder's output, added to the residual stream."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.EncDecAttention = T5Attention(config)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self, hidden: Tensor, source: Tensor, bias: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """(N * B, T, D) -> (N * B, T, D). The source is (B, S, D), and the bias its mask, (B, 1, 1, S)."""
        normed = self.layer_norm(hidden)
        if cache is None:
            key, value = self.EncDecAttention.keys_values(source)  # (B, H, S, K)
        else:
            if cache.cross is None:  # computed once; contiguous, since every step reads them
                key, value = self.EncDecAttention.keys_values(source)
                cache.cross = key.contiguous(), value.contiguous()
            key, value = cache.cross
        return hidden + self.dropout(self.EncDecAttention(normed, key, value, bias))


class T5LayerFF(nn.Module):
    """Pre-norm feed-forward layer, added to the residual stream."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = T5DenseActDense(config)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return hidden + self.dropout(self.DenseReluDense(self.layer_norm(hidden)))


class EncoderBlock(nn.Module):
    """Self-attention, feed-forward layer."""

    def __init__(self, config: T5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList(
            [T5LayerSelfAttention(config, has_relative_attention_bias), T5LayerFF(config)]
        )

    def forward(self, hidden: Tensor, position_bias: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D). The bias, (1 or B, H, S, S), includes the mask."""
        self_attention, feed_forward = self.layer
        hidden = clamp_overflow(self_attention(hidden, position_bias))
        return clamp_overflow(feed_forward(hidden))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to the source, feed-forward layer."""

    def __init__(self, config: T5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList(
            [
                T5LayerSelfAttention(config, has_relative_attention_bias),
                T5LayerCrossAttention(config),
                T5LayerFF(config),
            ]
        )

    def forward(
        self,
        hidden: Tensor,
        position_bias: Tensor,
        source: Tensor,
        source_bias: Tensor | None,
        cache: LayerCache | None,
    ) -> Tensor:
        """(N * B, T, D) -> (N * B, T, D), with the source (B, S, D) and additive biases."""
        self_attention, cross_attention, feed_forward = self.layer
        hidden = clamp_overflow(self_attention(hidden, position_bias, cache))
        hidden = clamp_overflow(cross_attention(hidden, source, source_bias, cache))
        return clamp_overflow(feed_forward(hidden))


class T5Encoder(nn.Module):
    """Source ids -> one vector per token, (B, S, D)."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.block: Any = nn.ModuleList(  # Any: mypy infers nn.Module for its items
            EncoderBlock(config, layer == 0 or config.bias_in_every_block)
            for layer in range(config.num_layers)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """See `T5ForConditionalGeneration.encode`: (B, S) -> (B, S, D)."""
        check_ids(input_ids, self.config.vocab_size)
        length = input_ids.shape[1]
        max_distance = self.config.relative_attention_max_distance
        hidden = self.dropout(self.embed_tokens(input_ids))  # (B, S, D)
        mask = attention_mask_bias(attention_mask, length, length, causal=False, like=hidden)  # (B, 1, 1, S)

        for block in self.block:
            table = block.layer[0].SelfAttention.relative_attention_bias
            if table is not None:  # T5: in block 0, and all blocks share its bias; uMT5: in every block
                bias = relative_position_bias(table, length, length, max_distance, bidirectional=True)
                position_bias = bias if mask is None else bias + mask  # (1 or B, H, S, S)
            hidden = block(hidden, position_bias)
        return self.dropout(self.final_layer_norm(hidden))


class T5Decoder(nn.Module):
    """Target ids so far and the encoder's output -> one vector per target token, (N * B, T, D)."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        depth = config.num_decoder_layers or config.num_layers
        self.block: Any = nn.ModuleList(  # Any: mypy infers nn.Module for its items
            DecoderBlock(config, layer == 0 or config.bias_in_every_block) for layer in range(depth)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        decoder_input_ids: Tensor | None,
        encoder_output: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(N * B, T) ids -> (N * B, T, D). Arguments: see `T5ForConditionalGeneration.decode`.

        Raises:
            ValueError: `decoder_input_ids` are None, or an id is outside of the vocabulary.
        """
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids are missing: for training pass model.shift_right(labels)")
        past_length = cache.length if cache is not None else 0
        check_ids(decoder_input_ids, self.config.vocab_size, past_length)
        query_length = decoder_input_ids.shape[1]
        key_length = past_length + query_length
        max_distance = self.config.relative_attention_max_distance
        hidden = self.dropout(self.embed_tokens(decoder_input_ids))  # (N * B, T, D)
        mask = attention_mask_bias(decoder_attention_mask, query_length, key_length, causal=True, like=hidden)
        source_bias = attention_mask_bias(
            attention_mask, 1, encoder_output.shape[1], causal=False, like=hidden
        )

        for layer, block in enumerate(self.block):
            table = block.layer[0].SelfAttention.relative_attention_bias
            if table is not None:  # as in the encoder
                bias = relative_position_bias(
                    table, query_length, key_length, max_distance, bidirectional=False
                )
                position_bias = bias if mask is None else bias + mask  # (1 or N * B, H, T, T so far)
            layer_cache = cache.layer(layer) if cache is not None else None
            hidden = block(hidden, position_bias, encoder_output, source_bias, layer_cache)
        if cache is not None:
            cache.advance(query_length)
        return self.dropout(self.final_layer_norm(hidden))


class T5ForConditionalGeneration(nn.Module, CheckpointMixin):
    """Encoder, decoder and head. Both stacks share one embedding; in v1.0 it is the head's matrix too."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.generation_config: dict[str, Any] | None = None
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Encoder(config, self.shared)
        self.decoder = T5Decoder(config, self.shared)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.tie_weights()
        self.reset_parameters()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next target token at every decoder position.

        Args:
            input_ids: (B, S) the source's token ids.
            attention_mask: (B, S), 1 for tokens and 0 for padding on either side.
            decoder_input_ids: (B, T) the target shifted right, see `shift_right`.
            decoder_attention_mask: (B, T), rarely needed: the causal mask hides right padding anyway.
            cache: filled; continue with `decode`.

        Returns:
            (B, T, V)

        Raises:
            ValueError: no decoder_input_ids, or an id outside of the vocabulary.
        """
        encoder_output = self.encode(input_ids, attention_mask)
        return self.decode(decoder_input_ids, encoder_output, attention_mask, decoder_attention_mask, cache)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, S) ids -> (B, S, D). A mask (B, S, S) is one per query, for packed sequences."""
        return self.encoder(input_ids, attention_mask)

    def decode(self, *inputs: Any, **options: Any) -> Tensor:
        """Logits, (N * B, T, V), from the encoder's output.

        Args:
            decoder_input_ids: (N * B, T); with a cache, the new tokens only. N consecutive rows, such as the
                beams of a search, share a source.
            encoder_output: (B, S, D) from `encode`. With a cache it is read by the first call only.
            attention_mask: (B, S), the source's; or (B, T, S), one per query.
            decoder_attention_mask: (N * B, T so far), rarely needed; or (B, T, T), one per query.
            cache: read and extended; see KVCache.
        """
        return self.lm_head(self.decode_hidden(*inputs, **options))

    def decode_hidden(self, *inputs: Any, **options: Any) -> Tensor:
        """`decode` without the head: (N * B, T, D)."""
        hidden = self.decoder(*inputs, **options)
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5  # a tied embedding is sqrt(D) times larger
        return hidden

    def last_hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """`forward` without the head, (B, T, D), for logits at selected positions only."""
        encoder_output = self.encode(input_ids, attention_mask)
        return self.decode_hidden(decoder_input_ids, encoder_output, attention_mask, decoder_attention_mask)

    def shift_right(self, labels: Tensor) -> Tensor:
        """Labels (B, T) -> decoder_input_ids (B, T): prepend the start token, drop the last label.

        The -100 of padded labels becomes the pad id.

        Raises:
            ValueError: the config has no `decoder_start_token_id` or `pad_token_id`.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            missing = "decoder_start_token_id" if start is None else "pad_token_id"
            raise ValueError(f"config.json has no {missing}; T5 uses 0, the pad token, for both")
        shifted = labels.roll(1, dims=-1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == -100, pad)

    def tie_weights(self) -> None:
        """Make the head's matrix the embedding's, (V, D), if the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize as published (Mesh TensorFlow; the head of v1.1 as in T5X)."""
        config, factor = self.config, self.config.initializer_factor
        if not config.tie_word_embeddings:
            self.lm_head.weight.normal_(0.0, factor * config.d_model**-0.5)
        self.shared.weight.normal_(0.0, factor)
        for module in self.modules():
            if isinstance(module, T5Attention):
                module.q.weight.normal_(0.0, factor * (config.d_model * config.d_kv) ** -0.5)  # has 1/sqrt(K)
                module.k.weight.normal_(0.0, factor * config.d_model**-0.5)
                module.v.weight.normal_(0.0, factor * config.d_model**-0.5)
                module.o.weight.normal_(0.0, factor * (config.num_heads * config.d_kv) ** -0.5)
                if module.relative_attention_bias is not None:
                    module.relative_attention_bias.weight.normal_(0.0, factor * config.d_model**-0.5)
            elif isinstance(module, T5DenseActDense):
                for weight in module.parameters():
                    weight.normal_(0.0, factor * weight.shape[1] ** -0.5)
