"""How far two computations are apart, how far rounding alone may drive them, and the table that says so."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftcore.study.recording import Call

EQUAL, DIFFERS, NOT_FINITE, SHAPE, GRADIENT = "equal", "differs", "not finite", "shape", "gradient differs"


class Difference(NamedTuple):
    absolute: float  # the largest
    relative: float  # that, relative to the largest value of the reference


def difference(mine: Tensor, reference: Tensor, size: float | None = None) -> Difference:
    """The largest difference of two tensors of one shape. What is NaN or the same infinity in both is equal.

    Args:
        size: what the difference is relative to, by default the largest finite value of the reference.
    """
    dtype = torch.promote_types(torch.promote_types(mine.dtype, reference.dtype), torch.float32)
    mine, reference = mine.to(dtype), reference.to(dtype)
    if mine.numel() == 0:
        return Difference(0.0, 0.0)
    absolute = (mine - reference).abs().max().item()
    if not math.isfinite(absolute):
        same = (mine == reference) | (mine.isnan() & reference.isnan())
        absolute = (mine - reference).masked_fill(same, 0.0).abs().nan_to_num(math.inf, math.inf).max().item()
    if size is None:
        size = largest(reference)
    return Difference(absolute, absolute / size if size else math.inf if absolute else 0.0)


def broadcast(mine: Tensor, reference: Tensor) -> Tensor:
    """Mine in the reference's shape where only sizes of 1 differ: positions may be made once for all rows."""
    if mine.dim() == reference.dim() and mine.shape != reference.shape:
        sizes = zip(mine.shape, reference.shape, strict=True)
        if all(one in (1, other) for one, other in sizes):
            return mine.expand_as(reference)
    return mine


def largest(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    size = tensor.detach().abs().max().item()
    return size if math.isfinite(size) else tensor.detach().nan_to_num(0.0, 0.0, 0.0).abs().max().item()


def rounding(dtype: torch.dtype, variance: float) -> float:
    """The largest relative difference that rounding explains: the tolerance wherever none is given.

    Two correct computations differ only by rounding, for they sum in different orders. A sum of n products
    errs by about sqrt(n)/2 eps of its size when both sides are counted, which is a variance of n/4 eps²; any
    other module rounds each number once on each side, which is less than 1 eps². Independent errors add up
    like a random walk, so the variances of the modules on the way add, and residual sums and averages do not
    amplify them. Nor do norms, but for the mean that LayerNorm subtracts: what is left is rounded like the
    numbers before it. `variance` is that sum (see `work`), and no error is expected beyond 4 standard
    deviations. Integers have to be equal.
    """
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return 4 * eps * math.sqrt(variance)


def work(call: Call) -> float:
    """What one module adds to the variance of rounding, in units of eps²."""
    module, given = call.module, call.main_input
    if given is None or not given.is_floating_point():
        return 1.0
    if isinstance(module, nn.LayerNorm):
        given = given.detach()
        left = given.var(-1, correction=0) + module.eps
        return ((given.square().mean(-1) + module.eps) / left).max().item()
    weight = getattr(module, "weight", None)
    sums_products = isinstance(weight, Tensor) and weight.dim() > 1
    return 1.0 + (given.shape[-1] / 4 if sums_products else 0.0)


def verdict(mine: Tensor, reference: Tensor, apart: Difference, tolerance: float) -> str:
    if mine.shape != reference.shape:
        return SHAPE
    if (reference.isfinite() & ~mine.isfinite()).any():
        return NOT_FINITE
    return EQUAL if apart.relative <= tolerance else DIFFERS


@dataclass(frozen=True)
class Row:
    """One module in both, or one parameter's gradient in both."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    absolute: float  # largest difference
    relative: float  # the same, relative to the largest value of the reference
    gradient: float | None  # largest relative difference of the gradient of this output
    tolerance: float
    verdict: str
    note: str = ""  # the other shape or dtype


@dataclass(frozen=True)
class Cause:
    """A mistake that explains the divergence: with it, the reference computes what mine computes."""

    name: str
    module: str
    sentence: str
    before: float  # relative difference of mine from the reference
    after: float  # relative difference of mine from the reference with this mistake
    evidence: str


@dataclass
class Report:
    """What `compare_modules` found; `str(report)` is the table, `report.equal` the answer."""

    rows: list[Row]  # in execution order
    gradients: list[Row]  # of the main input and of the parameters
    only_mine: list[str]  # modules without a counterpart
    only_reference: list[str]
    unequal_weights: dict[str, str]  # parameter of mine -> in which way it is not the reference's
    first_divergent: str | None = None
    culprit: str | None = None  # the smallest module around it whose own input is still equal
    causes: list[Cause] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return all(row.verdict == EQUAL for row in (*self.rows, *self.gradients))

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in which infinity has no number: it becomes null."""
        return {"equal": self.equal} | _finite(asdict(self))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _table(self.rows)
        yield ""
        yield from self._gradient_lines()
        for side, names in (("mine", self.only_mine), ("the reference", self.only_reference)):
            if names:
                yield f"Not compared, only in {side}: {few(names)}"
        if self.equal:
            yield "Equal: no difference is larger than rounding explains."
            return
        if self.first_divergent is not None:
            yield f"First divergent module: {shown(self.first_divergent)}"
        if self.culprit != self.first_divergent and self.culprit is not None:
            yield f"  Its input differs already: the mistake is in {shown(self.culprit)}, between modules."
        yield from self._weight_lines()
        if self.culprit is not None:
            yield from self._cause_lines()

    def _gradient_lines(self) -> Iterator[str]:
        wrong = [row for row in self.gradients if row.verdict != EQUAL]
        if wrong and self.culprit is not None:
            yield f"Gradients: {len(wrong)} of {len(self.gradients)} differ, as they must where outputs do."
        elif wrong:
            yield f"Gradients that differ, {len(wrong)} of {len(self.gradients)}:"
            yield from _table(wrong)
            yield ""
        elif self.gradients:
            worst = max(row.relative for row in self.gradients)
            yield f"Gradients: all {len(self.gradients)} equal, largest relative difference {worst:.1e}."

    def _weight_lines(self) -> Iterator[str]:
        if self.unequal_weights:
            listed = [f"{name} ({how})" for name, how in self.unequal_weights.items()]
            yield f"Weights that are not the reference's: {few(listed)}"
            yield "  copy_weights=True compares the computation alone."

    def _cause_lines(self) -> Iterator[str]:
        if not self.causes:
            yield "Likely cause: no known cause explains it."
        for cause in self.causes:
            yield f"Likely cause: {cause.name}, in {shown(cause.module)}"
            yield f"  {cause.sentence}"
            yield f"  Evidence: {cause.evidence}."


def shown(name: str) -> str:
    return name or "(the whole)"


def few(names: Sequence[str], count: int = 6) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(shown(name) for name in names[:count]) + more


def _table(rows: Iterable[Row]) -> Iterator[str]:
    lines = [("module", "shape", "absolute", "relative", "gradient", "verdict")]
    for row in rows:
        gradient = "" if row.gradient is None else f"{row.gradient:.1e}"
        numbers = (f"{row.absolute:.1e}", f"{row.relative:.1e}", gradient)
        shape = " x ".join(map(str, row.shape)) or "scalar"
        lines.append((shown(row.name), shape, *numbers, " ".join(filter(None, (row.verdict, row.note)))))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for name, shape, absolute, relative, gradient, end in lines:
        yield (
            f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {absolute:>{widths[2]}}  {relative:>{widths[3]}}  "
            f"{gradient:>{widths[4]}}  {end}"
        )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
