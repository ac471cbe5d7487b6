"""The rows as a table in Markdown, and as an object for JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftcore.benchmark.cases import Case
from ftcore.benchmark.machine import Machine
from ftcore.benchmark.rounds import Measured, Spread, ratios

NAMES = {"ftcore": "ftcore", "transformers": "transformers", "ctranslate2": "CTranslate2"}
SAME_LOSS = 1e-4  # per step, in fp32


@dataclass(frozen=True)
class Row:
    """A case of one model, measured."""

    model: str
    case: Case
    dtype: str
    sides: dict[str, Measured]  # ftcore's first
    limit: float | None  # seconds below which no program gets on this machine
    parameters: int  # of the model
    compiled: bool = False  # ftcore's steps of decoding, and what is trained
    dropout: float = 0.0  # while training

    @property
    def ours(self) -> Measured:
        return self.sides["ftcore"]

    @property
    def value(self) -> int:
        """Where the row stands on its case's axis."""
        return self.parameters if self.case.axis == "model" else getattr(self.case, self.case.axis)

    def rate(self, side: str) -> Spread | None:
        """The unit's figures: what is done in a second, or of loading the seconds that it takes."""
        seconds = self.sides[side].seconds
        if not seconds:
            return None
        amount = self.amount
        return Spread.of([amount / each for each in seconds] if amount else seconds)

    @property
    def amount(self) -> int:
        """How much a round does, in the unit; 0 for loading, which is a matter of seconds."""
        case = self.case
        return case.rows * {
            "generate": case.source if case.target == 1 else case.target,
            "train": case.steps,
        }.get(case.kind, 0)

    @property
    def unit(self) -> str:
        if self.case.kind == "train":
            return "examples/s"
        return "tokens/s" if self.amount else "s"

    def ratio(self, side: str) -> Spread | None:
        other = self.sides[side]
        return ratios(other, self.ours) if other.seconds and self.ours.seconds else None

    @property
    def share(self) -> float | None:
        """Of what the machine can do at most."""
        if self.limit is None or not self.ours.seconds:
            return None
        return self.limit / Spread.of(self.ours.seconds).median

    def agreement(self, side: str) -> str:
        """Whether the side's ids, or losses, are ftcore's; ids and equal losses can be expected in fp32."""
        mine, other = self.ours.first, self.sides[side].first
        if mine is None or other is None:
            return ""
        if self.case.kind == "generate":
            return ("ids equal" if mine == other else "ids DIFFER") if self.dtype == "fp32" else ""
        if self.dropout:  # each draws numbers of its own
            return ""
        differences = [abs(one - two) for one, two in zip(mine, other, strict=True)]
        apart = math.nan if any(map(math.isnan, differences)) else max(differences)
        verdict = " DIFFERS" if self.dtype == "fp32" and not apart <= SAME_LOSS else ""
        return f"loss{verdict} within {apart:.0e}"

    def summary(self) -> str:
        """One line for those who wait."""
        parts = [f"  {_rate(self, 'ftcore')} {self.unit}"]
        for side in self.sides:
            if side != "ftcore" and (ratio := self.ratio(side)):
                parts.append(f"{ratio.median:.2f}x {NAMES[side]}")
            elif reason := self.sides[side].missing:
                parts.append(f"{NAMES[side]} {reason}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "parameters": self.parameters,
            "row": self.case.name,
            "case": asdict(self.case),
            "dtype": self.dtype,
            "compiled": self.compiled,
            "dropout": self.dropout,
            "unit": self.unit,
            "sides": {
                side: {
                    "version": measured.version,
                    "missing": measured.missing,
                    "seconds": measured.seconds,
                    "rate": _spread(self.rate(side)),
                    "peak_bytes": measured.peak_bytes,
                }
                | ({} if side == "ftcore" else self._beside_ours(side))
                for side, measured in self.sides.items()
            },
            "limit_seconds": self.limit,
            "share_of_limit": self.share,
        }

    def _beside_ours(self, side: str) -> dict[str, Any]:
        return {"ratio": _spread(self.ratio(side)), "agreement": self.agreement(side)}


def _spread(spread: Spread | None) -> dict[str, float] | None:
    if spread is None:
        return None
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def report(rows: Sequence[Row], machine: Machine) -> list[str]:
    """The table, with the machine above it and what is missing below."""
    return [*machine.lines(), _versions(rows), "", *_table(rows), *_notes(rows)]


def _versions(rows: Sequence[Row]) -> str:
    versions = {side: measured.version for row in rows for side, measured in row.sides.items()}
    sides = ", ".join(f"{NAMES[side]} {version}" for side, version in versions.items())
    rounds = max(len(row.ours.seconds) for row in rows)
    settings = ", compiled" if rows[0].compiled else ""
    settings += f", dropout {rows[0].dropout:g}" if rows[0].dropout else ""
    return (
        f"{sides}; {rows[0].dtype}{settings}; medians of {rounds} rounds. A ratio is the other's time in "
        "ftcore's; in brackets its quartiles."
    )


def _table(rows: Sequence[Row]) -> list[str]:
    """The table's lines; all rows have the same sides."""
    others = [side for side in rows[0].sides if side != "ftcore"]
    head = ["model", "row", "unit", "ftcore"]
    for side in others:
        head += [NAMES[side], "ratio"]
    head += ["of the limit", "peak memory", "agreement"]
    lines = [head] + [_cells(row, others) for row in rows]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return [_line(cells, widths) for cells in (lines[0], rule, *lines[1:])]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _cells(row: Row, others: Sequence[str]) -> list[str]:
    cells = [row.model, row.case.name, row.unit, _rate(row, "ftcore")]
    for side in others:
        ratio = row.ratio(side)
        cells += [_rate(row, side), f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else ""]
    memory = " / ".join(_memory(measured) for measured in row.sides.values())
    agreements = [text for side in others if (text := row.agreement(side))]
    if len(set(agreements)) > 1:
        agreements = [f"{NAMES[side]}: {text}" for side in others if (text := row.agreement(side))]
    cells += [f"{row.share:.0%}" if row.share else "", memory, "; ".join(dict.fromkeys(agreements))]
    return cells


def _rate(row: Row, side: str) -> str:
    rate = row.rate(side)
    if rate is None:
        return "–"
    return f"{rate.median:.3g}" if rate.median < 100 else f"{rate.median:,.0f}"


def _memory(measured: Measured) -> str:
    if measured.peak_bytes is None:
        return "–"
    return f"{measured.peak_bytes / 1e6:,.0f} MB"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Why cells are empty."""
    reasons = {
        f"{NAMES[side]} {row.model} {row.case.name}: {measured.missing}"
        if measured.missing and ":" in measured.missing
        else f"{NAMES[side]} {measured.missing}"
        for row in rows
        for side, measured in row.sides.items()
        if measured.missing
    }
    return ["", *(f"{reason}." for reason in sorted(reasons))] if reasons else []
