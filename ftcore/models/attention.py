"""Attention, as T5 and GPT-2 share it. Read this page first.

The letters of every shape comment in this project:

    B  rows of the batch       T  query positions       S  key positions
    D  model width             H  heads                 K  width of one head
    F  feed-forward width      V  vocabulary
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Softmax(nn.Module):
    """Scores in, attention weights out: a module of its own, so that both can be recorded and changed.

    Under half precision both are float32, as in the published models.
    """

    def forward(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)  # (B, H, T, S)


def attend(
    query: Tensor,  # (B, H, T, K)
    key: Tensor,  # (B, H, S, K)
    value: Tensor,  # (B, H, S, K)
    *,
    bias: Tensor | None = None,  # added to the scores, broadcasts to (B, H, T, S)
    causal: bool = False,  # hide the future; for T == S, instead of a bias that would say the same
    scale: float,
    softmax: nn.Module,
    dropout: nn.Dropout,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1): (B, H, T, K).

    The fused kernel never builds the (T, S) matrix; the textbook lines do, and run exactly when somebody
    watches `softmax` (see `is_hooked`). Both compute scores and softmax in float32 under half precision.
    """
    if not is_hooked(softmax):
        dropout_p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, bias, dropout_p, causal, scale=scale)

    with torch.autocast(query.device.type, enabled=False):  # it would round the scores to half precision
        scores = at_least_float32(query) @ at_least_float32(key).transpose(-2, -1) * scale  # (B, H, T, S)
    if causal:
        bias = attention_mask_bias(None, *scores.shape[-2:], causal=True, like=scores)
    if bias is not None:
        scores = scores + bias
    weights = dropout(softmax(scores))
    return weights.to(value.dtype) @ value


def is_hooked(softmax: nn.Module) -> bool:
    """Whether anybody has put a hook on this module, or a module of their own in its place."""
    return type(softmax) is not Softmax or has_hooks(softmax)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or behind this module, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def at_least_float32(states: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def attention_mask_bias(
    attention_mask: Tensor
    | None,  # (B, S) 1 for a token, 0 for padding; or (B, T, S), for each query its own
    query_length: int,
    key_length: int,
    *,
    causal: bool,
    like: Tensor,
) -> Tensor | None:
    """What may not be looked at, as numbers to add to the scores: 0 or -inf, (1 or B, 1, 1 or T, S).

    None when everything may be looked at. Dtype and device are those of `like`. The last query stands at
    the last key, so a cache needs no further word.

    A query that would see nothing (a padding token before the text) is let see everything: nobody reads
    its output, and a softmax over nothing would be NaN.

    Raises:
        ValueError: the mask is not as long as the keys.
    """
    if attention_mask is not None and attention_mask.shape[-1] != key_length:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} positions, expected {key_length} "
            "(with a cache: those in it and the new ones)"
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
