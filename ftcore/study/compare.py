"""Compare two modules that should compute the same: where do they diverge, and why?

    report = compare_modules(MyAttention(), reference, (hidden, None, None))
    print(report)

Both run on the same inputs. Forward hooks record the output of every submodule, and outputs of the same name
are compared in the execution order of the reference. Either side may be any `nn.Module`: your own layer, one
of ftcore or transformers, a whole model.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.decoding.state import eval_mode
from ftcore.study.causes import likely_causes
from ftcore.study.fault_injection import Divergence
from ftcore.study.matching import (
    Inputs,
    Rename,
    copy_inputs,
    copy_matching_weights,
    parameter_name,
    renaming,
    unequal_weights,
)
from ftcore.study.recording import Call, configured, record_calls
from ftcore.study.report import (
    DIFFERS,
    EQUAL,
    GRADIENT,
    NOT_FINITE,
    SHAPE,
    Difference,
    Report,
    Row,
    broadcast,
    difference,
    largest,
    rounding,
    rounding_variance,
)

INPUT = "(input)"  # name of the main input's gradient


def assert_same_as_reference(mine: nn.Module, reference: nn.Module, inputs: Inputs, **options: Any) -> None:
    """Raise AssertionError with the table of `compare_modules` if mine and reference differ; for unit tests.

    The options are those of `compare_modules`.
    """
    __tracebackhide__ = True  # pytest shows the caller's line and the table
    report = compare_modules(mine, reference, inputs, **options)
    if not report.equal:
        raise AssertionError(f"not the same as the reference\n{report}")


def compare_modules(
    mine: nn.Module,
    reference: nn.Module,
    inputs: Inputs,
    *,
    reference_inputs: Inputs | None = None,
    rename: Rename = None,
    copy_weights: bool = False,
    backward: bool = True,
    where: Tensor | None = None,
    tolerance: float | None = None,
) -> Report:
    """Run both modules, forward and backward, and compare all outputs and gradients.

    The reference runs in eval mode, `mine` in its current mode, so that dropout left on is found. Hooks are
    removed and no `.grad` is set. While hooked, ftcore's attention runs the explicit computation.

    Args:
        inputs: arguments of both: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        reference_inputs: arguments of the reference, if they differ.
        rename: from module names of `mine` to those of the reference: a dict of prefixes, such as
            {"attention": "attn"}, or a function from dotted name to dotted name.
        copy_weights: first overwrite the parameters of `mine` with those of the same name and shape.
        backward: also compare the gradients of a random projection of the output.
        where: (B, T) attention mask. Tensors (B, T, ...) and (B, H, T, S) are compared only where it is
            nonzero, since outputs at padding are arbitrary.
        tolerance: largest relative difference that counts as equal. By default what rounding explains, for
            each module: see `rounding` in report.py.

    Raises:
        ValueError: `rename` names an unknown module or maps two to one; no weights to copy; no output tensor;
            `where` fits neither input nor output.
    """
    to_reference = renaming(mine, rename)
    if copy_weights:
        copy_matching_weights(mine, reference, to_reference)
    my_inputs = copy_inputs(inputs, backward)
    their_inputs = copy_inputs(inputs if reference_inputs is None else reference_inputs, backward)

    with (
        eval_mode(reference),
        configured(mine, use_cache=False),  # one of transformers would grow when a module runs again
        configured(reference, use_cache=False),
        torch.set_grad_enabled(backward),
        torch.random.fork_rng(),
    ):
        torch.manual_seed(0)  # for dropout in `mine`
        my_calls = record_calls(mine, *my_inputs)
        calls = record_calls(reference, *their_inputs)
    my_output, output = my_calls[-1].output, calls[-1].output
    if my_output is None or output is None:
        side = "mine" if my_output is None else "the reference"
        raise ValueError(f"{side} returns no tensor, expected one or a tuple or mapping with one")
    ends = [tensor for tensor in (calls[-1].main_input, output) if tensor is not None]
    if where is not None and all(select_tokens(tensor, where) is tensor for tensor in ends):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in ends)
        raise ValueError(
            f"where is {tuple(where.shape)}, expected the (B, T) of the reference's input or output, {shapes}"
        )

    my_names = {to_reference(call.name): call for call in my_calls}
    pairs = {call.name: (my_names[call.name], call) for call in calls if call.name in my_names}
    direction = _projection(my_output, output, where) if backward else None
    my_gradients, gradients = _gradients(my_calls, direction), _gradients(calls, direction)

    # Rounding errors accumulate from call to call, and again in the backward pass.
    sums = accumulate(rounding_variance(call) for call in calls)
    variances = {call.name: variance for call, variance in zip(calls, sums, strict=True)}
    total = 2 * variances[calls[-1].name]

    def limit(tensor: Tensor, variance: float) -> float:
        return rounding(tensor.dtype, variance) if tolerance is None else tolerance

    rows = []
    for name, (my_call, call) in pairs.items():
        if my_call.value is None or call.value is None:
            continue
        mine_value, value = my_call.value, call.value
        if name:
            mine_value, value = broadcast(mine_value, value), broadcast(value, mine_value)
        row = _compare(name, mine_value, value, limit(value, variances[name]), where)
        one, other = my_gradients.get(my_call.name), gradients.get(name)
        if one is not None and other is not None and one.shape == other.shape:
            relative = difference(select_tokens(one, where), select_tokens(other, where)).relative
            differs = row.verdict == EQUAL and relative > limit(other, total)
            row = replace(row, gradient=relative, verdict=GRADIENT if differs else row.verdict)
        rows.append(row)

    tokens = output.numel() // max(output.shape[-1], 1) if output.dim() else 1
    limit_of_sum = partial(limit, variance=total + tokens / 4)  # gradients of parameters are sums over tokens
    report = Report(
        rows=rows,
        gradients=_gradient_rows(mine, reference, my_gradients, gradients, to_reference, limit_of_sum, where),
        only_mine=[call.name for name, call in my_names.items() if name not in pairs],
        only_reference=[call.name for call in calls if call.name not in pairs],
        unequal_weights=unequal_weights(mine, reference, to_reference),
    )
    _find_first_bad_module(report, pairs, calls, where)
    return report


def _compare(
    name: str,
    mine: Tensor,
    reference: Tensor,
    tolerance: float,
    where: Tensor | None,
    scale: float | None = None,
) -> Row:
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in (mine, reference)]
    note = "" if mine.dtype == reference.dtype else f"(mine is {dtypes[0]}, not {dtypes[1]})"
    if mine.shape != reference.shape:
        gap, verdict = Difference(float("inf"), float("inf")), SHAPE
        note = f"(mine is {'x'.join(map(str, mine.shape))})"
    else:
        one, other = select_tokens(mine, where), select_tokens(reference, where)
        gap = difference(one, other, scale)
        verdict = EQUAL if gap.relative <= tolerance else DIFFERS
        if one.isnan().any() or (other.isfinite() & ~one.isfinite()).any():
            verdict = NOT_FINITE
    return Row(name, tuple(reference.shape), dtypes[1], *gap, tolerance, verdict, note)


def select_tokens(tensor: Tensor, where: Tensor | None) -> Tensor:
    """The tokens of a (B, T, ...) or (B, H, T, S) tensor where `where` is nonzero; other shapes unchanged."""
    if where is None:
        return tensor
    if tensor.shape[:2] == where.shape:
        return tensor[where.bool()]
    if tensor.dim() == 4 and (tensor.shape[0], tensor.shape[2]) == where.shape:
        return tensor.transpose(1, 2)[where.bool()]
    return tensor


def _projection(mine: Tensor, reference: Tensor, where: Tensor | None) -> Tensor | None:
    """A random direction with the shape of the output; None if the outputs have no comparable gradients."""
    if reference.shape != mine.shape or not (reference.requires_grad and mine.requires_grad):
        return None
    # An unusual seed: if the input were drawn from the same one, a norm would have no gradient along it.
    direction = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0xD1CE)).to(reference)
    if where is not None and reference.shape[:2] == where.shape:
        direction = direction * where.bool().to(reference).reshape(*where.shape, *[1] * (reference.dim() - 2))
    return direction


def _gradients(calls: list[Call], direction: Tensor | None) -> dict[str, Tensor]:
    """Gradients of a projection of the module's output, by name of a call or parameter, and of `INPUT`."""
    if direction is None:
        return {}
    root = calls[-1]
    tensors = {call.name: call.output for call in calls}
    tensors |= {**dict(root.module.named_parameters()), INPUT: root.main_input}
    named = {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad}
    output = named[root.name]
    found = torch.autograd.grad(output, [*named.values()], direction.to(output.dtype), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def _gradient_rows(
    mine: nn.Module,
    reference: nn.Module,
    my_gradients: dict[str, Tensor],
    gradients: dict[str, Tensor],
    to_reference: Callable[[str], str],
    limit: Callable[[Tensor], float],
    where: Tensor | None,
) -> list[Row]:
    """A row for the main input and for each parameter that both modules have."""
    rows = []
    one, other = my_gradients.get(INPUT), gradients.get(INPUT)
    if one is not None and other is not None and one.shape == other.shape:
        rows.append(_compare(INPUT, one, other, limit(other), where))
    theirs = {name: gradients[name] for name, _ in reference.named_parameters() if name in gradients}
    for my_name, _ in mine.named_parameters():
        name = parameter_name(my_name, to_reference)
        if my_name in my_gradients and name in theirs:
            # Relative to the largest gradient in the module: that of a key bias is zero up to rounding, since
            # softmax is invariant to a constant added to all scores.
            module = name.rpartition(".")[0]
            scale = max(largest(grad) for key, grad in theirs.items() if key.rpartition(".")[0] == module)
            gradient, other = my_gradients[my_name], theirs[name]
            rows.append(_compare(my_name, gradient, other, limit(other), None, scale))
    return rows


def _find_first_bad_module(
    report: Report, pairs: dict[str, tuple[Call, Call]], calls: list[Call], where: Tensor | None
) -> None:
    """Set `first_divergent`, `first_bad_module` and `causes` of the report."""
    rows = {row.name: row for row in report.rows}
    matching = {row.name for row in report.rows if row.verdict in (EQUAL, GRADIENT)}
    wrong = [name for name in rows if name not in matching]
    if not wrong:  # only gradients differ, and the backward pass runs in reverse order
        backward = [row.name for row in report.rows if row.verdict == GRADIENT]
        report.first_divergent = backward[-1] if backward else None
        return
    first = report.first_divergent = wrong[0]

    def has_equal_input(name: str) -> bool:
        one, other = (call.main_input for call in pairs[name])
        if one is None or other is None:
            return one is other
        one, other = broadcast(one, other).detach(), broadcast(other, one).detach()
        return _compare(name, one, other, rows[name].tolerance, where).verdict == EQUAL

    parts = first.split(".")
    enclosing = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    bad = next((name for name in enclosing if name in wrong and has_equal_input(name)), "")
    report.first_bad_module = bad
    names = list(rows)
    observed = [name for name in names[names.index(first) : names.index(bad) + 1] if name in wrong]
    report.causes = likely_causes(
        Divergence(
            mine=pairs[""][0].module,
            reference=calls[-1].module,
            my_call=pairs[bad][0],
            call=pairs[bad][1],
            calls={call.name: call for call in calls},
            observed={name: (pairs[name][0], rows[name]) for name in observed},
            matching=matching,
            select=lambda tensor: select_tokens(tensor, where),
        )
    )
