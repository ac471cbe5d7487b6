"""Attention, shared by T5 and GPT-2. Read this file first.

Shape letters, used in every shape comment of the project:

    B  batch size        T  query positions     S  key positions
    D  model width       H  heads               K  width per head
    F  feed-forward width                       V  vocabulary size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Softmax(nn.Module):
    """Scores -> attention weights, as a module, so that hooks can record and change both.

    Scores and weights are float32 under half precision, as in the published models.
    """

    def forward(self, scores: Tensor) -> Tensor:
        """(B, H, T, S) -> (B, H, T, S), each row a distribution over the keys."""
        return scores.softmax(dim=-1)


class AttentionDropout(nn.Dropout):
    """Dropout on the attention weights, (B, H, T, S)."""


def attend(
    query: Tensor,  # (B, H, T, K)
    key: Tensor,  # (B, H, S, K)
    value: Tensor,  # (B, H, S, K)
    *,
    bias: Tensor | None = None,  # added to the scores, broadcastable to (B, H, T, S)
    causal: bool = False,  # causal mask without a bias; requires T == S
    scale: float,
    softmax: nn.Module,
    dropout: nn.Dropout,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1): (B, H, T, K).

    The fused kernel never materializes the (T, S) matrix. The explicit computation does; it runs if
    `softmax` or `dropout` is hooked or replaced. Both use float32 scores and softmax under half precision.
    """
    if can_fuse(softmax, dropout):
        dropout_p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, bias, dropout_p, causal, scale=scale)

    with torch.autocast(query.device.type, enabled=False):  # autocast would round the scores
        scores = at_least_float32(query) @ at_least_float32(key).transpose(-2, -1) * scale  # (B, H, T, S)
    if causal:
        bias = attention_mask_bias(None, *scores.shape[-2:], causal=True, like=scores)
    if bias is not None:
        scores = scores + bias
    weights = dropout(softmax(scores))
    return weights.to(value.dtype) @ value


def can_fuse(softmax: nn.Module, dropout: nn.Module) -> bool:
    """Whether the fused kernel may stand in for both modules: neither is hooked or replaced."""
    return is_plain(softmax, Softmax) and is_plain(dropout, AttentionDropout)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module computes what its class says: neither another class, nor hooked or patched."""
    return type(module) is kind and "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has forward or backward hooks."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def at_least_float32(states: Tensor) -> Tensor:
    """Widen half precision to float32; tensors of float32 and float64 are returned unchanged."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def attention_mask_bias(
    attention_mask: Tensor | None,  # (B, S), 1 for tokens and 0 for padding; or (B, T, S), one mask per query
    query_length: int,
    key_length: int,
    *,
    causal: bool,
    like: Tensor,
) -> Tensor | None:
    """Additive attention mask: 0 = visible, -inf = masked; (1 or B, 1, 1 or T, S), or None if all is visible.

    The last query is aligned with the last key, so the same call covers decoding with a cache. Fully masked
    queries are left unmasked, since softmax over -inf alone is NaN; their output is unused. Dtype and device
    are those of `like`.

    Raises:
        ValueError: the mask does not cover the keys.
    """
    if attention_mask is not None and attention_mask.shape[-1] != key_length:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} positions, expected {key_length} "
            "(with a cache: the cached positions and the new ones)"
        )
    visible = None
    if causal and query_length > 1:
        visible = torch.ones(query_length, key_length, dtype=torch.bool, device=like.device)
        visible = visible.tril(key_length - query_length)[None, None]  # (1, 1, T, S)
    if attention_mask is not None:
        tokens = attention_mask.bool()
        tokens = tokens[:, None] if tokens.dim() == 3 else tokens[:, None, None]  # (B, 1, 1 or T, S)
        visible = tokens if visible is None else visible & tokens
        visible = visible | ~visible.any(dim=-1, keepdim=True)
    if visible is None:
        return None
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, float("-inf"))


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """(B, T, H * K) -> (B, H, T, K)"""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """(B, H, T, K) -> (B, T, H * K)"""
    return states.transpose(1, 2).flatten(2)
