"""What the mistake probably is: hypotheses, each tried out on the first module that diverges.

A hypothesis says which mistake would make the reference compute what `mine` computes. It is tried by making
exactly that mistake in the reference (see trial.py): other weights, another output of one of its modules, or
another attention. Where the difference vanishes, the cause is found; where no hypothesis makes it vanish, no
cause is named.

A hypothesis is a function that yields the causes it confirms. To add one, write it and list it in HYPOTHESES.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.models.config import ACTIVATIONS
from ftcore.study.recording import Call, dotted
from ftcore.study.report import Cause, difference, shown
from ftcore.study.trial import VANISHES, Attention, Suspect

AS_GOOD = 10  # a cause that leaves this many times more than the best one is only near it


def likely_causes(suspect: Suspect) -> list[Cause]:
    """The causes that make the difference vanish, the best first; each name once. Usually one or none."""
    found = [cause for hypothesis in HYPOTHESES for cause in hypothesis(suspect)]
    found.sort(key=lambda cause: cause.after)
    best: dict[str, Cause] = {}
    for cause in found:
        best.setdefault(cause.name, cause)
    rounding = max((row.tolerance for _, row in suspect.observed.values()), default=0.0) / AS_GOOD
    return [cause for cause in best.values() if cause.after <= max(AS_GOOD * found[0].after, rounding)]


# ------------------------------------------------------------------------------------------------- hypotheses


def attention_scale(suspect: Suspect) -> Iterator[Cause]:
    if not suspect.attentions:
        return
    width = suspect.attentions[0].query.shape[-1]
    yield from suspect.explains(
        "missing 1/sqrt(d)",
        f"The scores are not divided by sqrt({width}), the square root of the width of a head.",
        attention=lambda right: replace(right, scale=right.scale * width**0.5),
    )
    yield from suspect.explains(
        "extra 1/sqrt(d)",
        f"The scores are divided by sqrt({width}) once too often. T5 does not divide them at all, and "
        "F.scaled_dot_product_attention does unless it is given scale=1.0.",
        attention=lambda right: replace(right, scale=right.scale / width**0.5),
    )


def transposed_weight(suspect: Suspect) -> Iterator[Cause]:
    turned = {
        dotted(name, "weight"): weight.reshape(weight.shape[::-1]).T
        for name, part in suspect.leaves.items()
        if (weight := _matrix(part)) is not None
    }
    for names in _each_and_all(turned):
        yield from suspect.explains(
            "transposed weight",
            f"{_listed(names)}: nn.Linear stores (out, in), GPT-2's Conv1D stores (in, out).",
            weights={name: turned[name] for name in names},
        )


def order_of_q_k_v(suspect: Suspect) -> Iterator[Cause]:
    for name, part in suspect.surroundings.items():
        for order in list(permutations("qkv"))[1:]:
            if weights := _reordered(name, part, order):
                yield from suspect.explains(
                    "q, k, v in another order",
                    f"Where q, k, v belong, mine has {', '.join(order)}.",
                    weights=weights,
                )


def activation_function(suspect: Suspect) -> Iterator[Cause]:
    curves = {name: ACTIVATIONS[name]() for name in ("relu", "silu", "tanh", "gelu", "gelu_new")}
    for right, curve in curves.items():
        those = [name for name in suspect.leaves if _computes(suspect.calls.get(name), curve)]
        for wrong in curves if those else ():
            if wrong != right:
                yield from suspect.explains(
                    f"{wrong} for {right}",
                    f"The activation function is {wrong}, expected {right}. gelu_new is "
                    'nn.GELU(approximate="tanh"); in T5 "gated-gelu" means it.',
                    outputs=dict.fromkeys(those, curves[wrong]),
                )


def norms(suspect: Suspect) -> Iterator[Cause]:
    for right in _NORMS:
        those = {name: part for name, part in suspect.leaves.items() if _norm_name(part) == right}
        if not those:
            continue
        own = _epsilon(next(iter(those.values())))
        for wrong, norm in _NORMS.items():
            for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0):
                if wrong != right or eps != own:
                    yield from suspect.explains(
                        "another epsilon" if wrong == right else f"{wrong} for {right}",
                        f"The norm is {wrong} with an eps near {eps:g}, expected {right} with {own:g}.",
                        outputs={name: partial(norm, part=part, eps=eps) for name, part in those.items()},
                    )


def masks(suspect: Suspect) -> Iterator[Cause]:
    if any(attention.is_causal for attention in suspect.attentions):
        yield from suspect.explains(
            "causal mask missing",
            "Every position sees the positions after it.",
            attention=Attention.without_causal_mask,
        )
        for ahead, sentence in (
            (1, "A position sees the next one."),
            (-1, "A position does not see itself."),
        ):
            for hidden in (torch.finfo(torch.float32).min, -math.inf):  # tells where nothing is visible
                yield from suspect.explains(
                    "causal mask off by one",
                    sentence,
                    attention=partial(Attention.with_causal_mask, ahead=ahead, hidden=hidden),
                )
    if any(attention.padding.any() for attention in suspect.attentions):
        yield from suspect.explains(
            "padding mask missing",
            "Padding is looked at as if it were text.",
            attention=Attention.without_padding_mask,
        )


def position_bias(suspect: Suspect) -> Iterator[Cause]:
    if all(attention.position_bias is None for attention in suspect.attentions):
        return
    yield from suspect.explains(
        "position bias missing",
        "The scores lack T5's relative position bias. The table of the first block serves all blocks.",
        attention=lambda right: replace(right, position_bias=None),
    )
    holders = (getattr(part, "config", part) for part in suspect.reference.modules())
    distances = (getattr(holder, "relative_attention_max_distance", None) for holder in holders)
    max_distance = next(filter(None, distances), 128)
    for bidirectional, name in (
        (True, "encoder's buckets in the decoder"),
        (False, "decoder's buckets in the encoder"),
    ):
        yield from suspect.explains(
            name,
            "The encoder halves the buckets between the two directions, the decoder gives all to the past.",
            attention=partial(Attention.with_buckets, max_distance=max_distance, bidirectional=bidirectional),
        )


def missing_bias(suspect: Suspect) -> Iterator[Cause]:
    biases = {
        dotted(name, "bias"): torch.zeros_like(bias)
        for name, part in suspect.leaves.items()
        if isinstance(bias := getattr(part, "bias", None), Tensor)
    }
    for names in _each_and_all(biases):
        yield from suspect.explains(
            "bias missing", f"{_listed(names)} is not added.", weights={name: biases[name] for name in names}
        )


def positions(suspect: Suspect) -> Iterator[Cause]:
    for name, part in suspect.leaves.items():
        if isinstance(part, nn.Embedding) and name.endswith("wpe"):
            yield from suspect.explains(
                "positions ignore left padding",
                "Positions count from the left edge, expected from the first token of the text.",
                outputs={name: partial(_counted_from_the_edge, table=part)},
            )


def head(suspect: Suspect) -> Iterator[Cause]:
    for name, part in suspect.leaves.items():
        if not (isinstance(part, nn.Linear) and name.endswith("lm_head")):
            continue
        weight, width = dotted(name, "weight"), part.in_features
        yield from suspect.explains(
            "unscaled head",
            f"The decoder's output is not multiplied by 1/sqrt({width}) before the tied head.",
            weights={weight: part.weight * width**0.5},
        )
        yield from suspect.explains(
            "extra scale before the head",
            f"The output is multiplied by 1/sqrt({width}) before the head, which only T5 v1.0 does.",
            weights={weight: part.weight * width**-0.5},
        )
        mine = suspect.observed[name][0].module.weight if name in suspect.observed else None
        if not _is_embedding(part.weight, suspect.reference):
            for embedding in _embeddings(suspect.reference, part.weight.shape):
                yield from suspect.explains(
                    "tied head",
                    "The head is the token embedding, expected a matrix of its own.",
                    weights={weight: embedding},
                )
        elif isinstance(mine, Tensor) and not _is_embedding(mine, suspect.mine):
            yield from suspect.explains(
                "untied head",
                "The head is a matrix of its own, expected the token embedding.",
                weights={weight: mine},
            )


def dropout_left_on(suspect: Suspect) -> Iterator[Cause]:
    """The one mistake that is undone in mine, for drawing the same numbers in the reference cannot be."""
    calm = suspect.mine_without_dropout()
    for name, (my_call, row) in suspect.observed.items():
        after = suspect.apart(calm.get(my_call.name), suspect.calls[name].value)
        if after <= row.tolerance and after < row.relative * VANISHES:
            sentence = "Mine drops at random. Call eval(), and give F.dropout its argument `training`."
            evidence = f"the relative difference is {row.relative:.1e}, and {after:.1e} without dropout"
            yield suspect.cause("dropout left on", sentence, row, after, evidence)
            return


def half_precision(suspect: Suspect) -> Iterator[Cause]:
    """Half precision would explain any small difference. The proof is that all numbers are ones it has."""
    name, (my_call, row) = next(iter(suspect.observed.items()))
    mine, right = my_call.value, suspect.calls[name].value
    if mine is None or right is None or not right.is_floating_point():
        return
    for half in (torch.bfloat16, torch.float16):
        coarser = torch.finfo(half).eps / torch.finfo(right.dtype).eps
        if coarser > 1 and _is_rounded(mine, half) and not _is_rounded(right, half):
            after = suspect.apart(mine, right.to(half))
            if after <= row.tolerance * coarser:
                kind, expected = (str(dtype).removeprefix("torch.") for dtype in (half, right.dtype))
                yield suspect.cause(
                    "half precision",
                    f"It is computed in {kind}, expected {expected}.",
                    row,
                    after,
                    f"each of the {mine.numel()} numbers in {shown(name)} is one that {kind} has",
                )


HYPOTHESES: tuple[Callable[[Suspect], Iterator[Cause]], ...] = (
    attention_scale,
    transposed_weight,
    order_of_q_k_v,
    activation_function,
    norms,
    masks,
    position_bias,
    missing_bias,
    positions,
    head,
    dropout_left_on,
    half_precision,
)


# ---------------------------------------------------------------------------- what the hypotheses are made of


def _each_and_all(names: Iterable[str]) -> list[list[str]]:
    """Each alone, then all together: a mistake is made once or everywhere."""
    each = [[name] for name in names]
    return [*each, [name for (name,) in each]] if len(each) > 1 else each


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _matrix(part: nn.Module) -> Tensor | None:
    """The weight of a linear layer."""
    weight = getattr(part, "weight", None)
    is_matrix = isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(part, nn.Embedding)
    return cast(Tensor, weight) if is_matrix else None


def _counted_from_the_edge(ids: Tensor, table: nn.Embedding) -> Tensor:
    return table.weight[: ids.shape[-1]].expand(*ids.shape, -1)


def _reordered(name: str, part: nn.Module, order: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters that make q, k and v, with these in their places; none where nothing makes them."""
    if all(isinstance(getattr(part, letter, None), nn.Linear) for letter in "qkv"):  # T5: three matrices
        return {
            dotted(name, place, "weight"): getattr(part, letter).weight
            for place, letter in zip("qkv", order, strict=True)
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


def _computes(call: Call | None, curve: nn.Module) -> bool:
    """Whether a module gave what this function gives, to rounding. gelu and gelu_new are 5e-4 apart."""
    given = None if call is None else call.main_input
    if call is None or call.value is None or given is None or not given.is_floating_point():
        return False
    if call.value.shape != given.shape:
        return False
    return difference(call.value, curve(given.detach())).relative <= 16 * torch.finfo(given.dtype).eps


def _epsilon(norm: nn.Module) -> float | None:
    return getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def _norm_name(part: nn.Module) -> str | None:
    """None for what is no norm."""
    weight = getattr(part, "weight", None)
    if _epsilon(part) is None or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    return "LayerNorm" if isinstance(part, nn.LayerNorm) else "RMSNorm"


def _layer_norm(hidden: Tensor, part: nn.Module, eps: float) -> Tensor:
    weight, bias = cast(Tensor, part.weight), cast(Tensor | None, getattr(part, "bias", None))
    return F.layer_norm(hidden, weight.shape, weight, bias, eps)


def _rms_norm(hidden: Tensor, part: nn.Module, eps: float) -> Tensor:
    weight = cast(Tensor, part.weight)
    return F.rms_norm(hidden, list(weight.shape), weight, eps)


_NORMS = {"LayerNorm": _layer_norm, "RMSNorm": _rms_norm}


def _embeddings(module: nn.Module, shape: torch.Size) -> list[Tensor]:
    """The tables of this shape, each once."""
    tables = [part.weight for part in module.modules() if isinstance(part, nn.Embedding)]
    return list({id(table): table for table in tables if table.shape == shape}.values())


def _is_embedding(weight: Tensor, module: nn.Module) -> bool:
    return any(torch.equal(weight, table) for table in _embeddings(module, weight.shape))


def _is_rounded(values: Tensor, half: torch.dtype) -> bool:
    """Whether every number is one that this type has."""
    return torch.equal(values.to(half).to(values.dtype), values)
