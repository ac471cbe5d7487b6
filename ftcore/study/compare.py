"""Compare two modules that should compute the same: where do they diverge, and why?

    report = compare_modules(MyAttention(), reference, (hidden, None, None))
    print(report)

Both run on the same inputs. Forward hooks record the output of every submodule, and outputs of the same name
are compared in the execution order of the reference. Either side may be any `nn.Module`: your own layer, one
of ftcore or transformers, a whole model.
"""

from collections.abc import Callable, Iterator
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
    my_output, output = _outputs(my_calls[-1], calls[-1], where)
    direction = _projection(my_output, output, where) if backward else None
    comparison = _Comparison(my_calls, calls, direction, to_reference, where, tolerance)
    report = Report(
        rows=list(comparison.rows()),
        gradients=list(comparison.gradient_rows()),
        only_mine=[call.name for name, call in comparison.mine.items() if name not in comparison.pairs],
        only_reference=[call.name for call in calls if call.name not in comparison.pairs],
        unequal_weights=unequal_weights(mine, reference, to_reference),
    )
    comparison.find_first_bad_module(report)
    return report


def _outputs(my_call: Call, call: Call, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs of the whole modules.

    Raises:
        ValueError: there is none, or `where` fits neither the reference's input nor its output.
    """
    if my_call.output is None or call.output is None:
        side = "mine" if my_call.output is None else "the reference"
        raise ValueError(f"{side} returns no tensor, expected one or a tuple or mapping with one")
    ends = [tensor for tensor in (call.main_input, call.output) if tensor is not None]
    if where is not None and all(select_tokens(tensor, where) is tensor for tensor in ends):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in ends)
        raise ValueError(
            f"where is {tuple(where.shape)}, expected the (B, T) of the reference's input or output, {shapes}"
        )
    return my_call.output, call.output


class _Comparison:
    """The calls and gradients of both modules, by the names of the reference."""

    def __init__(
        self,
        my_calls: list[Call],
        calls: list[Call],
        direction: Tensor | None,  # of the output, for gradients
        to_reference: Callable[[str], str],
        where: Tensor | None,
        tolerance: float | None,
    ):
        self.whole = calls[-1]
        self.calls = {call.name: call for call in calls}
        self.mine = {to_reference(call.name): call for call in my_calls}
        self.pairs = {name: (self.mine[name], call) for name, call in self.calls.items() if name in self.mine}
        self.to_reference, self.where, self.tolerance = to_reference, where, tolerance
        self.my_gradients, self.gradients = _gradients(my_calls, direction), _gradients(calls, direction)
        # Rounding errors accumulate from call to call, and again in the backward pass.
        sums = accumulate(rounding_variance(call) for call in calls)
        self.variances = dict(zip(self.calls, sums, strict=True))  # of outputs, in units of eps²
        self.total = 2 * self.variances[self.whole.name]  # of gradients

    def limit(self, tensor: Tensor, variance: float) -> float:
        """The largest relative difference that counts as equal."""
        return rounding(tensor.dtype, variance) if self.tolerance is None else self.tolerance

    def rows(self) -> Iterator[Row]:
        """A row for each module that both have: its output, and the gradient of its output."""
        for name, (my_call, call) in self.pairs.items():
            mine, value = my_call.value, call.value
            if mine is None or value is None:
                continue
            if name:
                mine, value = broadcast(mine, value), broadcast(value, mine)
            row = _compare(name, mine, value, self.limit(value, self.variances[name]), self.where)
            one, other = self.my_gradients.get(my_call.name), self.gradients.get(name)
            if one is not None and other is not None and one.shape == other.shape:
                one, other = select_tokens(one, self.where), select_tokens(other, self.where)
                relative = difference(one, other).relative
                differs = row.verdict == EQUAL and relative > self.limit(other, self.total)
                row = replace(row, gradient=relative, verdict=GRADIENT if differs else row.verdict)
            yield row

    def gradient_rows(self) -> Iterator[Row]:
        """A row for the main input and for each parameter that both modules have."""
        output = self.whole.output
        tokens = output.numel() // max(output.shape[-1], 1) if output is not None and output.dim() else 1
        variance = self.total + tokens / 4  # gradients of parameters are sums over tokens
        one, other = self.my_gradients.get(INPUT), self.gradients.get(INPUT)
        if one is not None and other is not None and one.shape == other.shape:
            yield _compare(INPUT, one, other, self.limit(other, variance), self.where)
        parameters = self.whole.module.named_parameters()
        theirs = {name: self.gradients[name] for name, _ in parameters if name in self.gradients}
        for my_name, _ in self.mine[""].module.named_parameters():
            name = parameter_name(my_name, self.to_reference)
            if my_name in self.my_gradients and name in theirs:
                # Relative to the largest gradient in the module: that of a key bias is zero up to rounding,
                # since softmax is invariant to a constant added to all scores.
                module = name.rpartition(".")[0]
                scale = max(largest(grad) for key, grad in theirs.items() if key.rpartition(".")[0] == module)
                one, other = self.my_gradients[my_name], theirs[name]
                yield _compare(my_name, one, other, self.limit(other, variance), None, scale)

    def find_first_bad_module(self, report: Report) -> None:
        """Set `first_divergent`, `first_bad_module` and `causes` of the report."""
        rows = {row.name: row for row in report.rows}
        matching = {row.name for row in report.rows if row.verdict in (EQUAL, GRADIENT)}
        wrong = [name for name in rows if name not in matching]
        if not wrong:  # only gradients differ, and the backward pass runs in reverse order
            backward = [row.name for row in report.rows if row.verdict == GRADIENT]
            report.first_divergent = backward[-1] if backward else None
            return
        first = report.first_divergent = wrong[0]
        parts = first.split(".")
        enclosing = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        bad = next((name for name in enclosing if name in wrong and self.has_equal_input(rows[name])), "")
        report.first_bad_module = bad
        names = list(rows)
        observed = [name for name in names[names.index(first) : names.index(bad) + 1] if name in wrong]
        divergence = Divergence(
            mine=self.mine[""].module,
            reference=self.whole.module,
            my_call=self.mine[bad],
            call=self.calls[bad],
            calls=self.calls,
            observed={name: (self.mine[name], rows[name]) for name in observed},
            matching=matching,
            select=partial(select_tokens, where=self.where),
        )
        report.causes = likely_causes(divergence)

    def has_equal_input(self, row: Row) -> bool:
        """Whether both modules of a row got the same input."""
        one, other = (call.main_input for call in self.pairs[row.name])
        if one is None or other is None:
            return one is other
        one, other = broadcast(one, other).detach(), broadcast(other, one).detach()
        return _compare(row.name, one, other, row.tolerance, self.where).verdict == EQUAL


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
