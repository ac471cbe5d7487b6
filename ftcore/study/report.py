"""The result of a comparison: differences, the tolerance that rounding explains, and the table."""

import html
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftcore.output import few
from ftcore.study.recording import Call

COLUMNS, SHORTEST_NAME = 80, 24  # of the table, and of its names where they are longer

EQUAL, DIFFERS, NOT_FINITE, SHAPE, GRADIENT = "equal", "differs", "not finite", "shape", "gradient differs"


class Difference(NamedTuple):
    """How far two tensors are apart."""

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


def broadcast(tensor: Tensor, other: Tensor) -> Tensor:
    """Expand to the shape that both have by PyTorch's rules, e.g. position ids shared by all rows."""
    try:
        return tensor.expand(torch.broadcast_shapes(tensor.shape, other.shape))
    except RuntimeError:  # there is none
        return tensor


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


@dataclass(repr=False)
class Report:
    """Result of `compare_modules`: `report.equal` is the answer, `str(report)` the table.

    As the last line of a notebook's cell it is shown as the table, too.
    """

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
        """Whether every output and every gradient is equal."""
        return all(row.verdict == EQUAL for row in (*self.rows, *self.gradients))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; infinity becomes null."""
        return {"equal": self.equal} | _to_json(asdict(self))

    def __str__(self) -> str:
        """The table and the conclusion, in 80 columns where names allow."""
        return "\n".join([*_table(self.rows), "", *self._conclusion()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        lines = html.escape("\n".join(self._conclusion()))
        return f"{_html_table(self.rows)}<pre>{lines}</pre>"

    def _conclusion(self) -> Iterator[str]:
        yield from self._gradient_lines()
        for side, names in (("mine", self.only_mine), ("the reference", self.only_reference)):
            if names:
                yield _wrap(f"Not compared, only in {side}: {few(list(map(display_name, names)), 6)}")
        if self.equal:
            yield "Equal: no difference is larger than rounding explains."
            return
        if self.first_divergent is not None:
            yield f"First divergent module: {display_name(self.first_divergent)}"
        if self.first_bad_module not in (None, self.first_divergent):
            bad = display_name(self.first_bad_module)
            yield _wrap(f"  Its input already differs: the mistake is in {bad}, between its submodules.")
        if self.unequal_weights:
            listed = [f"{name} ({how})" for name, how in self.unequal_weights.items()]
            yield _wrap(f"Weights that differ from the reference: {few(listed, 6)}")
            yield "  copy_weights=True compares the computation alone."
        if self.first_bad_module is not None and not self.causes:
            yield "Likely cause: no known cause explains it."
        for cause in self.causes:
            yield f"Likely cause: {cause.name}, in {display_name(cause.module)}"
            yield _wrap(f"  {cause.sentence}")
            yield _wrap(f"  Evidence: {cause.evidence}.")

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
    """The name of a call, or what stands for the outermost module, which has none."""
    return name or "(whole module)"


def _wrap(text: str) -> str:
    return textwrap.fill(
        text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


HEADER = ("module", "shape", "absolute", "relative", "gradient", "verdict")


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "scalar"
    gradient = "" if row.gradient is None else f"{row.gradient:.1e}"
    numbers = f"{row.absolute:.1e}", f"{row.relative:.1e}", gradient
    return display_name(row.name), shape, *numbers, "gradient" if row.verdict == GRADIENT else row.verdict


def _columns(rows: list[Row]) -> list[tuple[str, ...]]:
    """Header and cells, column by column. The gradients are left out if there are none."""
    columns = [*zip(HEADER, *map(_cells, rows), strict=True)]
    return [column for column in columns if any(column[1:]) or column[0] != "gradient"]


def _table(rows: list[Row]) -> Iterator[str]:
    """Long names are shortened, and a note that does not fit stands below its line."""
    names, shapes, *numbers, verdicts = _columns(rows)
    widths = [max(map(len, column)) for column in (shapes, *numbers, verdicts)]
    room = max(COLUMNS - sum(width + 2 for width in widths), SHORTEST_NAME)
    names = tuple(shorten(name, room) for name in names)
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in (names, shapes)]
    padded += [[cell.rjust(max(map(len, column))) for cell in column] for column in numbers]
    lines = map("  ".join, zip(*padded, verdicts, strict=True))
    for line, note in zip(lines, ["", *(row.note for row in rows)], strict=True):
        separator = " " if len(line) + len(note) < COLUMNS else "\n    "
        yield f"{line}{separator}{note}" if note else line


def shorten(name: str, width: int) -> str:
    """A dotted name with its longest parts cut in the middle, so that it fits if it can."""
    short, limit = name, max(map(len, name.split(".")))
    while len(short) > width and limit > len("a~b"):
        limit -= 1
        short = ".".join(_cut(part, limit) for part in name.split("."))
    return short


def _cut(part: str, limit: int) -> str:
    if len(part) <= limit:
        return part
    left, right = limit // 2, (limit - 1) // 2
    return f"{part[:left]}~{part[-right:]}"


def _html_table(rows: list[Row]) -> str:
    """Rows that differ are bold."""

    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    header, *cells = zip(*_columns(rows), strict=True)
    body = "".join(
        f'<tr style="font-weight: {"normal" if row.verdict == EQUAL else "bold"}">'
        f"{line('td', (*row_cells[:-1], f'{row_cells[-1]} {row.note}'))}</tr>"
        for row, row_cells in zip(rows, cells, strict=True)
    )
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
