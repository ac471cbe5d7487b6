"""GPT-2 (Radford et al. 2019), top to bottom.

Module and parameter names are those of the published checkpoints in Hugging Face's format, so loading is a
plain `load_state_dict`. Shape letters: see attention.py.
"""

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ftcore.models.activations import ACTIVATIONS
from ftcore.models.attention import Softmax, attend, attention_mask_bias, merge_heads, split_heads
from ftcore.models.cache import KVCache, LayerCache
from ftcore.models.config import Config
from ftcore.models.embedding import check_ids


@dataclass(kw_only=True)
class GPT2Config(Config):
    """The keys of GPT-2's config.json that matter to its computation; the defaults are GPT-2 small."""

    model_type: ClassVar[str] = "gpt2"
    architecture: ClassVar[str] = "GPT2LMHeadModel"
    is_encoder_decoder: ClassVar[bool] = False
    other_names: ClassVar[dict[str, str]] = Config.other_names | {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the feed-forward layer, None for 4 * n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True  # divide scores by sqrt(K)
    scale_attn_by_inverse_layer_idx: bool = False  # and by the layer's number, from 1
    # Asks for scores in float32 under half precision. Both ways of attention.py always do that.
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "GPT2Config":
        """See `Config.from_dict`."""
        if (
            "n_ctx" in values
        ):  # OpenAI's name; where both are there, it was often left behind and nobody reads it
            values = {"n_positions": values["n_ctx"]} | values
        return super().from_dict(values, where)

    def __post_init__(self) -> None:
        self.require_positive("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        if self.n_inner is not None:
            self.require_positive("n_inner")
        self.require_probability("resid_pdrop", "embd_pdrop", "attn_pdrop")
        self.require_activation("activation_function", self.activation_function)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, which {self.n_head} heads (n_head) do not divide")
        if self.add_cross_attention:
            raise ValueError("add_cross_attention is true, but GPT-2 with cross-attention is not supported")


class Conv1D(nn.Module):
    """A linear layer with its weight stored (in, out), nn.Linear's transpose, as GPT-2's files have it."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, inputs.flatten(0, -2), self.weight)
        return flat.unflatten(0, inputs.shape[:-1])


class GPT2Attention(nn.Module):
    """Causal multi-head self-attention with q, k and v from one matrix, in that order."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        width = config.n_embd
        self.num_heads = config.n_head
        self.scale = (width // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)
        self.softmax = Softmax()
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor, bias: Tensor | None, cache: LayerCache | None) -> Tensor:
        qkv = self.c_attn(hidden).chunk(3, dim=-1)  # 3 x (B, T, D)
        query, key, value = (split_heads(states, self.num_heads) for states in qkv)  # (B, H, T, K)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, H, S, K)
        mixed = attend(
            query,
            key,
            value,
            bias=bias,
            causal=query.shape[2] > 1 and bias is None,  # in this order a bool, also to a compiler
            scale=self.scale,
            softmax=self.softmax,
            dropout=self.attn_dropout,
        )
        return self.resid_dropout(self.c_proj(merge_heads(mixed)))  # (B, T, D)


class GPT2MLP(nn.Module):
    """The feed-forward layer: widen, activate, narrow."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = Conv1D(config.n_embd, inner)
        self.c_proj = Conv1D(inner, config.n_embd)
        self.act = ACTIVATIONS[config.activation_function]()
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden))))  # (B, T, D) -> (B, T, F) -> (B, T, D)


class GPT2Block(nn.Module):
    """Attention and feed-forward, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, hidden: Tensor, bias: Tensor | None, cache: LayerCache | None) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden), bias, cache)
        return hidden + self.mlp(self.ln_2(hidden))


class GPT2Model(nn.Module):
    """Embeddings, blocks, final norm: token ids in, the vectors that the head reads out."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        past_length = cache.length if cache is not None else 0
        check_ids(input_ids, self.config.vocab_size, past_length)
        query_length = input_ids.shape[1]
        key_length = past_length + query_length
        if key_length > self.config.n_positions:
            raise ValueError(
                f"{key_length} tokens, but n_positions is {self.config.n_positions}: cut the input"
            )

        hidden = self.wte(input_ids)  # (B, T, D)
        bias = None  # without padding the kernel's own causal mask will do, and one new token sees all
        if attention_mask is not None or (past_length > 0 and query_length > 1):
            bias = attention_mask_bias(attention_mask, query_length, key_length, causal=True, like=hidden)
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, past_length)
        hidden = self.drop(hidden + self.wpe(position_ids))

        for layer, block in enumerate(self.h):
            hidden = block(hidden, bias, cache.layer(layer) if cache is not None else None)
        if cache is not None:
            cache.advance(query_length)
        return self.ln_f(hidden)

    @staticmethod
    def _positions(input_ids: Tensor, attention_mask: Tensor | None, past_length: int) -> Tensor:
        """Positions count tokens, not padding: a text means the same however far left padding pushed it."""
        query_length = input_ids.shape[1]
        if attention_mask is not None and attention_mask.dim() == 3:
            raise ValueError("a mask (B, T, S) does not say where a text begins: pass position_ids too")
        if attention_mask is None:
            return torch.arange(past_length, past_length + query_length, device=input_ids.device)[None]
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -query_length:]  # (B, T)


class GPT2LMHeadModel(nn.Module):
    """GPT-2 with its language-modelling head, which is the token embedding again."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.generation_config: dict[str, Any] | None = None
        self.transformer = GPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self.reset_parameters()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            input_ids: (B, T) token ids; with a cache, the new tokens only.
            attention_mask: (B, S) over all positions so far, 1 for a token and 0 for padding on either side.
                For several texts in a row, (B, T, S): what each query may look at.
            position_ids: (B, T); by default counted from the attention mask, so padding takes no position.
            cache: filled and read; see KVCache.

        Returns:
            (B, T, V)

        Raises:
            ValueError: more positions than `n_positions`, an id that the embedding does not have, or a mask
                (B, T, S) without position ids.
        """
        return self.lm_head(self.last_hidden(input_ids, attention_mask, position_ids, cache))

    def last_hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What `lm_head` reads, (B, T, D): for those who want logits at a few positions only."""
        return self.transformer(input_ids, attention_mask, position_ids, cache)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Radford et al. 2019, section 2.3: what writes to the residual stream starts smaller."""
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                shrink = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj") else 1.0
                module.weight.normal_(0.0, std / shrink)

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str], **options: Any) -> "GPT2LMHeadModel":
        """See `ftcore.load_model`; here the checkpoint has to be a GPT-2."""
        from ftcore.checkpoints.checkpoint import (
            load_as,  # models do not know files; the checkpoint knows models
        )

        return load_as(cls, directory, **options)

    def save_pretrained(self, directory: str | PathLike[str], **options: Any) -> None:
        """See `ftcore.save_model`."""
        from ftcore.checkpoints.checkpoint import save_model

        save_model(self, directory, **options)
