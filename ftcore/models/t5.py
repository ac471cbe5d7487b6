"""T5 (Raffel et al. 2020), top to bottom: encoder, decoder, head.

Covers T5 v1.0 (relu, tied and scaled head), v1.1 (gated gelu, a head of its own) and all that share one of
these layouts, and through their own configurations mT5 and uMT5. Module and parameter names are those of the
published checkpoints in Hugging Face's format, so loading is a plain `load_state_dict`. Shape letters: see
attention.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ftcore.models.activations import ACTIVATIONS
from ftcore.models.attention import (
    Softmax,
    at_least_float32,
    attend,
    attention_mask_bias,
    merge_heads,
    split_heads,
)
from ftcore.models.cache import KVCache, LayerCache
from ftcore.models.config import Config
from ftcore.models.embedding import check_ids
from ftcore.models.relative_position import relative_position_bias


@dataclass(kw_only=True)
class T5Config(Config):
    """The keys of T5's config.json that matter to its computation; the defaults are T5-small."""

    model_type: ClassVar[str] = "t5"
    architecture: ClassVar[str] = "T5ForConditionalGeneration"
    is_encoder_decoder: ClassVar[bool] = True
    other_names: ClassVar[dict[str, str]] = Config.other_names | {
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }
    bias_in_every_block: ClassVar[bool] = False  # else the first block's table of position biases serves all

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64  # K: num_heads * d_kv need not be d_model
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None  # None for as many as the encoder has
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"  # or "gated-gelu": gelu_new(wi_0) * wi_1; "gated-silu" and so on
    dense_act_fn: str | None = None  # the same in two keys, as newer files say it: "gelu_new"
    is_gated_act: bool | None = None  # and true
    tie_word_embeddings: bool = True
    # Multiply the decoder's output by 1/sqrt(D) before the head. Files that do not say so do it unless
    # their head is untied (None).
    scale_decoder_outputs: bool | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "T5Config":
        """See `Config.from_dict`."""
        if "feed_forward_proj" not in values and values.keys() & {"dense_act_fn", "is_gated_act"}:
            gate = "gated-" if values.get("is_gated_act") else ""
            values = values | {"feed_forward_proj": f"{gate}{values.get('dense_act_fn') or 'relu'}"}
        return super().from_dict(values, where)

    def __post_init__(self) -> None:
        self.require_positive("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        self.require_positive("num_decoder_layers")
        self.require_probability("dropout_rate")
        self._settle_feed_forward()
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4:
            raise ValueError(f"relative_attention_num_buckets is {buckets}, expected at least 4")
        if distance <= buckets // 2:  # the decoder gives that many distances a bucket each
            raise ValueError(f"relative_attention_max_distance is {distance}, expected above {buckets // 2}")
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings

    def _settle_feed_forward(self) -> None:
        """Read `dense_act_fn` and `is_gated_act` off `feed_forward_proj`; those in the file have to agree."""
        function = self.feed_forward_proj.removeprefix("gated-")
        gated = function != self.feed_forward_proj
        # The published v1.1 models mean gelu's tanh approximation; a few later ones ask for the exact one.
        functions = ["gelu_new", "gelu"] if gated and function == "gelu" else [function]
        if self.dense_act_fn is not None:
            self.require_activation("dense_act_fn", self.dense_act_fn)
        self.require_activation("feed_forward_proj", function)
        self.dense_act_fn = self.dense_act_fn or functions[0]
        self.is_gated_act = gated if self.is_gated_act is None else self.is_gated_act
        for key, agreeing in (("dense_act_fn", functions), ("is_gated_act", [gated])):
            if getattr(self, key) not in agreeing:
                proj = f"feed_forward_proj is {self.feed_forward_proj!r}"
                raise ValueError(f"{key} is {getattr(self, key)!r}, but {proj}; remove one of them")


@dataclass(kw_only=True)
class MT5Config(T5Config):
    """mT5 (Xue et al. 2021): v1.1 for many languages. It never scales, whatever its files say of tying."""

    model_type: ClassVar[str] = "mt5"
    architecture: ClassVar[str] = "MT5ForConditionalGeneration"

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    decoder_start_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scale_decoder_outputs = False


@dataclass(kw_only=True)
class UMT5Config(MT5Config):
    """uMT5 (Chung et al. 2023): mT5 with position biases of its own in every block. It always scales."""

    model_type: ClassVar[str] = "umt5"
    architecture: ClassVar[str] = "UMT5ForConditionalGeneration"
    bias_in_every_block: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scale_decoder_outputs = True


class T5LayerNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019): scales by the root mean square, no mean and no bias."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        mean_square = at_least_float32(hidden).square().mean(-1, keepdim=True)  # squares overflow float16
        hidden = hidden * torch.rsqrt(mean_square + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden = hidden.to(self.weight.dtype)
        return self.weight * hidden


class T5Attention(nn.Module):
    """Multi-head attention without biases and, unlike everybody else's, without division by sqrt(K).

    T5 folds that factor into the initial scale of q (Raffel et al. 2020's code, Mesh TensorFlow).
    """

    def __init__(self, config: T5Config, has_relative_attention_bias: bool = False):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias: nn.Embedding | None = None
        if has_relative_attention_bias:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, config.num_heads)
        self.softmax = Softmax()
        self.dropout = nn.Dropout(config.dropout_rate)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> two of (B, H, S, K)"""
        return split_heads(self.k(states), self.num_heads), split_heads(self.v(states), self.num_heads)

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Queries from `hidden` (N * B, T, D) look at B rows of keys: N beams of a source share its row."""
        query = split_heads(self.q(hidden), self.num_heads)  # (N * B, H, T, K)
        rows, beams = len(query), len(query) // len(key)
        if beams * len(key) != rows:
            raise ValueError(f"{rows} decoder rows for {len(key)} sources, expected as many or a multiple")
        mixed = self.attend(_fold_beams(query, beams), key, value, bias)  # (B, H, N * T, K)
        return self.o(merge_heads(_unfold_beams(mixed, rows)))  # (N * B, T, D)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Heads of queries, keys and values in, heads of what was found out: all (B, H, ..., K)."""
        return attend(query, key, value, bias=bias, scale=1.0, softmax=self.softmax, dropout=self.dropout)


def _fold_beams(query: Tensor, beams: int) -> Tensor:
    """(B * N, H, T, K) -> (B, H, N * T, K): the beams of a source are more queries of the same keys."""
    return query.unflatten(0, (-1, beams)).transpose(1, 2).flatten(2, 3) if beams > 1 else query


def _unfold_beams(mixed: Tensor, rows: int) -> Tensor:
    """(B, H, N * T, K) -> (B * N, H, T, K)"""
    beams = rows // len(mixed)
    return mixed.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1) if beams > 1 else mixed


class T5DenseActDense(nn.Module):
    """The feed-forward layer: activation(wi) in v1.0, activation(wi_0) * wi_1 in v1.1 (Shazeer 2020)."""

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
        if self.is_gated:
            hidden = self.act(self.wi_0(hidden)) * self.wi_1(hidden)  # (B, T, F)
        else:
            hidden = self.act(self.wi(hidden))
        hidden = self.dropout(hidden)
        # The sums of `wo` are what overflows float16, so a float16 model keeps this matrix in float32, and
        # float16 autocast, which would cast it, is switched off for it.
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            if torch.get_autocast_dtype(device) != torch.float16:
                return self.wo(hidden)  # already in the type that it would be cast to
            with torch.autocast(device, enabled=False):
                return self.wo(hidden.to(self.wo.weight.dtype))
        return self.wo(hidden.to(self.wo.weight.dtype))


class T5LayerSelfAttention(nn.Module):
    def __init__(self, config: T5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_relative_attention_bias)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, position_bias: Tensor, cache: LayerCache | None = None) -> Tensor:
        normed = self.layer_norm(hidden)  # (B, T, D)
        key, value = self.SelfAttention.keys_values(normed)
        if cache is not None:
            key, value = cache.append(key, value)
        return hidden + self.dropout(self.SelfAttention(normed, key, value, position_bias))


class T5LayerCrossAttention(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.EncDecAttention = T5Attention(config)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self, hidden: Tensor, source: Tensor, bias: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        normed = self.layer_norm(hidden)  # (N * B, T, D)
        if cache is None:
            key, value = self.EncDecAttention.keys_values(source)
        else:
            if cache.cross is None:
                key, value = self.EncDecAttention.keys_values(source)
                cache.cross = key.contiguous(), value.contiguous()  # head by head, as every step reads them
            key, value = cache.cross
        return hidden + self.dropout(self.EncDecAttention(normed, key, value, bias))


class T5LayerFF(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = T5DenseActDense(config)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.dropout(self.DenseReluDense(self.layer_norm(hidden)))


class EncoderBlock(nn.Module):
    """Self-attention, feed-forward."""

    def __init__(self, config: T5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList(
            [T5LayerSelfAttention(config, has_relative_attention_bias), T5LayerFF(config)]
        )

    def forward(self, hidden: Tensor, position_bias: Tensor) -> Tensor:
        self_attention, feed_forward = self.layer
        hidden = clamp_overflow(self_attention(hidden, position_bias))
        return clamp_overflow(feed_forward(hidden))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the source, feed-forward."""

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
        self_attention, cross_attention, feed_forward = self.layer
        hidden = clamp_overflow(self_attention(hidden, position_bias, cache))
        hidden = clamp_overflow(cross_attention(hidden, source, source_bias, cache))
        return clamp_overflow(feed_forward(hidden))


def clamp_overflow(hidden: Tensor) -> Tensor:
    """Pull float16's infinities back into range: T5 was trained in bfloat16, whose range is larger."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(torch.float16).max
    bound = torch.where(hidden.isinf().any(), largest - 1000, largest)  # no branch: it would wait for CUDA
    return hidden.clamp(-bound, bound)


class T5Encoder(nn.Module):
    """The source's token ids in, one vector a token out."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            EncoderBlock(config, layer == 0 or config.bias_in_every_block)
            for layer in range(config.num_layers)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        check_ids(input_ids, self.config.vocab_size)
        length = input_ids.shape[1]
        hidden = self.dropout(self.embed_tokens(input_ids))  # (B, S, D)

        mask = attention_mask_bias(attention_mask, length, length, causal=False, like=hidden)  # (B, 1, 1, S)
        biases = position_biases(self, length, length, mask, bidirectional=True)
        for block, position_bias in zip(self.block, biases, strict=True):
            hidden = block(hidden, position_bias)
        return self.dropout(self.final_layer_norm(hidden))


class T5Decoder(nn.Module):
    """The target's ids so far and the encoder's output in, the vectors that predict the next ids out."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        depth = config.num_decoder_layers or config.num_layers
        self.block = nn.ModuleList(
            DecoderBlock(config, layer == 0 or config.bias_in_every_block) for layer in range(depth)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_output: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        query_positions: Tensor | None = None,  # (T,)
    ) -> Tensor:
        past_length = cache.length if cache is not None else 0
        check_ids(decoder_input_ids, self.config.vocab_size, past_length)
        query_length = decoder_input_ids.shape[1]
        key_length = past_length + query_length
        hidden = self.dropout(self.embed_tokens(decoder_input_ids))  # (B, T, D)

        mask = attention_mask_bias(decoder_attention_mask, query_length, key_length, causal=True, like=hidden)
        biases = position_biases(
            self, query_length, key_length, mask, bidirectional=False, query_positions=query_positions
        )
        source_bias = attention_mask_bias(
            attention_mask, 1, encoder_output.shape[1], causal=False, like=hidden
        )
        for layer, (block, position_bias) in enumerate(zip(self.block, biases, strict=True)):
            layer_cache = cache.layer(layer) if cache is not None else None
            hidden = block(hidden, position_bias, encoder_output, source_bias, layer_cache)
        if cache is not None:
            cache.advance(query_length)
        return self.dropout(self.final_layer_norm(hidden))


def position_biases(
    stack: T5Encoder | T5Decoder,
    query_length: int,
    key_length: int,
    mask: Tensor | None,
    *,
    bidirectional: bool,
    query_positions: Tensor | None = None,  # (T,)
) -> Iterator[Tensor]:
    """For each block in turn what its self-attention adds to the scores, (1 or B, H, T, S), mask included.

    T5 has one table, in the first block, and what is computed from it goes down to all blocks. In uMT5 each
    block has a table of its own.
    """
    max_distance = stack.config.relative_attention_max_distance
    for block in stack.block:
        table = cast(T5Attention, block.get_submodule("layer.0.SelfAttention")).relative_attention_bias
        if table is not None:
            bias = relative_position_bias(
                table,
                query_length,
                key_length,
                max_distance,
                bidirectional=bidirectional,
                query_positions=query_positions,
            )
            if mask is not None:
                bias = bias + mask
        yield bias


class T5ForConditionalGeneration(nn.Module):
    """Encoder, decoder and head; one embedding serves both stacks and, in v1.0, the head too."""

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
            attention_mask: (B, S), 1 for a token and 0 for padding on either side. For several texts in a
                row, `encode` and `decode` take masks (B, T, S) too: what each query may look at.
            decoder_input_ids: (B, T) the target behind `decoder_start_token_id`; see `shift_right`.
            decoder_attention_mask: (B, T), rarely needed: causality hides right padding by itself.
            cache: filled and read; to go on with it, call `decode`.

        Returns:
            (B, T, V)

        Raises:
            ValueError: no decoder_input_ids, or an id that the embedding does not have.
        """
        return self.lm_head(
            self.last_hidden(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, cache)
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The encoder's half: (B, S) ids -> (B, S, D)."""
        return self.encoder(input_ids, attention_mask)

    def decode(
        self,
        decoder_input_ids: Tensor,
        encoder_output: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The decoder's half: logits (N * B, T, V).

        Args:
            decoder_input_ids: (N * B, T); with a cache, the new tokens only. N rows in a row may share a
                source: the beams of one search, say.
            encoder_output: (B, S, D) from `encode`. With a cache it is read at the first call only.
            attention_mask: (B, S), the source's; or (B, T, S), what of it each query may look at.
            decoder_attention_mask: (N * B, T so far), rarely needed; or (B, T, T).
            cache: filled and read; see KVCache.
        """
        return self.lm_head(
            self.decode_hidden(
                decoder_input_ids, encoder_output, attention_mask, decoder_attention_mask, cache
            )
        )

    def last_hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What `lm_head` reads, (B, T, D): for those who want logits at a few positions only."""
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids are missing: for training pass model.shift_right(labels)")
        encoder_output = self.encode(input_ids, attention_mask)
        return self.decode_hidden(
            decoder_input_ids, encoder_output, attention_mask, decoder_attention_mask, cache
        )

    def decode_hidden(
        self,
        decoder_input_ids: Tensor,
        encoder_output: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        """`decode` without the head: (N * B, T, D).

        `query_positions` (T,) say where the new tokens stand, if not at the last keys.
        """
        hidden = self.decoder(
            decoder_input_ids, encoder_output, attention_mask, decoder_attention_mask, cache, query_positions
        )
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5  # the tied embedding is sqrt(D) times a head's size
        return hidden

    def shift_right(self, labels: Tensor) -> Tensor:
        """Labels (B, T) -> decoder_input_ids (B, T): the start token in front, the last label dropped.

        The -100 of padded labels becomes the pad id. Raises ValueError where the config lacks
        `decoder_start_token_id` or `pad_token_id`.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            missing = "decoder_start_token_id" if start is None else "pad_token_id"
            raise ValueError(f"config.json has no {missing}; T5 uses 0, the pad token, for both")
        shifted = labels.roll(1, dims=-1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == -100, pad)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (Mesh TensorFlow; the head of v1.1 as in T5X)."""
        config, factor = self.config, self.config.initializer_factor
        if not config.tie_word_embeddings:
            self.lm_head.weight.normal_(0.0, factor * config.d_model**-0.5)
        self.shared.weight.normal_(0.0, factor)
        for module in self.modules():
            if isinstance(module, T5Attention):
                # The 1/sqrt(K) that the forward pass lacks is in the size of q.
                module.q.weight.normal_(0.0, factor * (config.d_model * config.d_kv) ** -0.5)
                module.k.weight.normal_(0.0, factor * config.d_model**-0.5)
                module.v.weight.normal_(0.0, factor * config.d_model**-0.5)
                module.o.weight.normal_(0.0, factor * (config.num_heads * config.d_kv) ** -0.5)
                if module.relative_attention_bias is not None:
                    module.relative_attention_bias.weight.normal_(0.0, factor * config.d_model**-0.5)
            elif isinstance(module, T5DenseActDense):
                for name, linear in module.named_children():
                    if isinstance(linear, nn.Linear):
                        width = config.d_ff if name == "wo" else config.d_model
                        linear.weight.normal_(0.0, factor * width**-0.5)

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str], **options: Any) -> "T5ForConditionalGeneration":
        """See `ftcore.load_model`; here the checkpoint has to be a T5."""
        from ftcore.checkpoints.checkpoint import (
            load_as,  # models do not know files; the checkpoint knows models
        )

        return load_as(cls, directory, **options)

    def save_pretrained(self, directory: str | PathLike[str], **options: Any) -> None:
        """See `ftcore.save_model`."""
        from ftcore.checkpoints.checkpoint import save_model

        save_model(self, directory, **options)
