"""Results as a Markdown table, as JSON and as a figure of growth."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ftcore.benchmark.cases import Case, Job
from ftcore.benchmark.roofline import BYTES, Machine
from ftcore.benchmark.worker import Measurement
from ftcore.figures import Figure, new_figure

LOSS_TOL = 1e-4  # per step, in fp32


class Quartiles(NamedTuple):
    """Median and quartiles of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles | None":
        """None if there are no values."""
        if not values:
            return None
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Row:
    """One case of one model, in one of ftcore's ways (plain, fast, compiled) and in the other libraries."""

    model: str
    parameters: int
    job: Job
    results: dict[str, Measurement]  # by backend, ftcore's first
    roofline: float | None  # lower bound on seconds
    seconds_at_peak: float | None = None  # of training at the published peak

    @property
    def name(self) -> str:
        """The case, marked where it is measured with `--fast` or `--compile`."""
        options = {"ftcore": "", "ftcore-fast": " --fast", "ftcore-compiled": " --compile"}
        return self.case.name + options[self.backend]

    @property
    def case(self) -> Case:
        """What was measured."""
        return self.job.case

    @property
    def backend(self) -> str:
        """ "ftcore", "ftcore-fast" or "ftcore-compiled", which is the first."""
        return next(iter(self.results))

    @property
    def ours(self) -> Measurement:
        """The measurement of ftcore."""
        return self.results[self.backend]

    @property
    def others(self) -> list[str]:
        """Names of the other backends."""
        return list(self.results)[1:]

    @property
    def amount(self) -> int:
        """Tokens or examples per round, the numerator of the rate; 0 for loading, whose unit is seconds."""
        case = self.case
        if case.kind == "generate":
            return case.rows * (case.source if case.target == 1 else case.target)
        return case.rows * case.steps * (case.source + case.target if case.random else 1)

    @property
    def unit(self) -> str:
        """Of `rate`: what a round amounts to, by time; seconds where it is one thing."""
        if self.case.kind == "train" and not self.case.random:
            return "examples/s"
        return "tokens/s" if self.amount else "s"

    def rate(self, backend: str) -> Quartiles | None:
        """Speed of a backend in `unit`."""
        seconds = self.results[backend].seconds
        return Quartiles.of([self.amount / each for each in seconds] if self.amount else seconds)

    def ratio(self, backend: str) -> Quartiles | None:
        """The backend's time divided by ftcore's, paired by round, since the speed of a machine drifts."""
        pairs = zip(self.results[backend].seconds, self.ours.seconds, strict=False)  # one may have failed
        return Quartiles.of([other / ours for other, ours in pairs])

    @property
    def roofline_share(self) -> float | None:
        """The lower bound on the time, divided by ftcore's median time."""
        ours = Quartiles.of(self.ours.seconds)
        return self.roofline / ours.median if self.roofline and ours else None

    def mfu(self, backend: str) -> float | None:
        """Model FLOPs utilization in training, see roofline.py; None without a published peak."""
        seconds = Quartiles.of(self.results[backend].seconds)
        return self.seconds_at_peak / seconds.median if self.seconds_at_peak and seconds else None

    def agreement(self, backend: str) -> str:
        """Compare ids, or losses, with ftcore's. Equal ids are expected in fp32 only."""
        ours, other = self.ours.output, self.results[backend].output
        if ours is None or other is None:
            return ""
        if self.case.kind in ("generate", "ready"):
            return ("ids equal" if ours == other else "ids DIFFER") if self.job.dtype == "fp32" else ""
        if self.job.dropout:
            return ""
        if not all(map(math.isfinite, [*ours, *other])):
            return "loss NOT FINITE"
        error = max(abs(a - b) for a, b in zip(ours, other, strict=True))
        verdict = " DIFFERS" if self.job.dtype == "fp32" and not error <= LOSS_TOL else ""
        return f"loss{verdict} within {error:.0e}"

    def speed(self, backend: str) -> str:
        """Median rate with its unit, such as "25.3 tokens/s"."""
        rate = self.rate(backend)
        return f"{rate.median:{'.3g' if rate.median < 100 else ',.0f'}} {self.unit}" if rate else "–"

    def summary(self) -> str:
        """ftcore's rate and the median ratios, as progress."""
        ratios = (f"{name} {ratio.median:.2f}" for name in self.others if (ratio := self.ratio(name)))
        return "  ".join([self.backend, self.speed(self.backend), *ratios])

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, with what is derived from them."""
        row = asdict(self) | {"row": self.name, "unit": self.unit, "roofline_share": self.roofline_share}
        for backend, result in row["results"].items():
            del result["output"]
            for name, quartiles in (("rate", self.rate(backend)), ("ratio", self.ratio(backend))):
                result[name] = quartiles and quartiles._asdict()
            result["agreement"], result["mfu"] = self.agreement(backend), self.mfu(backend)
        return row


def report(rows: Sequence[Row], machine: Machine) -> list[str]:
    """Lines: the machine, versions and settings, the Markdown table, and why cells are empty."""
    job = rows[0].job
    settings = job.dtype + f", dropout {job.dropout:g}" * (job.dropout > 0)
    versions = ", ".join(f"{backend} {version}" for backend, version in library_versions(rows).items())
    rounds = max(len(row.ours.seconds) for row in rows)

    ways = list(dict.fromkeys(row.backend for row in rows))
    head = ["model", "row", "backend", "speed", *(f"time / {way}" for way in ways)]
    lines = [[*head, "of roofline", "peak memory", "agreement"]]
    for _, group in groupby(rows, key=lambda row: (row.model, row.case.name)):
        lines += table_lines(list(group), ways)
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    table = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]

    reasons: dict[tuple[str, str, str], dict[str, None]] = {}  # backend, model and reason -> its cases, once
    for row in rows:
        for backend, result in row.results.items():
            if result.missing:
                reasons.setdefault((backend, row.model, result.missing), {})[row.case.name] = None
    return [
        machine.describe(),
        f"{versions}; {settings}; medians of {rounds} rounds. A ratio is a library's time divided by "
        "ftcore's, with its quartiles in parentheses.",
        "",
        *table,
        *([""] if reasons else []),
        *(
            f"{name}, {model} {', '.join(cases)}: {reason}."
            for (name, model, reason), cases in reasons.items()
        ),
    ]


def table_lines(group: Sequence[Row], ways: Sequence[str]) -> list[list[str]]:
    """A line for each backend of one case; see `report` for the columns."""
    first = group[0]
    lines = []
    for row in group:
        share = "" if row.roofline_share is None else f"{row.roofline_share:.0%}"
        share += mfu_text(row, row.backend)
        lines.append(
            [row.backend, row.speed(row.backend), *([""] * len(ways)), share, megabytes(row.ours), ""]
        )
    for other in first.others:
        ratios = {row.backend: str(row.ratio(other) or "") for row in group}
        agreements = {row.backend: text for row in group if (text := row.agreement(other))}
        agreement = next(iter(agreements.values()), "")
        if len(set(agreements.values())) > 1:
            agreement = "; ".join(f"{way}: {text}" for way, text in agreements.items())
        cells = [other, first.speed(other), *(ratios.get(way, "") for way in ways)]
        lines.append([*cells, mfu_text(first, other).strip(), megabytes(first.results[other]), agreement])
    return [[first.model, first.case.name, *line] for line in lines]


def mfu_text(row: Row, backend: str) -> str:
    """ " (MFU 41%)", where it is known."""
    mfu = row.mfu(backend)
    return "" if mfu is None else f" (MFU {mfu:.0%})"


def megabytes(result: Measurement) -> str:
    """Peak memory as text."""
    return "–" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.0f} MB"


def library_versions(rows: Sequence[Row]) -> dict[str, str]:
    """Versions of the libraries that have run."""
    results = (item for row in rows for item in row.results.items() if not item[0].startswith("ftcore-"))
    return {backend: result.version for backend, result in results if result.version}


AXES = {  # of `growth_cases`, with their labels
    "source": "tokens of the input (one new token)",
    "rows": "rows (16 tokens in, 32 out)",
    "beams": "beams (16 tokens in, 32 out)",
    "parameters": "parameters (16 tokens in, 32 out)",
}


def require_matplotlib(path: Path) -> None:
    """Raise ValueError, before anything is measured, where the figure could not be drawn or saved."""
    if find_spec("matplotlib") is None:
        raise ValueError("`growth` draws with matplotlib, which is not installed: pip install matplotlib")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"`growth` {path}: its directory does not exist")


def draw_growth(rows: Sequence[Row]) -> Figure:
    """Plot time and peak memory of `growth_cases`, one column per axis.

    Lower bounds are dashed: the roofline, and the size of the weights.
    """
    from matplotlib.ticker import LogLocator

    figure = new_figure(14, 6.8)
    columns = figure.subplots(2, len(AXES)).T
    for (seconds, memory), (axis, label) in zip(columns, AXES.items(), strict=True):
        curves: dict[str, list[tuple[float, ...]]] = {}  # points (x, seconds, gigabytes)
        for row in rows:
            if row.case.axis != axis:
                continue
            x = row.parameters if axis == "parameters" else getattr(row.case, axis)
            for backend, result in row.results.items():
                if (time := Quartiles.of(result.seconds)) and result.peak_bytes:
                    curves.setdefault(backend, []).append((x, time.median, result.peak_bytes / 1e9))
            weights = row.parameters * BYTES[row.job.dtype] / 1e9
            curves.setdefault("lower bound", []).append((x, row.roofline or math.nan, weights))
        for name, points in curves.items():
            xs, medians, peaks = zip(*sorted(points), strict=True)
            style = {"linestyle": "--", "color": "gray"} if name == "lower bound" else {"marker": "."}
            seconds.plot(xs, medians, label=name, **style)
            memory.plot(xs, peaks, label=name, **style)
        ticks = sorted({point[0] for point in curves.get("lower bound", [])})
        seconds.set(ylabel="seconds", yscale="log")
        seconds.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        seconds.yaxis.set_major_formatter("{x:g}")
        memory.set(ylabel="peak memory (GB)", ylim=(0, None))
        for panel in (seconds, memory):
            panel.set(xlabel=label, xscale="log")
            panel.set_xticks(ticks, [f"{x / 1e6:.0f}M" if x >= 1e6 else str(x) for x in ticks])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    handles, names = columns[-1][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return figure
