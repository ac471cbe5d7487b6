"""What a check of a run has found, and by how much two ways to compute one thing may differ:

    In float64 the results may differ by HALF, the square root of its rounding: half of the digits are left
    for rounding errors to grow in, and no mistake in a formula is as small as the other half.

    In the run's own precision, float64's result is the truth. The two ways err by rounding alone, by sums of
    many errors of the same size, whose norms are close to each other: one may be TIMES the other.

A check that is passed by a faulty program too says nothing. So each has a fault, made on purpose or worked
out, and where the fault would stay within the bound (where nothing is padded, say), the verdict is that it
could not be checked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HOLDS, FAILS, NOT_CHECKED = "holds", "FAILS", "could not be checked"

HALF = math.sqrt(torch.finfo(torch.float64).eps)  # 1.5e-8
TIMES = 4.0  # as for the parity with transformers: see docs/parity.md


class Figure(NamedTuple):
    what: str
    value: float
    bound: float  # the most that is allowed

    @property
    def is_within(self) -> bool:
        return self.value <= self.bound  # NaN is not


@dataclass(frozen=True)
class Check:
    """What one check has found; `str(check)` is what the user reads behind its name."""

    compared: str
    figures: Sequence[Figure]
    bounds: str  # where they come from
    fault: Figure | None = None  # what a fault would come to, which must be more than its bound
    why_not: str = ""  # it could be checked

    @property
    def verdict(self) -> str:
        if not all(figure.is_within for figure in self.figures):
            return FAILS
        return NOT_CHECKED if self.why_not or self.fault is None or self.fault.is_within else HOLDS

    def __str__(self) -> str:
        lines = [self.verdict, *([f"  {self.compared}"] if self.compared else [])]
        figures = [*self.figures, *([self.fault] if self.fault else [])]
        width = max((len(figure.what) for figure in figures), default=0)
        for figure in figures:
            comparison = "more than" if figure is self.fault else "at most"
            mark = "" if figure.is_within != (figure is self.fault) else "   <--"
            lines.append(
                f"    {figure.what:<{width}}  {_short(figure.value):>8}   "
                f"{comparison} {_short(figure.bound)}{mark}"
            )
        lines.append(f"  {self.why_not or self.bounds}")
        return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.2g}"


def apart(mine: Tensor, reference: Tensor) -> float:
    """The norm of the difference, relative to the reference's; infinite for another number of numbers."""
    if mine.shape != reference.shape:
        return math.inf
    difference = (mine.double() - reference.double()).norm().item()
    return difference / reference.double().norm().item() if difference else 0.0


def no_worse(precision: str, what: str, other: Tensor, usual: Tensor, truth: Tensor) -> Figure:
    """The error of the other way in the run's precision, bounded by the usual way's."""
    one_rounding = torch.finfo(
        {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    ).eps
    bound = max(TIMES * apart(usual, truth), one_rounding)
    return Figure(f"error of {what}, {precision}", apart(other, truth), bound)


def rounding_bounds(precision: str, usual: str) -> str:
    """In words, where the bounds HALF and that of `no_worse` come from."""
    return (
        "Rounding may cost half of float64's digits. "
        f"In {precision}, the error against float64 may be {TIMES:g} times\n  that of {usual}."
    )


def impossible(why: str) -> Check:
    """A check that these examples do not allow."""
    return Check("", [], "", why_not=why)
