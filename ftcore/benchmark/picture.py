"""How time and memory grow, as a picture; needs the extra `plot` (matplotlib)."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftcore.benchmark.growth import AXES
from ftcore.benchmark.rounds import Spread
from ftcore.benchmark.report import NAMES, Row
from ftcore.benchmark.roofline import BYTES
from ftcore.checkpoints.files import write_atomically


def require_plots(path: Path) -> None:
    """Raise ValueError, before anything is measured, where the picture could not be saved."""
    if find_spec("matplotlib") is None:
        raise ValueError('--growth draws with matplotlib, which is not installed: pip install -e ".[plot]"')
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--growth {path}: its directory does not exist")


def save_growth(rows: Sequence[Row], path: Path) -> None:
    """Above the seconds, below the peak memory, one column for each axis.

    Dashed are the limits: the time that this machine needs at least, and the memory of the weights alone.
    """
    from matplotlib.figure import Figure  # an extra, and no display: Figure alone needs no window system
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(14, 6.4), layout="constrained")
    axes = figure.subplots(2, len(AXES), squeeze=False)
    for column, (axis, label) in enumerate(AXES.items()):
        some = sorted((row for row in rows if row.case.axis == axis), key=lambda row: row.value)
        seconds, memory = axes[0][column], axes[1][column]
        for side in some[0].sides if some else ():
            _draw(seconds, [(row.value, _median(row, side)) for row in some], label=NAMES[side])
            _draw(memory, [(row.value, _gigabytes(row, side)) for row in some], label=NAMES[side])
        weights = [(row.value, row.parameters * BYTES[row.dtype] / 1e9) for row in some]
        _draw(seconds, [(row.value, row.limit) for row in some], label="limit", linestyle="--", color="gray")
        _draw(memory, weights, linestyle="--", color="gray")
        seconds.set(yscale="log", ylabel="seconds")
        memory.set(ylabel="peak memory (GB)", ylim=(0, None))
        values = [row.value for row in some]
        for panel in (seconds, memory):
            panel.set(xscale="log", xlabel=label)
            panel.set_xticks(values, [_short(value) for value in values])
            panel.grid(alpha=0.3)
            panel.xaxis.set_minor_locator(NullLocator())
        seconds.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        seconds.yaxis.set_minor_locator(NullLocator())
        seconds.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes[0][-1].legend()
    write_atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=110))


def _short(value: float) -> str:
    """1023 as it is, 124439808 as 124M."""
    return f"{value / 1e6:.0f}M" if value >= 1e6 else f"{value:g}"


def _draw(panel: Any, points: Sequence[tuple[float, float | None]], **style: Any) -> None:
    known = [(x, y) for x, y in points if y is not None]
    if known:
        panel.plot(*zip(*known, strict=True), marker="o", markersize=3, **style)


def _median(row: Row, side: str) -> float | None:
    seconds = row.sides[side].seconds
    return Spread.of(seconds).median if seconds else None


def _gigabytes(row: Row, side: str) -> float | None:
    peak = row.sides[side].peak_bytes
    return None if peak is None else peak / 1e9
