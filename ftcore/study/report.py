"""The result of a comparison: differences, the tolerance that rounding explains, and the table."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftcore.cli import few
from ftcore.study.recording import Call

EQUAL, DIFFERS, NOT_FINITE, SHAPE, GRADIENT = "equal", "differs", "not finite", "shape", "gradient differs"


class Difference(NamedTuple):
    absolute: float  # max |mine - reference|
    relative: float  # absolute / max |reference|


def difference(mine: Tensor, reference: Tensor, scale: float | None = None) -> Difference:
    """The largest difference between two tensors of one shape. NaN equals NaN, inf equals inf.

    Args:
        scale: denominator of the relative difference, by default the largest finite value of the reference.
    """
    dtype = torch.promote_types(torch.promote_types(mine.dtype, reference.dtype), torch.float32)
    mine, reference = mine.to(dtype), reference.to(dtype)
    if mine.numel() == 0:
        return Difference(0.0, 0.0)
    absolute = (mine - reference).abs().max().item()
    if not math.isfinite(absolute):
        same = (mine == reference) | (mine.isnan() & reference.isnan())
        absolute = (mine - reference).masked_fill(same, 0.0).abs().nan_to_num(math.inf, math.inf).max().item()
    if scale is None:
        scale = largest(reference)
    return Difference(absolute, absolute / scale if scale else math.inf if absolute else 0.0)


def broadcast(mine: Tensor, reference: Tensor) -> Tensor:
    """Expand to the shape of the reference where it fits, e.g. position ids shared by all rows."""
    sizes = zip(reversed(mine.shape), reversed(reference.shape), strict=False)
    if mine.dim() <= reference.dim() and all(size in (1, expected) for size, expected in sizes):
        return mine.expand_as(reference)
    return mine


def largest(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    size = tensor.detach().abs().max().item()
    return size if math.isfinite(size) else tensor.detach().nan_to_num(0.0, 0.0, 0.0).abs().max().item()


def rounding(dtype: torch.dtype, variance: float) -> float:
    """The largest relative difference that rounding explains; the default tolerance.

    Two correct implementations sum in different orders and so differ by rounding. Two sums of n products
    differ by about sqrt(n)/2 eps, a variance of n/4 eps². Any other module rounds each number once on either
    side, which adds less than 1 eps². Independent errors add like a random walk, so `variance` is the sum
    over all modules so far (see `rounding_variance`). Residual connections and averages do not amplify
    errors; neither do norms, except where LayerNorm subtracts a large mean. The tolerance is 4 standard
    deviations. Integers must be equal.
    """
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return 4 * eps * math.sqrt(variance)


def rounding_variance(call: Call) -> float:
    """Variance of the rounding error that one module call adds, in units of eps²."""
    module, given = call.module, call.main_input
    if given is None or not given.is_floating_point():
        return 1.0
    if isinstance(module, nn.LayerNorm):  # cancellation: mean of squares over variance
        given = given.detach()
        variance = given.var(-1, correction=0) + module.eps
        return ((given.square().mean(-1) + module.eps) / variance).max().item()
    weight = getattr(module, "weight", None)
    is_matmul = isinstance(weight, Tensor) and weight.dim() > 1
    return 1.0 + (given.shape[-1] / 4 if is_matmul else 0.0)


@dataclass(frozen=True)
class Row:
    """Comparison of one module's output, or of one parameter's gradient."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    absolute: float  # see Difference
    relative: float
    tolerance: float  # of `relative`
    verdict: str
    note: str = ""  # shape or dtype of mine, if another
    gradient: float | None = None  # relative difference of the gradient of this output


@dataclass(frozen=True)
class Cause:
    """A mistake that explains the divergence: with it, the reference computes the output of mine."""

    name: str
    module: str
    sentence: str
    before: float  # relative difference between mine and the reference
    after: float  # relative difference between mine and the reference with this mistake
    evidence: str
    explained: int = 1  # modules whose output in mine is that of the reference with this mistake


@dataclass
class Report:
    """Result of `compare_modules`: `report.equal` is the answer, `str(report)` the table."""

    rows: list[Row]  # in execution order
    gradients: list[Row]  # of the main input and of the parameters
    only_mine: list[str]  # modules without a counterpart
    only_reference: list[str]
    unequal_weights: dict[str, str]  # parameter of mine -> how it differs from the reference
    first_divergent: str | None = None
    first_bad_module: str | None = None  # smallest module around first_divergent whose own input is equal
    causes: list[Cause] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return all(row.verdict == EQUAL for row in (*self.rows, *self.gradients))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; infinity becomes null."""
        return {"equal": self.equal} | _to_json(asdict(self))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _table(self.rows)
        yield ""
        yield from self._gradient_lines()
        for side, names in (("mine", self.only_mine), ("the reference", self.only_reference)):
            if names:
                yield f"Not compared, only in {side}: {few(list(map(display_name, names)), 6)}"
        if self.equal:
            yield "Equal: no difference is larger than rounding explains."
            return
        if self.first_divergent is not None:
            yield f"First divergent module: {display_name(self.first_divergent)}"
        if self.first_bad_module not in (None, self.first_divergent):
            bad = display_name(self.first_bad_module)
            yield f"  Its input already differs: the mistake is in {bad}, between its submodules."
        if self.unequal_weights:
            listed = [f"{name} ({how})" for name, how in self.unequal_weights.items()]
            yield f"Weights that differ from the reference: {few(listed, 6)}"
            yield "  copy_weights=True compares the computation alone."
        if self.first_bad_module is not None and not self.causes:
            yield "Likely cause: no known cause explains it."
        for cause in self.causes:
            yield f"Likely cause: {cause.name}, in {display_name(cause.module)}"
            yield f"  {cause.sentence}"
            yield f"  Evidence: {cause.evidence}."

    def _gradient_lines(self) -> Iterator[str]:
        wrong = [row for row in self.gradients if row.verdict != EQUAL]
        if wrong and self.first_bad_module is not None:
            yield f"Gradients: {len(wrong)} of {len(self.gradients)} differ, as expected when outputs do."
        elif wrong:
            yield f"Gradients that differ, {len(wrong)} of {len(self.gradients)}:"
            yield from _table(wrong)
            yield ""
        elif self.gradients:
            worst = max(row.relative for row in self.gradients)
            yield f"Gradients: all {len(self.gradients)} equal, largest relative difference {worst:.1e}."


def display_name(name: str | None) -> str:
    return name or "(whole module)"


def _table(rows: Iterable[Row]) -> Iterator[str]:
    lines = [("module", "shape", "absolute", "relative", "gradient", "verdict")]
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "scalar"
        gradient = "" if row.gradient is None else f"{row.gradient:.1e}"
        numbers = (f"{row.absolute:.1e}", f"{row.relative:.1e}", gradient)
        lines.append((display_name(row.name), shape, *numbers, f"{row.verdict} {row.note}".rstrip()))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(line[2:5], widths[2:], strict=False)]
        yield "  ".join([*left, *right, line[5]])


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
