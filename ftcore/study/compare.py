"""Two modules that should compute the same: where do they part, and why?

    report = compare_modules(MyAttention(), reference, (hidden, None, None))
    print(report)

Both run on the same inputs, hooks keep what every module gives, and modules of one name are compared in the
order in which the reference runs them. Anything that is an `nn.Module` may stand on either side: a layer
that you wrote, one of ftcore's, one of transformers', a whole model.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ftcore.study.causes import Suspect, likely_causes
from ftcore.study.matching import (
    Given,
    Inputs,
    Rename,
    arguments,
    copy_matching_weights,
    parameter_name,
    renaming,
    unequal_weights,
)
from ftcore.study.recording import Call, eval_mode, first_tensor, record_calls
from ftcore.study.report import (
    EQUAL,
    GRADIENT,
    SHAPE,
    Difference,
    Report,
    Row,
    broadcast,
    difference,
    largest,
    rounding,
    verdict,
    work,
)

FAR_APART = Difference(float("inf"), float("inf"))


def assert_same_as_reference(mine: nn.Module, reference: nn.Module, inputs: Inputs, **options: Any) -> None:
    """A unit test in one line: raises AssertionError with the table of `compare_modules` as its message."""
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
    """Run both, forward and backward, and compare what each module gives.

    The reference runs in eval mode, `mine` in the mode it is in: dropout left on is a mistake to be found.
    Neither keeps a hook or a gradient. ftcore's attention takes its textbook way, because it is watched.

    Args:
        inputs: what both are given: a tensor, a tuple of positional arguments or a dict of named ones.
        reference_inputs: what the reference is given, where it wants its arguments in another form.
        rename: from the names in `mine` to those in the reference: {"attention": "attn"}, which renames the
            module and all in it, or a function from dotted name to dotted name.
        copy_weights: overwrite the parameters of `mine` with those of the same name and shape.
        backward: compare gradients too, of one random projection of the output.
        where: (B, T), nonzero where outputs count. Padding positions may hold anything: pass the attention
            mask, and tensors of shape (B, T, ...) and (B, H, T, S) are compared at its tokens only.
        tolerance: the largest relative difference that counts as equal, everywhere. By default what
            rounding explains, module by module: see `rounding` in report.py.

    Raises:
        ValueError: `rename` names no module, or joins two; nothing to copy; or outputs without a tensor.
    """
    named = renaming(mine, rename)
    if copy_weights:
        copy_matching_weights(mine, reference, named)
    here = arguments(inputs, backward)
    there = arguments(inputs if reference_inputs is None else reference_inputs, backward)

    with eval_mode(reference), torch.set_grad_enabled(backward), torch.random.fork_rng():
        torch.manual_seed(0)  # for dropout in `mine`
        my_calls = record_calls(mine, *here)
        calls = record_calls(reference, *there)
    if my_calls[-1].output is None or calls[-1].output is None:
        side = "mine" if my_calls[-1].output is None else "the reference"
        raise ValueError(f"{side} gives no tensor, expected one or a tuple or mapping with one")

    mine_by_name = {named(call.name): call for call in my_calls}
    pairs = {call.name: (mine_by_name[call.name], call) for call in calls if call.name in mine_by_name}
    bounds = _Bounds(calls, tolerance)
    slopes = _Gradients(mine, reference, my_calls, calls, here, there, where) if backward else None

    rows = [_row(name, *pair, bounds, slopes, where) for name, pair in pairs.items()]
    report = Report(
        rows=[row for row in rows if row is not None],
        gradients=slopes.rows(named, bounds) if slopes else [],
        only_mine=[call.name for name, call in mine_by_name.items() if name not in pairs],
        only_reference=[call.name for call in calls if call.name not in pairs],
        unequal_weights=unequal_weights(mine, reference, named),
    )
    _find_culprit(report, mine, reference, pairs, calls, where)
    return report


# ----------------------------------------------------------------------------------------- from calls to rows


class _Bounds:
    """The tolerance at each call of the reference: what rounding explains after all the work before it."""

    def __init__(self, calls: list[Call], tolerance: float | None):
        self.fixed = tolerance
        self.variance: dict[str, float] = {}
        self.total = 0.0
        for call in calls:
            self.total += work(call)
            self.variance[call.name] = self.total

    def forward(self, call: Call) -> float:
        assert call.value is not None
        return self._bound(call.value.dtype, self.variance[call.name])

    def backward(self, dtype: torch.dtype, tokens: int = 0) -> float:
        """All the way there and back; a parameter's gradient is also a sum over tokens."""
        return self._bound(dtype, 2 * self.total + tokens / 4)

    def _bound(self, dtype: torch.dtype, variance: float) -> float:
        return rounding(dtype, variance) if self.fixed is None else self.fixed


def _row(
    name: str, mine: Call, reference: Call, bounds: _Bounds, slopes: "_Gradients | None", where: Tensor | None
) -> Row | None:
    """None where a side gives no tensor, for there is nothing to compare."""
    if mine.value is None or reference.value is None:
        return None
    tolerance = bounds.forward(reference)
    my_value = mine.value if name == "" else broadcast(mine.value, reference.value)
    apart, judged = _judge(my_value, reference.value, tolerance, where)
    slope = slopes.of_output(mine, reference) if slopes else None
    if judged == EQUAL and slope is not None and slope > bounds.backward(reference.value.dtype):
        judged = GRADIENT
    return Row(
        name=name,
        shape=tuple(reference.value.shape),
        dtype=_dtype(reference.value),
        absolute=apart.absolute,
        relative=apart.relative,
        gradient=slope,
        tolerance=tolerance,
        verdict=judged,
        note=_note(my_value, reference.value),
    )


def _judge(
    mine: Tensor, reference: Tensor, tolerance: float, where: Tensor | None = None, size: float | None = None
) -> tuple[Difference, str]:
    if mine.shape != reference.shape:
        return FAR_APART, SHAPE
    mine, reference = counted(mine, where), counted(reference, where)
    apart = difference(mine, reference, size)
    return apart, verdict(mine, reference, apart, tolerance)


def counted(tensor: Tensor, where: Tensor | None) -> Tensor:
    """What of a (B, T, ...) or (B, H, T, S) tensor counts; other shapes have no positions, or all count."""
    if where is None:
        return tensor
    if tensor.shape[:2] == where.shape:
        return tensor[where.bool()]
    if tensor.dim() == 4 and (tensor.shape[0], tensor.shape[2]) == where.shape:
        return tensor.transpose(1, 2)[where.bool()]
    return tensor


def _note(mine: Tensor, reference: Tensor) -> str:
    if mine.shape != reference.shape:
        return f"(mine is {' x '.join(map(str, mine.shape))})"
    return "" if mine.dtype == reference.dtype else f"(mine is {_dtype(mine)}, not {_dtype(reference)})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------------------------- backward


class _Gradients:
    """Gradients of one random projection of the output, in both: of each module's output, and of weights."""

    def __init__(
        self,
        mine: nn.Module,
        reference: nn.Module,
        my_calls: list[Call],
        calls: list[Call],
        here: Given,
        there: Given,
        where: Tensor | None,
    ):
        self.where = where
        self.tokens = 0
        self.my_outputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.my_weights: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.inputs: tuple[Tensor, Tensor] | None = None

        output = cast(Tensor, calls[-1].output)
        my_output = cast(Tensor, my_calls[-1].output)
        if output.shape != my_output.shape or not (output.requires_grad and my_output.requires_grad):
            return
        self.tokens = output.numel() // max(output.shape[-1], 1) if output.dim() else 1
        # Not a seed that somebody would draw the input from: along its own output a norm has no gradient.
        generator = torch.Generator().manual_seed(0xD1CE)
        direction = torch.randn(output.shape, generator=generator).to(output)
        if where is not None and output.shape[:2] == where.shape:
            direction = direction * where.to(output).reshape(*where.shape, *[1] * (output.dim() - 2))
        self.my_outputs, self.my_weights, my_input = _differentiate(mine, my_calls, here, direction)
        self.outputs, self.weights, given = _differentiate(reference, calls, there, direction)
        if my_input is not None and given is not None and my_input.shape == given.shape:
            self.inputs = my_input, given

    def of_output(self, mine: Call, reference: Call) -> float | None:
        """The relative difference of the two gradients of an output; None where one has no gradient."""
        one, other = self.my_outputs.get(mine.name), self.outputs.get(reference.name)
        if one is None or other is None or one.shape != other.shape:
            return None
        return difference(counted(one, self.where), counted(other, self.where)).relative

    def rows(self, named: Callable[[str], str], bounds: _Bounds) -> list[Row]:
        """A row for the main input and for each parameter that both have."""
        rows = []
        if self.inputs is not None:
            rows.append(self._row("(input)", *self.inputs, bounds, self.where))
        for name, one in self.my_weights.items():
            if (other := self.weights.get(parameter_name(name, named))) is not None:
                rows.append(
                    self._row(name, one, other, bounds, None, self._size(parameter_name(name, named)))
                )
        return rows

    def _row(
        self,
        name: str,
        mine: Tensor,
        reference: Tensor,
        bounds: _Bounds,
        where: Tensor | None,
        size: float | None = None,
    ) -> Row:
        tolerance = bounds.backward(reference.dtype, self.tokens)
        apart, judged = _judge(mine, reference, tolerance, where, size)
        shape, note = tuple(reference.shape), _note(mine, reference)
        return Row(name, shape, _dtype(reference), *apart, None, tolerance, judged, note)

    def _size(self, name: str) -> float:
        """The largest gradient in the parameter's module. A bias of keys has none but rounding: a softmax
        does not feel what is added to all its scores."""
        module = name.rpartition(".")[0]
        return max(
            largest(slope) for other, slope in self.weights.items() if other.rpartition(".")[0] == module
        )


def _differentiate(
    module: nn.Module, calls: list[Call], given: Given, direction: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """Gradients of the outputs by call, of the parameters by name, and of the main input."""
    outputs = {
        call.name: call.output for call in calls if call.output is not None and call.output.requires_grad
    }
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    main = first_tensor((*given[0], *given[1].values()))
    inputs = [main] if main is not None and main.requires_grad else []
    found = torch.autograd.grad(
        outputs[calls[-1].name],
        [*outputs.values(), *weights.values(), *inputs],
        direction.to(outputs[calls[-1].name].dtype),
        allow_unused=True,
    )
    named = list(zip([*outputs, *weights], found, strict=False))
    return (
        {name: slope for name, slope in named[: len(outputs)] if slope is not None},
        {name: slope for name, slope in named[len(outputs) :] if slope is not None},
        found[-1] if inputs else None,
    )


# ------------------------------------------------------------------------------------------------ the culprit


def _find_culprit(
    report: Report,
    mine: nn.Module,
    reference: nn.Module,
    pairs: dict[str, tuple[Call, Call]],
    calls: list[Call],
    where: Tensor | None,
) -> None:
    """Name the first divergent module, the smallest module that must hold the mistake, and likely causes."""
    rows = {row.name: row for row in report.rows}
    wrong = [row.name for row in report.rows if row.verdict not in (EQUAL, GRADIENT)]
    if not wrong:  # what comes last forward comes first backward
        backward = [row.name for row in report.rows if row.verdict == GRADIENT]
        report.first_divergent = backward[-1] if backward else None
        return
    first = report.first_divergent = wrong[0]

    def starts_equal(name: str) -> bool:
        return name in wrong and _same_input(*pairs[name], rows[name].tolerance, where)

    around = [".".join(first.split(".")[:count]) for count in range(first.count(".") + 1, 0, -1)]
    culprit = report.culprit = next(filter(starts_equal, around), "")
    names = [row.name for row in report.rows]
    span = names[names.index(first) : names.index(culprit) + 1]
    report.causes = likely_causes(
        Suspect(
            mine=mine,
            reference=reference,
            my_call=pairs[culprit][0],
            call=pairs[culprit][1],
            calls={call.name: call for call in calls},
            observed={name: (pairs[name][0], rows[name]) for name in span if name in wrong},
            acquitted={name for name, row in rows.items() if row.verdict in (EQUAL, GRADIENT)},
            counted=lambda tensor: counted(tensor, where),
        )
    )


def _same_input(mine: Call, reference: Call, tolerance: float, where: Tensor | None) -> bool:
    one, other = mine.main_input, reference.main_input
    if one is None or other is None:
        return one is other
    return _judge(one.detach(), other.detach(), tolerance, where)[1] == EQUAL
