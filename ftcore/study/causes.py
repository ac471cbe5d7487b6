"""Likely causes of a divergence: known mistakes, each tried on the reference.

A hypothesis makes one mistake in the reference: other weights, another output of a module, another attention
(see fault_injection.py). If the difference from `mine` vanishes, it yields a Cause; if none does, no cause is
reported. To add a hypothesis, write a function and list it in HYPOTHESES.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from itertools import permutations, product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.models.config import ACTIVATIONS
from ftcore.study.attention_call import AttentionCall
from ftcore.study.attention_mistakes import AttentionMistake, attention_mistakes
from ftcore.study.composition_mistakes import (
    embedding_scale,
    final_norm,
    norm_used_twice,
    positions,
    sublayers,
)
from ftcore.study.fault_injection import Divergence, epsilon, is_norm, vanishes
from ftcore.study.recording import Call, dotted
from ftcore.study.report import Cause, difference, display_name

NORMS = ("LayerNorm", "RMSNorm")
AS_GOOD = 10  # a cause that leaves more than this times the difference of the best one is dropped


def likely_causes(divergence: Divergence) -> list[Cause]:
    """The confirmed causes that explain most modules, best first, each name once. Usually one or none.

    The search ends with the first hypothesis that explains every module.
    """
    found: list[Cause] = []
    most = 0
    for hypothesis in HYPOTHESES:
        found += hypothesis(divergence)
        most = max((cause.explained for cause in found), default=0)
        if most == len(divergence.observed):
            break
    found = sorted((cause for cause in found if cause.explained == most), key=lambda cause: cause.after)
    best: dict[str, Cause] = {}
    for cause in found:
        best.setdefault(cause.name, cause)
    rounding = max((row.tolerance for _, row in divergence.observed.values()), default=0.0) / AS_GOOD
    return [cause for cause in best.values() if cause.after <= max(AS_GOOD * found[0].after, rounding)]


def attention(divergence: Divergence) -> list[Cause]:
    """Mistakes in all attention calls; if none explains it, in those of one kind."""
    calls = divergence.attentions
    configs = (getattr(part, "config", part) for part in divergence.reference.modules())
    distances = (getattr(config, "relative_attention_max_distance", None) for config in configs)
    mistakes = list(attention_mistakes(max_distance=next(filter(None, distances), 128)))
    tried: set[tuple[AttentionMistake, frozenset[int]]] = set()
    for label, kind in _kinds_of_attention(calls).items():
        found: list[Cause] = []
        for mistake in mistakes:
            wrong = frozenset(index for index in kind if mistake.applies(calls[index]))
            if wrong and (mistake, wrong) not in tried:
                tried.add((mistake, wrong))
                sentence = label + mistake.sentence.format(**calls[min(wrong)].shapes)
                compute = partial(_compute_attention, mistake, wrong)
                found += divergence.try_mistake(mistake.name, sentence, attention=compute)
        if found:
            return found
    return []


def _compute_attention(
    mistake: AttentionMistake, wrong: Container[int], index: int, call: AttentionCall
) -> Tensor:
    return (mistake.compute if index in wrong else AttentionCall.compute)(call)


def _kinds_of_attention(calls: list[AttentionCall]) -> dict[str, list[int]]:
    """Indices of all calls; of those of one kind; in T5, of those that use the position bias of the first."""
    kinds: dict[str, list[int]] = {}
    later: list[int] = []
    for index, call in enumerate(calls):
        is_self = call.position_bias is not None
        name = ("Decoder self-attention" if call.is_causal else "Encoder") if is_self else "Cross-attention"
        if is_self and name in kinds:
            later.append(index)
        kinds.setdefault(name, []).append(index)
    kinds = kinds | {"After the first block": later} if len(kinds) > 1 else {"After the first block": later}
    return {"": list(range(len(calls)))} | {f"{name}: ": indices for name, indices in kinds.items()}


def transposed_weight(divergence: Divergence) -> Iterator[Cause]:
    """Try a matrix stored the other way round, in one layer or in all."""
    transposed = {
        dotted(name, "weight"): weight.reshape(weight.shape[::-1]).T
        for name, part in divergence.leaves.items()
        if (weight := _matrix(part)) is not None
    }
    sentence = ": nn.Linear stores (out, in), GPT-2's Conv1D stores (in, out)."
    yield from _in_one_or_all(divergence, "transposed weight", sentence, transposed)


def order_of_q_k_v(divergence: Divergence) -> Iterator[Cause]:
    """Try the other orders of q, k and v in one matrix."""
    for name, part in divergence.modules.items():
        for order in list(permutations("qkv"))[1:]:
            if weights := _reordered(name, part, order):
                yield from divergence.try_mistake(
                    "q, k, v in another order",
                    f"Expected q, k, v; mine has {', '.join(order)}.",
                    weights=weights,
                )


def activation_function(divergence: Divergence) -> Iterator[Cause]:
    """Try other activation functions."""
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
    """Try LayerNorm for RMSNorm, the reverse, and other values of epsilon."""
    for right in NORMS:
        parts = {name: part for name, part in divergence.leaves.items() if _norm_name(part) == right}
        if not parts:
            continue
        own_eps = epsilon(next(iter(parts.values())))
        for wrong, eps in product(NORMS, (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)):
            if (wrong, eps) != (right, own_eps):
                norm = partial(_norm, kind=wrong, eps=eps)
                yield from divergence.try_mistake(
                    "another epsilon" if wrong == right else f"{wrong} for {right}",
                    f"The norm is {wrong} with eps near {eps:g}, expected {right} with {own_eps:g}.",
                    outputs={name: partial(norm, part=part) for name, part in parts.items()},
                )


def missing_bias(divergence: Divergence) -> Iterator[Cause]:
    """Try layers without their bias, one or all."""
    zeros = {
        dotted(name, "bias"): torch.zeros_like(bias)
        for name, part in divergence.leaves.items()
        if isinstance(bias := getattr(part, "bias", None), Tensor)
    }
    yield from _in_one_or_all(divergence, "bias missing", " is not added.", zeros)


def head(divergence: Divergence) -> Iterator[Cause]:
    """Try mistakes of the head: T5's scale, tied or not."""
    for name, part in divergence.leaves.items():
        if not (isinstance(part, nn.Linear) and name.endswith("lm_head")):
            continue
        right, width = part.weight, part.in_features
        unscaled = f"The decoder's output is not multiplied by 1/sqrt({width}) before the tied head."
        scaled = f"The output is multiplied by 1/sqrt({width}) before the head, as only T5 v1.0 does."
        wrong = [
            ("unscaled head", unscaled, right * width**0.5),
            ("extra scale before the head", scaled, right * width**-0.5),
        ]
        mine = divergence.observed[name][0].module.weight if name in divergence.observed else None
        if not _is_embedding(right, divergence.reference):
            tied = "The head is the token embedding, expected a separate matrix."
            wrong += [("tied head", tied, table) for table in _embeddings(divergence.reference, right.shape)]
        elif isinstance(mine, Tensor) and not _is_embedding(mine, divergence.mine):
            wrong += [("untied head", "The head is a separate matrix, expected the token embedding.", mine)]
        for mistake, sentence, weight in wrong:
            weights = {dotted(name, "weight"): weight}
            yield from divergence.try_mistake(mistake, sentence, weights=weights)


def dropout_left_on(divergence: Divergence) -> Iterator[Cause]:
    """Undone in mine instead: its random numbers cannot be reproduced in the reference."""
    values = divergence.mine_without_dropout()
    for name, (my_call, row) in divergence.observed.items():
        after = divergence.relative_difference(values.get(my_call.name), divergence.calls[name].value)
        if vanishes(row, after):
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


# Those with few runs of the reference first.
HYPOTHESES: tuple[Callable[[Divergence], Iterable[Cause]], ...] = (
    activation_function,
    norms,
    head,
    positions,
    embedding_scale,
    final_norm,
    norm_used_twice,
    sublayers,
    attention,
    order_of_q_k_v,
    transposed_weight,
    missing_bias,
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


def _norm_name(part: nn.Module) -> str | None:
    """One of NORMS; None for other modules."""
    if not is_norm(part):
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
