"""GPT-2 (Radford et al. 2019), top to bottom.

Module and parameter names are those of the published checkpoints in Hugging Face's format, so loading is a
plain `load_state_dict`. Shape letters: see attention.py. Configuration: GPT2Config in config.py.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.models.attention import (
    AttentionDropout,
    Softmax,
    attend,
    attention_mask_bias,
    merge_heads,
    split_heads,
)
from ftcore.models.cache import KVCache, LayerCache
from ftcore.models.config import ACTIVATIONS, CheckpointMixin, GPT2Config, check_ids


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), the transpose of nn.Linear's, as in GPT-2's files."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out), with leading shape unchanged."""
        flat = torch.addmm(self.bias, inputs.flatten(0, -2), self.weight)
        return flat.unflatten(0, inputs.shape[:-1])


class GPT2Attention(nn.Module):
    """Causal multi-head self-attention; one matrix computes q, k and v, in this order."""

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
        self.attn_dropout = AttentionDropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor, bias: Tensor | None, cache: LayerCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D). Additive `bias` as in `attention_mask_bias`; None: causal."""
        qkv = self.c_attn(hidden).chunk(3, dim=-1)  # 3 x (B, T, D)
        query, key, value = (split_heads(states, self.num_heads) for states in qkv)  # (B, H, T, K)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, H, S, K)
        mixed = attend(
            query,
            key,
            value,
            bias=bias,
            causal=query.shape[2] > 1 and bias is None,
            scale=self.scale,
            softmax=self.softmax,
            dropout=self.attn_dropout,
        )
        return self.resid_dropout(self.c_proj(merge_heads(mixed)))  # (B, T, D)


class GPT2MLP(nn.Module):
    """Feed-forward layer."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = Conv1D(config.n_embd, inner)
        self.c_proj = Conv1D(inner, config.n_embd)
        self.act = ACTIVATIONS[config.activation_function]()
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, F) -> (B, T, D)."""
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden))))


class GPT2Block(nn.Module):
    """Pre-norm attention and feed-forward layer, each added to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, hidden: Tensor, bias: Tensor | None, cache: LayerCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D). Bias and cache go to the attention."""
        hidden = hidden + self.attn(self.ln_1(hidden), bias, cache)
        return hidden + self.mlp(self.ln_2(hidden))


class GPT2Model(nn.Module):
    """Embeddings, blocks and final norm: token ids -> the input of the head, (B, T, D)."""

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
        """(B, T) ids -> (B, T, D). Arguments and ValueErrors: see `GPT2LMHeadModel.forward`."""
        past_length = cache.length if cache is not None else 0
        check_ids(input_ids, self.config.vocab_size, past_length)
        query_length = input_ids.shape[1]
        key_length = past_length + query_length
        if key_length > self.config.n_positions:
            raise ValueError(
                f"{key_length} tokens, but n_positions is {self.config.n_positions}: cut the input"
            )
        embedded = self.wte(input_ids)  # (B, T, D)
        bias = None  # not needed without padding: `attend` has a flag for the causal mask
        if attention_mask is not None or (past_length > 0 and query_length > 1):
            bias = attention_mask_bias(attention_mask, query_length, key_length, causal=True, like=embedded)
        if position_ids is None:
            position_ids = self._position_ids(attention_mask, past_length, query_length, input_ids.device)
        hidden = self.drop(embedded + self.wpe(position_ids))

        for layer, block in enumerate(self.h):
            hidden = block(hidden, bias, cache.layer(layer) if cache is not None else None)
        if cache is not None:
            cache.advance(query_length)
        return self.ln_f(hidden)

    @staticmethod
    def _position_ids(
        attention_mask: Tensor | None, past_length: int, query_length: int, device: torch.device
    ) -> Tensor:
        """Count tokens but not padding, so that left padding does not shift the positions: (1 or B, T)."""
        if attention_mask is None:
            return torch.arange(past_length, past_length + query_length, device=device)[None]
        if attention_mask.dim() == 3:
            raise ValueError("position_ids are missing: a mask (B, T, S) does not define positions")
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -query_length:]


class GPT2LMHeadModel(nn.Module, CheckpointMixin):
    """GPT-2 with its language-modelling head, tied to the token embedding."""

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
            attention_mask: (B, S) over cached and new positions, 1 for tokens and 0 for padding on either
                side; or (B, T, S), one mask per query, for packed sequences.
            position_ids: (B, T); counted from the attention mask by default, without padding.
            cache: read and extended; see KVCache.

        Returns:
            (B, T, V)

        Raises:
            ValueError: more than `n_positions` positions, an id outside of the vocabulary, or a mask
                (B, T, S) without position ids.
        """
        return self.lm_head(self.last_hidden(input_ids, attention_mask, position_ids, cache))

    def last_hidden(self, *inputs: Any, **options: Any) -> Tensor:
        """`forward` without the head, (B, T, D), for logits at selected positions only."""
        return self.transformer(*inputs, **options)

    def tie_weights(self) -> None:
        """Make the head's matrix the token embedding's, (V, D), if the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Radford et al. 2019, section 2.3: projections into the residual stream start smaller."""
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                shrink = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj") else 1.0
                module.weight.normal_(0.0, std / shrink)
