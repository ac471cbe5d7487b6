"""One call of attention, computed as in the textbook, so that a mistake can replace one line of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ftcore.models.attention import at_least_float32, merge_heads, split_heads
from ftcore.models.t5 import relative_position_bias
from ftcore.study.recording import Call

MaskedLine = Callable[[Tensor, Tensor], Tensor]  # scores and visible keys, (B, H, T, S) -> scores or weights
LOWEST = torch.finfo(torch.float32).min


def fill(scores: Tensor, visible: Tensor, masked: float = LOWEST) -> Tensor:
    """Mask scores, (B, H, T, S), where `visible` is False."""
    return scores.masked_fill(~visible, masked)


def softmax_over_keys(scores: Tensor, visible: Tensor) -> Tensor:
    """Masked scores, (B, H, T, S) -> attention weights, (B, H, T, S)."""
    return scores.softmax(dim=-1)


def zero_if_all_masked(scores: Tensor, visible: Tensor) -> Tensor:
    """The softmax of F.scaled_dot_product_attention, (B, H, T, S): zeros in fully masked rows."""
    return scores.softmax(dim=-1).nan_to_num(0.0)


fill_inf = partial(fill, masked=-math.inf)
# A query that sees no key: NaN, the mean of all values, or zeros.
ALL_MASKED: tuple[dict[str, MaskedLine], ...] = (
    {"mask": fill_inf},
    {"mask": fill},
    {"mask": fill_inf, "softmax": zero_if_all_masked},
)


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one scaled dot-product attention, with the mask split into its parts."""

    query: Tensor  # (B, H, T, K)
    key: Tensor  # (B, H, S, K)
    value: Tensor  # (B, H, S, K)
    visible: Tensor  # (1 or B, 1, T, S), True where a query attends
    position_bias: Tensor | None  # (1, H, T, S); if its table is known, also at masked positions
    table: nn.Embedding | None  # of T5's position bias
    scale: float
    others: Tensor | None = None  # keys that are visible by another part of the mask, like `visible`

    def compute(
        self,
        *,
        split: Callable[[Tensor, int], Tensor] = split_heads,
        mask: MaskedLine = fill,
        softmax: MaskedLine = softmax_over_keys,
        merge: Callable[[Tensor], Tensor] = merge_heads,
    ) -> Tensor:
        """Per-head outputs, (B, H, T, K). A mistake replaces one of the lines."""
        heads = self.query.shape[1]
        query, key, value = (split(merge_heads(part), heads) for part in (self.query, self.key, self.value))
        scores = at_least_float32(query) @ at_least_float32(key).mT * self.scale  # (B, H, T, S)
        if self.position_bias is not None:
            scores = scores + self.position_bias
        scores = mask(scores, self.visible)
        if self.others is not None:
            scores = fill(scores, self.others)
        weights = softmax(scores, self.visible)
        return split_heads(merge(weights.to(value.dtype) @ value), heads)

    def masked_by(self, visible: Tensor, others: Tensor | None = None) -> "AttentionCall":
        """The same call with another mask, broadcastable to (B, H, T, S)."""
        return replace(self, visible=visible.expand_as(self.visible), others=others)

    @property
    def shapes(self) -> dict[str, int]:
        """The sizes by their letters, and D = H * K."""
        batch, heads, queries, width = self.query.shape
        keys, all_heads = self.key.shape[2], heads * width
        return {"B": batch, "H": heads, "T": queries, "S": keys, "K": width, "D": all_heads}

    @property
    def is_scaled(self) -> bool:
        """Whether the scores are multiplied by something else than 1."""
        return self.scale != 1

    @property
    def is_square(self) -> bool:
        """Whether there are as many queries as keys."""
        return self.query.shape == self.key.shape

    @property
    def has_bias(self) -> bool:
        """Whether a position bias is added to the scores."""
        return self.position_bias is not None

    @property
    def tokens(self) -> Tensor:
        """(1 or B, 1, 1, S), False for padding: keys that the last query does not attend to."""
        return self.visible[:, :, -1:]

    @property
    def has_padding(self) -> bool:
        """Whether the mask hides keys from all queries."""
        return not bool(self.tokens.all())

    @property
    def is_causal(self) -> bool:
        """Whether the mask hides later tokens from a query."""
        return bool((~self.past() & ~self.visible & self.tokens).any())

    def past(self, ahead: int = 0) -> Tensor:
        """The causal mask, (1 or B, 1, T, S): True for keys up to `ahead` positions after the query."""
        queries, keys = self.visible.shape[-2:]
        return torch.ones_like(self.visible).tril(keys - queries + ahead)

    def with_buckets(self, max_distance: int, *, bidirectional: bool, ahead: int = 0) -> "AttentionCall":
        """The position bias with the buckets of T5's encoder (bidirectional) or decoder.

        Args:
            max_distance: of the table.
            ahead: is added to all distances from query to key.
        """
        queries, keys = self.visible.shape[-2:]
        more = abs(ahead)  # a larger bias, cut at one side
        bias = relative_position_bias(
            cast(nn.Embedding, self.table),
            queries + more,
            keys + more,
            max_distance,
            bidirectional=bidirectional,
        )
        rows, columns = (0, more) if ahead > 0 else (more, 0)
        return replace(
            self, position_bias=bias[:, :, rows : rows + queries, columns : columns + keys].to(self.query)
        )


def parse_sdpa(
    tables: list[Call],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> AttentionCall:
    """The arguments of F.scaled_dot_product_attention, (B, H, T, K); `tables` are calls of embeddings."""
    visible = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    if is_causal:
        visible = visible.tril()
    bias, table = None, None
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        unmasked = attn_mask if is_bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
        visible = visible & unmasked[:, :1]  # the same in all heads
        if not is_bool and attn_mask.masked_fill(~unmasked, 0.0).any():
            bias, table = _position_bias(tables, attn_mask, unmasked)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return AttentionCall(query, key, value, visible, bias, table, scale)


def _position_bias(tables: list[Call], mask: Tensor, unmasked: Tensor) -> tuple[Tensor, nn.Embedding | None]:
    """The position bias in an additive mask, and its table if one of the recorded calls produced it."""
    for call in tables:
        if call.value is not None and call.value.dim() == 3:
            bias = call.value.permute(2, 0, 1)[None]  # (T, S, H) -> (1, H, T, S)
            if bias.shape[1:] == mask.shape[1:] and torch.where(unmasked, bias == mask, True).all():
                return bias, cast(nn.Embedding, call.module)
    # A bias that is masked in one row of the batch may be visible in another.
    bias = mask.masked_fill(~unmasked, -math.inf).amax(0, keepdim=True)
    return bias.masked_fill(bias == -math.inf, 0.0), None
