"""What a check is made of: a step, what is wrong with it, and comparisons with the reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.lessons.runner import ROOT
from ftcore.output import did_you_mean, few
from ftcore.study import compare_modules
from ftcore.study.report import EQUAL, Report, difference

ROWS_BEFORE, MOST_ROWS = 3, 12  # of the table of modules
TOLERANCE = 1e-5  # relative difference of two results that are equal up to float32's rounding


@dataclass(frozen=True)
class Step:
    """One file of the course.

    Args:
        name: "softmax" for step01_softmax.py.
        title: one line on the board.
        check: raises Wrong, or what the student's code raises; may return a note for the board, such as what
            the student's model writes.
    """

    name: str
    title: str
    check: Callable[[ModuleType], str | None]


class Wrong(Exception):  # noqa: N818 - it is a verdict, not an error
    """What is wrong with a student's step: one sentence.

    Args:
        report: numbers or a table that show it.
        causes: likely mistakes, one sentence each.
    """

    def __init__(self, what: str, report: str = "", causes: Sequence[str] = ()):
        super().__init__(what)
        self.report, self.causes = report, causes


def same(what: str, got: Any, expected: Any, mistakes: Mapping[str, Any] | None = None) -> None:
    """Raise Wrong unless a result is the expected one, up to rounding; a known mistake is named.

    Args:
        what: the call that was checked, such as "softmax(scores)".
        got, expected: tensors; or numbers and lists, such as ids, which must be equal.
        mistakes: by the sentence that explains it, the value that a known mistake computes, a function that
            returns it, or a tuple of values.
    """
    if isinstance(expected, list) and isinstance(got, Tensor):
        got = got.tolist()
    if isinstance(expected, Tensor) and isinstance(got, int | float):
        got = torch.tensor(got, dtype=expected.dtype)
    if problem := _problem(got, expected):
        raise Wrong(f"{what} {problem}.", _numbers(got, expected), named(got, mistakes or {}))


def named(got: Any, mistakes: Mapping[str, Any]) -> list[str]:
    """The first of these mistakes that computes `got`, if any; see `same`."""
    for sentence, value in mistakes.items():
        values = value if isinstance(value, tuple) else (value() if callable(value) else value,)
        if not all(_problem(got, each) for each in values):
            return [sentence]
    return []


def same_module(
    what: str,
    mine: nn.Module,
    reference: nn.Module,
    inputs: Any,
    mistakes: Mapping[str, Any] | None = None,
    load: bool = True,
    **options: Any,
) -> None:
    """Raise Wrong unless two modules return the same from the same weights; see `compare_modules`.

    Args:
        what: the module that is checked, such as "Block".
        mistakes: as in `same`, of the module's output; named in place of the causes of `compare_modules`.
        load: first load the reference's weights into `mine`, as from a checkpoint: tied weights once.
        options: of `compare_modules`. Gradients are not compared by default.
    """
    if load:
        load_weights(what, mine, reference)
    try:
        report = compare_modules(mine.eval(), reference, inputs, **{"backward": False} | options)
    except ValueError as error:
        if "mine returns no tensor" in str(error):
            raise Wrong(f"{what}.forward returns no tensor. Is its return missing?") from None
        raise
    if report.rows[-1].verdict != EQUAL:  # the whole module's: a part may compute something else
        causes = named(mine(*inputs) if isinstance(inputs, tuple) else mine(inputs), mistakes or {})
        causes = causes or [
            f"{cause.name}, in {cause.module or what}: {cause.sentence}" for cause in report.causes
        ]
        raise Wrong(_where(what, report, reference), _table(report), causes)


def _where(what: str, report: Report, reference: nn.Module) -> str:
    """Where a module differs from the reference, in sentences."""
    first, bad = (name or what for name in (report.first_divergent, report.first_bad_module))
    text = f"{what} differs from the reference" + (f", first in {first}." if first != what else ".")
    if bad != first:
        text += f" Its input already differs: the mistake is before it, in {bad}."
    modules = {name: reference.get_submodule(name.partition(" #")[0]) for name in report.only_reference}
    unused = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
    return f"{text} Not called: {few(unused)}." if unused else text


def _table(report: Report) -> str:
    """The table of a report, without the rows far from the first divergent module."""
    names = [row.name for row in report.rows]
    first = names.index(report.first_divergent or "")
    start = max(0, min(first - ROWS_BEFORE, len(names) - MOST_ROWS))
    rows = report.rows[start : start + MOST_ROWS]
    lines = str(replace(report, rows=rows)).partition("\n\n")[0].splitlines()
    if start:
        lines.insert(1, f"... {start} before, equal")
    if (after := len(names) - start - len(rows)) > 0:
        lines.append(f"... {after} after")
    return "\n".join(lines)


def load_weights(what: str, mine: nn.Module, reference: nn.Module) -> None:
    """Load the reference's weights as from a checkpoint; parameters that only `mine` has stay as they are.

    Raises:
        Wrong: a parameter of the reference is missing in `mine`, or has another shape there.
    """
    weights = {name: weight.detach() for name, weight in reference.named_parameters()}
    own = dict(mine.named_parameters(remove_duplicate=False))
    if missing := [name for name in weights if name not in own]:
        hint = did_you_mean(missing[0], own.keys() - weights.keys())
        raise Wrong(f"{what} lacks parameters of the checkpoint: {few(missing, 6)}{hint or '.'}")
    for name, weight in weights.items():
        if own[name].shape != weight.shape:
            raise Wrong(f"{what}: {name} is {_shape(own[name])}, in the checkpoint {_shape(weight)}.")
    mine.load_state_dict(weights, strict=False)


def shipped(name: str) -> Path | None:
    """A directory in weights/ of a clone of ftcore; None where it is not, as in a wheel."""
    directory = ROOT / "weights" / name
    return directory if directory.is_dir() else None


def _problem(got: Any, expected: Any) -> str:
    """How a result differs from the expected one, as the end of a sentence; empty if it does not."""
    if got is None:
        return "returns None, as a function without return does"
    if not isinstance(expected, Tensor):
        return "" if got == expected else "returns something else than the reference"
    if not isinstance(got, Tensor):
        return f"returns a {type(got).__name__}, expected a tensor {_shape(expected)}"
    if got.shape != expected.shape:
        return f"has shape {_shape(got)}, expected {_shape(expected)}"
    if got.dtype != expected.dtype:
        return f"has dtype {got.dtype}, expected {expected.dtype}".replace("torch.", "")
    if not got.is_floating_point():
        return "" if torch.equal(got, expected) else "differs from the reference"
    if got.isnan().any() and not expected.isnan().any():
        return "contains NaN"
    return "" if difference(got.detach(), expected).relative <= TOLERANCE else "differs from the reference"


def _numbers(got: Any, expected: Any) -> str:
    """The result beside the expected one; of tensors, the row with the largest difference."""
    index = ""
    if isinstance(got, Tensor) and isinstance(expected, Tensor):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return ""
        if got.dim() > 1:
            gap = (got.detach().double() - expected.double()).abs().nan_to_num(torch.inf).amax(-1)
            row = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
            index = str(row)
            got, expected = got[tuple(row)], expected[tuple(row)]
    return f"yours{index}     {_short(got)}\nexpected{index}  {_short(expected)}"


def _short(value: Any) -> str:
    values = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(values, list):
        return f"{values:.4g}" if isinstance(values, float) else repr(values)[:60]
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values[:6]]
    return f"[{', '.join(shown)}{', ...' if len(values) > 6 else ''}]"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
