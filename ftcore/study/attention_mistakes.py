"""Mistakes in attention: each replaces a line of the textbook computation (see attention_call.py)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ftcore.models.attention import merge_heads, split_heads
from ftcore.study.attention_call import ALL_MASKED, LOWEST, AttentionCall, MaskedLine, fill

Change = Callable[[AttentionCall], AttentionCall]
Condition = Callable[[AttentionCall], bool]
Compute = Callable[[AttentionCall], Tensor]  # per-head outputs, (B, H, T, K)


@dataclass(frozen=True)
class AttentionMistake:
    """A known mistake: what is said of it, what it computes, and where it can be made."""

    name: str
    sentence: str  # {letters} stand for `AttentionCall.shapes`
    compute: Compute
    applies: Condition = lambda call: True


def attention_mistakes(max_distance: int) -> Iterator[AttentionMistake]:
    """All known mistakes; `max_distance` is that of T5's position bias."""
    yield from HEADS
    yield from SCALE
    for part in MASK_PARTS:
        yield from _mask(part)
    yield from _causal_mask()
    yield from _softmax()
    yield from _position_bias(max_distance)


def with_lines(change: Change = lambda call: call, **lines: Any) -> Compute:
    """Compute a changed call, or with other lines."""
    return lambda call: change(call).compute(**lines)


# ----------------------------------------------------------------------------------------------------- heads


def view_heads(states: Tensor, heads: int) -> Tensor:
    """(B, T, H * K) viewed as (B, H, T, K), without a transpose."""
    return states.reshape(len(states), heads, -1, states.shape[-1] // heads)


def view_merged(mixed: Tensor) -> Tensor:
    """(B, H, T, K) viewed as (B, T, H * K), without a transpose."""
    return mixed.reshape(len(mixed), mixed.shape[2], -1)


def split_width_first(states: Tensor, heads: int) -> Tensor:
    """(B, T, K * H) -> (B, H, T, K)"""
    return states.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)


def merge_width_first(mixed: Tensor) -> Tensor:
    """(B, H, T, K) -> (B, T, K * H)"""
    return mixed.permute(0, 2, 3, 1).flatten(2)


def with_heads(heads: Callable[[AttentionCall], int]) -> Compute:
    """Attention with another number of heads, hence another width, and its scale."""

    def compute(call: AttentionCall) -> Tensor:
        count, factor = heads(call), (heads(call) / call.shapes["H"]) ** 0.5
        scale = call.scale * factor if call.is_scaled else 1.0
        return replace(call, scale=scale).compute(split=lambda states, _: split_heads(states, count))

    return compute


def split_per_head(call: AttentionCall) -> AttentionCall:
    """q, k and v from a fused output that is split into heads first."""
    fused = torch.cat([merge_heads(states) for states in (call.query, call.key, call.value)], dim=-1)
    query, key, value = split_heads(fused, call.query.shape[1]).chunk(3, dim=-1)
    return replace(call, query=query, key=key, value=value)


def between_heads(merge: Callable[[Tensor], Tensor], *, causal: bool) -> Compute:
    """Attention over q, k and v (B, T, H, K), then `merge` of outputs that are taken for (B, H, T, K)."""

    def compute(call: AttentionCall) -> Tensor:
        query, key, value = (states.transpose(1, 2) for states in (call.query, call.key, call.value))
        heads = query.shape[2]
        visible = torch.ones(1, 1, heads, heads, dtype=torch.bool, device=query.device)
        visible = visible.tril() if causal else visible
        mixed = replace(call, query=query, key=key, value=value, visible=visible).compute()  # (B, T, H, K)
        return split_heads(merge(mixed.transpose(1, 2)), heads)

    return compute


VIEWED = (
    "q, k and v are viewed as ({B}, {H}, {T}, {K}) at once, so a head gets a piece of the text. "
    "View them as ({B}, {T}, {H}, {K}), then transpose(1, 2)."
)
EXCHANGED = "viewed as ({B}, {T}, {K}, {H}), width before heads; expected ({B}, {T}, {H}, {K})."

HEADS = (
    AttentionMistake("heads split without transpose", VIEWED, with_lines(split=view_heads)),
    AttentionMistake(
        "heads split without transpose",
        f"{VIEWED} Transpose back before you merge the heads, too.",
        with_lines(split=view_heads, merge=view_merged),
    ),
    AttentionMistake(
        "heads merged without transpose",
        "The heads' outputs, ({B}, {H}, {T}, {K}), are reshaped to ({B}, {T}, {D}) at once. "
        "First transpose(1, 2), so that the heads of a token are together.",
        with_lines(merge=view_merged),
    ),
    *(
        AttentionMistake("heads and width exchanged", f"{what} are {EXCHANGED}", with_lines(**lines))
        for what, lines in (
            ("q, k and v", {"split": split_width_first}),
            ("q, k, v and the outputs", {"split": split_width_first, "merge": merge_width_first}),
            ("The heads' outputs", {"merge": merge_width_first}),
        )
    ),
    AttentionMistake(
        "heads and width exchanged",
        "There are {K} heads of width {H}, expected {H} heads of width {K}: view as ({B}, {T}, {H}, {K}).",
        with_heads(lambda call: call.shapes["K"]),
        lambda call: not call.has_bias,
    ),
    AttentionMistake(
        "a single head",
        "One head of width {D} computes the scores. Split q, k and v into {H} heads of width {K}.",
        with_heads(lambda call: 1),
        lambda call: not call.has_bias,
    ),
    *(
        AttentionMistake(
            "attention between heads",
            "q, k and v are ({B}, {T}, {H}, {K}), so the scores compare the {H} heads of one token. "
            "transpose(1, 2) gives ({B}, {H}, {T}, {K}).",
            between_heads(merge, causal=causal),
            lambda call: call.is_square and not call.has_bias and not call.has_padding,
        )
        for causal, merge in product((False, True), (merge_heads, view_merged))
    ),
    AttentionMistake(
        "q, k, v split per head",
        "The 3 * {D} outputs are split into heads, and each head into q, k and v. The first {D} are q, then "
        "come k and v: chunk(3, dim=-1) first.",
        with_lines(split_per_head),
        lambda call: call.is_square,
    ),
)


# ----------------------------------------------------------------------------------------------------- scale


def scaled(letter: str, power: float) -> Compute:
    """Multiply the scale by a power of a size."""
    return with_lines(lambda call: replace(call, scale=call.scale * call.shapes[letter] ** power))


def bias_divided(call: AttentionCall) -> AttentionCall:
    """The position bias is added to the scores before both are divided by sqrt(K)."""
    if call.position_bias is None:
        return call
    factor = call.shapes["K"] ** -0.5
    return replace(call, scale=call.scale * factor, position_bias=call.position_bias * factor)


ONCE_TOO_OFTEN = (
    "The scores are divided by sqrt({K}) once too often. T5 does not divide them at all, but "
    "F.scaled_dot_product_attention does unless called with scale=1.0."
)

SCALE = (
    AttentionMistake(
        "missing 1/sqrt(d)",
        "The scores are not divided by sqrt({K}), the square root of the width of a head.",
        scaled("K", 0.5),
        lambda call: call.is_scaled,
    ),
    AttentionMistake("extra 1/sqrt(d)", ONCE_TOO_OFTEN, scaled("K", -0.5)),
    AttentionMistake("extra 1/sqrt(d)", ONCE_TOO_OFTEN, with_lines(bias_divided), lambda call: call.has_bias),
    AttentionMistake(
        "sqrt(D) for sqrt(d)",
        "The scores are divided by sqrt({D}), the width of all heads; expected sqrt({K}), that of one.",
        scaled("H", -0.5),
        lambda call: call.is_scaled,
    ),
    AttentionMistake(
        "extra 1/sqrt(D)",
        "The scores are divided by sqrt({D}), the width of all heads. T5 does not divide them.",
        scaled("D", -0.5),
        lambda call: not call.is_scaled,
    ),
    AttentionMistake(
        "multiplied by sqrt(d)",
        "The scores are multiplied by sqrt({K}).",
        with_lines(lambda call: replace(call, scale=call.shapes["K"] ** 0.5)),
    ),
    AttentionMistake(
        "scale after softmax",
        "The weights are divided by sqrt({K}) after softmax. Divide the scores before it.",
        lambda call: replace(call, scale=1.0).compute() * call.scale,
        lambda call: call.is_scaled,
    ),
)


# ----------------------------------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class MaskPart:
    """The causal mask, the padding mask or both: the keys visible by it, and by the other part."""

    name: str
    missing: str
    applies: Condition
    visible: Callable[[AttentionCall], Tensor]
    others: Callable[[AttentionCall], Tensor]


MASK_PARTS = (
    MaskPart(
        "causal mask",
        "Every position attends to the positions after it",
        lambda call: call.is_causal,
        lambda call: call.past(),
        lambda call: call.tokens,
    ),
    MaskPart(
        "padding mask",
        "Padding is attended to like text",
        lambda call: call.has_padding,
        lambda call: call.tokens,
        lambda call: call.past() if call.is_causal else torch.ones_like(call.visible),
    ),
    MaskPart(
        "mask",
        "Every position attends to all others and to padding",
        lambda call: call.is_causal and call.has_padding,
        lambda call: call.visible,
        lambda call: torch.ones_like(call.visible),
    ),
)


def add(visible: float, hidden: float) -> MaskedLine:
    """Add these numbers to the scores of visible and hidden keys."""
    return lambda scores, is_visible: scores + torch.where(is_visible, visible, hidden).to(scores)


def fill_with(hidden: float) -> MaskedLine:
    """Mask scores with another number than the lowest."""
    return lambda scores, is_visible: fill(scores, is_visible, hidden)


def _mask(part: MaskPart) -> Iterator[AttentionMistake]:
    def alone(call: AttentionCall) -> AttentionCall:
        """A line for the mask applies to this part; the other is right."""
        return call.masked_by(part.visible(call), part.others(call))

    def multiplied_last(call: AttentionCall) -> AttentionCall:
        """What this part hides is 0, although the other part has hidden it before."""
        visible = part.visible(call)
        return call.masked_by(visible, part.others(call) | ~visible)

    def reversed_part(call: AttentionCall) -> AttentionCall:
        return call.masked_by(~part.visible(call) & part.others(call))

    def mistake(name: str, sentence: str, change: Change = alone, **lines: Any) -> AttentionMistake:
        return AttentionMistake(f"{part.name} {name}", sentence, with_lines(change, **lines), part.applies)

    still = "so that hidden keys still get weight"
    missing = f"{part.missing}: no mask, or a number too small to hide anything, such as -1e-9 for -1e9."
    yield mistake("missing", missing, mask=add(0, 0))
    yield mistake("missing", missing, mask=add(0, -1e-9))
    for visible, hidden in ((1, 0), (0, 1)):
        sentence = f"{visible} for visible and {hidden} for hidden keys is added to the scores, {still}. "
        yield mistake("added as 0/1", f"{sentence}Fill their scores with -inf.", mask=add(visible, hidden))
    zero = (
        "Hidden scores are 0 (multiplied by the mask, or filled with 0 or -1e-9), and exp(0) = 1, so hidden "
        "keys still get weight. Fill their scores with -inf."
    )
    yield mistake("multiplied", zero, mask=fill_with(0))
    yield mistake("multiplied", zero, mask=fill_with(-1e-9))
    yield mistake("multiplied", zero, multiplied_last, mask=fill_with(0))
    for small in (-1e-4, -10.0):
        yield mistake(
            "too small", f"{small:g} is added to hidden scores, {still}. Use -inf.", mask=add(0, small)
        )
    for small in (-1e-4, -10.0, -1.0):
        yield mistake("too small", f"Hidden scores are {small:g}, {still}. Use -inf.", mask=fill_with(small))
    yield mistake(
        "after softmax",
        "Weights are masked after softmax, so that they no longer sum to 1. Mask the scores before it.",
        mask=add(0, 0),
        softmax=lambda scores, visible: scores.softmax(dim=-1) * visible,
    )
    sentence = (
        "Visible keys are hidden, and hidden ones visible. masked_fill hides where its mask is True, "
        "F.scaled_dot_product_attention where it is False."
    )
    for lines in ALL_MASKED:
        yield mistake("reversed", sentence, reversed_part, **lines)


def _causal_mask() -> Iterator[AttentionMistake]:
    def shifted(ahead: int, **lines: MaskedLine) -> Compute:
        return with_lines(lambda call: call.masked_by(call.past(ahead) & call.tokens), **lines)

    off_by_one = {1: "A position attends to the next one.", -1: "A position does not attend to itself."}
    for (ahead, sentence), lines in product(off_by_one.items(), ALL_MASKED):
        compute = shifted(ahead, **lines)
        yield AttentionMistake("causal mask off by one", sentence, compute, lambda call: call.is_causal)
    yield AttentionMistake(
        "causal mask reversed",
        "A position attends to itself and to those after it (triu), expected those before it (tril).",
        with_lines(lambda call: call.masked_by(call.past().mT & call.tokens)),
        lambda call: call.is_causal and call.is_square,
    )
    yield AttentionMistake(
        "causal mask where none belongs",
        "Positions do not attend to later ones, as they do in an encoder and in attention to the source.",
        with_lines(lambda call: call.masked_by(torch.ones_like(call.visible).tril() & call.visible)),
        lambda call: not call.is_causal and call.shapes["T"] > 1,
    )


# --------------------------------------------------------------------------------------------------- softmax


def _softmax() -> Iterator[AttentionMistake]:
    def softmax_over(axis: int) -> MaskedLine:
        return lambda scores, visible: scores.softmax(axis)

    axes = {"queries": (-2, "{T} queries"), "heads": (1, "{H} heads"), "the batch": (0, "{B} rows")}
    for (name, (axis, over)), hidden in product(axes.items(), (-math.inf, LOWEST, -1e4)):
        yield AttentionMistake(
            f"softmax over {name}",
            f"Softmax runs over the {over} (dim={axis}), expected the {{S}} keys (dim=-1).",
            with_lines(mask=add(0, hidden), softmax=softmax_over(axis)),
        )


# --------------------------------------------------------------------------------------- T5's position bias


def bias_transposed(call: AttentionCall) -> AttentionCall:
    """Exchange queries and keys in the position bias."""
    return replace(call, position_bias=None if call.position_bias is None else call.position_bias.mT)


def _position_bias(max_distance: int) -> Iterator[AttentionMistake]:
    def buckets(bidirectional: bool) -> Compute:
        return with_lines(lambda call: call.with_buckets(max_distance, bidirectional=bidirectional))

    def shifted(ahead: int) -> Compute:
        return with_lines(
            lambda call: call.with_buckets(max_distance, bidirectional=not call.is_causal, ahead=ahead)
        )

    yield AttentionMistake(
        "position bias missing",
        "T5's relative position bias has no effect: it is not added to the scores (all blocks share the "
        "table of the first), or the distances to earlier keys have the wrong sign.",
        with_lines(lambda call: replace(call, position_bias=None)),
        lambda call: call.has_bias,
    )
    sentence = "The encoder splits the buckets between both directions, the decoder uses all for the past."
    yield AttentionMistake(
        "encoder's buckets in the decoder",
        sentence,
        buckets(bidirectional=True),
        lambda call: call.table is not None and call.is_causal,
    )
    yield AttentionMistake(
        "decoder's buckets in the encoder",
        sentence,
        buckets(bidirectional=False),
        lambda call: call.table is not None and not call.is_causal,
    )
    yield AttentionMistake(
        "position bias transposed",
        "The distances have the wrong sign: expected the key's position minus the query's.",
        with_lines(bias_transposed),
        lambda call: call.has_bias and call.is_square and not call.is_causal,  # else without effect
    )
    for ahead in (1, -1):
        yield AttentionMistake(
            "position bias off by one",
            f"The distance from a query to its own position is {ahead}, expected 0.",
            shifted(ahead),
            lambda call: call.table is not None,
        )
