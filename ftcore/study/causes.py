"""Likely causes of a divergence: known mistakes, each tried on the reference.

A hypothesis makes one mistake in the reference: other weights, another output of a module, another attention
(see fault_injection.py). If the difference from `mine` vanishes, it yields a Cause; if none does, no cause is
reported. To add a hypothesis, write a function and list it in HYPOTHESES.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.models.config import ACTIVATIONS
from ftcore.study.fault_injection import VANISHES, AttentionCall, Divergence
from ftcore.study.recording import Call, dotted
from ftcore.study.report import Cause, difference, display_name

NORMS = ("LayerNorm", "RMSNorm")
AS_GOOD = 10  # a cause that leaves more than this times the difference of the best one is dropped


def likely_causes(divergence: Divergence) -> list[Cause]:
    """The confirmed causes, best first, each name once. Usually one or none."""
    found = [cause for hypothesis in HYPOTHESES for cause in hypothesis(divergence)]
    found.sort(key=lambda cause: cause.after)
    best: dict[str, Cause] = {}
    for cause in found:
        best.setdefault(cause.name, cause)
    rounding = max((row.tolerance for _, row in divergence.observed.values()), default=0.0) / AS_GOOD
    return [cause for cause in best.values() if cause.after <= max(AS_GOOD * found[0].after, rounding)]


def attention(divergence: Divergence) -> Iterator[Cause]:
    """Mistakes in the arguments of attention: scale, masks, position bias."""
    calls = divergence.attentions
    if not calls:
        return
    width = calls[0].query.shape[-1]
    mistakes: list[tuple[str, str, Callable[[AttentionCall], AttentionCall]]] = [
        (
            "missing 1/sqrt(d)",
            f"The scores are not divided by sqrt({width}), the square root of the width of a head.",
            lambda right: replace(right, scale=right.scale * width**0.5),
        ),
        (
            "extra 1/sqrt(d)",
            f"The scores are divided by sqrt({width}) once too often. T5 does not divide them at all, but "
            "F.scaled_dot_product_attention does unless called with scale=1.0.",
            lambda right: replace(right, scale=right.scale / width**0.5),
        ),
    ]
    if any(call.is_causal for call in calls):
        sentence = "Every position attends to the positions after it."
        mistakes.append(("causal mask missing", sentence, AttentionCall.without_causal_mask))
        shifts = {1: "A position attends to the next one.", -1: "A position does not attend to itself."}
        for ahead, sentence in shifts.items():
            for masked in (torch.finfo(torch.float32).min, -math.inf):  # differ in fully masked rows
                shift = partial(AttentionCall.with_causal_mask, ahead=ahead, masked=masked)
                mistakes.append(("causal mask off by one", sentence, shift))
    if any(call.padding.any() for call in calls):
        sentence = "Padding is attended to like text."
        mistakes.append(("padding mask missing", sentence, AttentionCall.without_padding_mask))
    if any(call.position_bias is not None for call in calls):
        sentence = (
            "T5's relative position bias is not added to the scores. All blocks share the table of the first."
        )
        without = partial(replace, position_bias=None)
        mistakes.append(("position bias missing", sentence, without))
        configs = (getattr(part, "config", part) for part in divergence.reference.modules())
        distances = (getattr(config, "relative_attention_max_distance", None) for config in configs)
        max_distance = next(filter(None, distances), 128)
        sentence = (
            "The encoder splits the buckets between both directions, the decoder uses all for the past."
        )
        with_buckets = partial(AttentionCall.with_buckets, max_distance=max_distance)
        mistakes += [
            ("encoder's buckets in the decoder", sentence, partial(with_buckets, bidirectional=True)),
            ("decoder's buckets in the encoder", sentence, partial(with_buckets, bidirectional=False)),
        ]
    for name, sentence, change in mistakes:
        yield from divergence.try_mistake(name, sentence, attention=change)


def transposed_weight(divergence: Divergence) -> Iterator[Cause]:
    transposed = {
        dotted(name, "weight"): weight.reshape(weight.shape[::-1]).T
        for name, part in divergence.leaves.items()
        if (weight := _matrix(part)) is not None
    }
    sentence = ": nn.Linear stores (out, in), GPT-2's Conv1D stores (in, out)."
    yield from _in_one_or_all(divergence, "transposed weight", sentence, transposed)


def order_of_q_k_v(divergence: Divergence) -> Iterator[Cause]:
    for name, part in divergence.modules.items():
        for order in list(permutations("qkv"))[1:]:
            if weights := _reordered(name, part, order):
                yield from divergence.try_mistake(
                    "q, k, v in another order",
                    f"Expected q, k, v; mine has {', '.join(order)}.",
                    weights=weights,
                )


def activation_function(divergence: Divergence) -> Iterator[Cause]:
    functions = {name: ACTIVATIONS[name]() for name in ("relu", "silu", "tanh", "gelu", "gelu_new")}
    for right, function in functions.items():
        names = [name for name in divergence.leaves if _computes(divergence.calls.get(name), function)]
        for wrong in functions if names else ():
            if wrong != right:
                yield from divergence.try_mistake(
                    f"{wrong} for {right}",
                    f"The activation function is {wrong}, expected {right}. gelu_new is "
                    'nn.GELU(approximate="tanh"); T5\'s "gated-gelu" uses it too.',
                    outputs=dict.fromkeys(names, functions[wrong]),
                )


def norms(divergence: Divergence) -> Iterator[Cause]:
    for right in NORMS:
        parts = {name: part for name, part in divergence.leaves.items() if _norm_name(part) == right}
        if not parts:
            continue
        own_eps = _epsilon(next(iter(parts.values())))
        for wrong, eps in product(NORMS, (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)):
            if (wrong, eps) != (right, own_eps):
                norm = partial(_norm, kind=wrong, eps=eps)
                yield from divergence.try_mistake(
                    "another epsilon" if wrong == right else f"{wrong} for {right}",
                    f"The norm is {wrong} with eps near {eps:g}, expected {right} with {own_eps:g}.",
                    outputs={name: partial(norm, part=part) for name, part in parts.items()},
                )


def missing_bias(divergence: Divergence) -> Iterator[Cause]:
    zeros = {
        dotted(name, "bias"): torch.zeros_like(bias)
        for name, part in divergence.leaves.items()
        if isinstance(bias := getattr(part, "bias", None), Tensor)
    }
    yield from _in_one_or_all(divergence, "bias missing", " is not added.", zeros)


def positions(divergence: Divergence) -> Iterator[Cause]:
    for name, part in divergence.leaves.items():
        if isinstance(part, nn.Embedding) and name.endswith("wpe"):
            yield from divergence.try_mistake(
                "positions ignore left padding",
                "Positions are counted from the left edge, expected from the first token.",
                outputs={name: partial(_embed_from_left_edge, table=part)},
            )


def head(divergence: Divergence) -> Iterator[Cause]:
    for name, part in divergence.leaves.items():
        if not (isinstance(part, nn.Linear) and name.endswith("lm_head")):
            continue
        weight, width = dotted(name, "weight"), part.in_features
        yield from divergence.try_mistake(
            "unscaled head",
            f"The decoder's output is not multiplied by 1/sqrt({width}) before the tied head.",
            weights={weight: part.weight * width**0.5},
        )
        yield from divergence.try_mistake(
            "extra scale before the head",
            f"The output is multiplied by 1/sqrt({width}) before the head, as only T5 v1.0 does.",
            weights={weight: part.weight * width**-0.5},
        )
        mine = divergence.observed[name][0].module.weight if name in divergence.observed else None
        if not _is_embedding(part.weight, divergence.reference):
            for embedding in _embeddings(divergence.reference, part.weight.shape):
                yield from divergence.try_mistake(
                    "tied head",
                    "The head is the token embedding, expected a separate matrix.",
                    weights={weight: embedding},
                )
        elif isinstance(mine, Tensor) and not _is_embedding(mine, divergence.mine):
            yield from divergence.try_mistake(
                "untied head",
                "The head is a separate matrix, expected the token embedding.",
                weights={weight: mine},
            )


def dropout_left_on(divergence: Divergence) -> Iterator[Cause]:
    """Undone in mine instead: its random numbers cannot be reproduced in the reference."""
    values = divergence.mine_without_dropout()
    for name, (my_call, row) in divergence.observed.items():
        after = divergence.relative_difference(values.get(my_call.name), divergence.calls[name].value)
        if after <= row.tolerance and after < row.relative * VANISHES:
            sentence = "Mine applies dropout. Call eval(), and pass F.dropout its argument `training`."
            evidence = f"the relative difference is {row.relative:.1e}, and {after:.1e} without dropout"
            yield divergence.cause("dropout left on", sentence, row, after, evidence)
            return


def half_precision(divergence: Divergence) -> Iterator[Cause]:
    """Its rounding would explain any small difference: all values must be representable in half precision."""
    name, (my_call, row) = next(iter(divergence.observed.items()))
    mine, right = my_call.value, divergence.calls[name].value
    if mine is None or right is None or not right.is_floating_point():
        return
    for half in (torch.bfloat16, torch.float16):
        coarser = torch.finfo(half).eps / torch.finfo(right.dtype).eps
        if coarser > 1 and _is_representable(mine, half) and not _is_representable(right, half):
            after = divergence.relative_difference(mine, right.to(half))
            if after <= row.tolerance * coarser:
                kind, expected = (str(dtype).removeprefix("torch.") for dtype in (half, right.dtype))
                yield divergence.cause(
                    "half precision",
                    f"It is computed in {kind}, expected {expected}.",
                    row,
                    after,
                    f"all {mine.numel()} values of {display_name(name)} are representable in {kind}",
                )


HYPOTHESES: tuple[Callable[[Divergence], Iterator[Cause]], ...] = (
    attention,
    transposed_weight,
    order_of_q_k_v,
    activation_function,
    norms,
    missing_bias,
    positions,
    head,
    dropout_left_on,
    half_precision,
)


def _in_one_or_all(
    divergence: Divergence, name: str, sentence: str, weights: dict[str, Tensor]
) -> Iterator[Cause]:
    """Try a mistake in each of these parameters alone, then in all; `sentence` follows their names."""
    subsets = [{key: weight} for key, weight in weights.items()]
    for subset in [*subsets, weights] if len(weights) > 1 else subsets:
        first, *others = subset
        names = f"{first} and {len(others)} more" if others else first
        yield from divergence.try_mistake(name, f"{names}{sentence}", weights=subset)


def _matrix(part: nn.Module) -> Tensor | None:
    """The weight of a linear layer; None for other modules."""
    weight = getattr(part, "weight", None)
    is_matrix = isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(part, nn.Embedding)
    return cast(Tensor, weight) if is_matrix else None


def _embed_from_left_edge(ids: Tensor, table: nn.Embedding) -> Tensor:
    return table.weight[: ids.shape[-1]].expand(*ids.shape, -1)


def _reordered(name: str, part: nn.Module, order: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters of q, k and v in another order; empty if the module has none."""
    if all(isinstance(getattr(part, letter, None), nn.Linear) for letter in "qkv"):  # T5: three matrices
        return {
            dotted(name, position, "weight"): getattr(part, letter).weight
            for position, letter in zip("qkv", order, strict=True)
        }
    weight = _matrix(part)
    if weight is None or 3 * min(weight.shape) != max(weight.shape):
        return {}
    weights = {}
    for key, parameter in part.named_parameters(recurse=False):  # GPT-2: one matrix, one bias
        axis = parameter.shape.index(max(weight.shape))
        thirds = dict(zip("qkv", parameter.chunk(3, dim=axis), strict=True))
        weights[dotted(name, key)] = torch.cat([thirds[letter] for letter in order], dim=axis)
    return weights


def _computes(call: Call | None, function: nn.Module) -> bool:
    """Whether a call equals this function up to rounding. gelu and gelu_new differ by 5e-4."""
    given = None if call is None else call.main_input
    if call is None or call.value is None or given is None or not given.is_floating_point():
        return False
    if call.value.shape != given.shape:
        return False
    return difference(call.value, function(given.detach())).relative <= 16 * torch.finfo(given.dtype).eps


def _epsilon(norm: nn.Module) -> float | None:
    return getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def _norm_name(part: nn.Module) -> str | None:
    """One of NORMS; None for other modules."""
    weight = getattr(part, "weight", None)
    if _epsilon(part) is None or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    return "LayerNorm" if isinstance(part, nn.LayerNorm) else "RMSNorm"


def _norm(hidden: Tensor, part: Any, kind: str, eps: float) -> Tensor:
    if kind == "RMSNorm":
        return F.rms_norm(hidden, part.weight.shape, part.weight, eps)
    return F.layer_norm(hidden, part.weight.shape, part.weight, getattr(part, "bias", None), eps)


def _embeddings(module: nn.Module, shape: torch.Size) -> list[Tensor]:
    """The distinct embedding tables of this shape."""
    tables = [part.weight for part in module.modules() if isinstance(part, nn.Embedding)]
    return list({id(table): table for table in tables if table.shape == shape}.values())


def _is_embedding(weight: Tensor, module: nn.Module) -> bool:
    return any(torch.equal(weight, table) for table in _embeddings(module, weight.shape))


def _is_representable(values: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values.to(dtype).to(values.dtype), values)
