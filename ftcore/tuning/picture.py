"""A search as a picture, where the extra `plot` (matplotlib) is installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import write_atomically
from ftcore.tuning.journal import COMPLETE, FAILED, PRUNED
from ftcore.tuning.ranges import Choice, Range
from ftcore.tuning.results import Result, best

_COLUMNS = 4


def save_picture(found: Sequence[Result], space: Mapping[str, Range | Choice], path: Path) -> bool:
    """Draw each setting that was varied against the metric, a point a trial.

    Returns False, and draws nothing, where matplotlib is not installed or no trial has figures.
    """
    found = [result for result in found if result.state != FAILED and result.metric]
    if find_spec("matplotlib") is None or not found:
        return False
    from matplotlib.figure import Figure  # an extra, and no display: Figure alone needs no window system

    columns = min(len(space), _COLUMNS)
    rows = -(-len(space) // _COLUMNS)
    figure = Figure(figsize=(1 + 3 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for panel, (name, varied) in zip(panels, space.items(), strict=False):
        _draw(panel, found, name, varied)
    for panel in panels[len(space) :]:
        panel.remove()
    for row in range(rows):
        panels[row * columns].set_ylabel(found[0].metric)
    panels[0].legend(fontsize=8)
    write_atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=130))
    return True


def _draw(panel: Any, found: Sequence[Result], name: str, varied: Range | Choice) -> None:
    """Trials that were pruned are hollow, the best one is a star."""
    winner = best(found)
    styles: dict[str, dict[str, Any]] = {
        COMPLETE: {"marker": "o", "color": "C0", "label": "complete"},
        PRUNED: {"marker": "o", "facecolors": "none", "edgecolors": "C7", "label": "pruned"},
        "best": {"marker": "*", "color": "C1", "s": 140, "zorder": 3, "label": "best"},
    }
    for kind, style in styles.items():
        of_kind = [winner] if kind == "best" else [result for result in found if result.state == kind]
        points = [
            (result.settings[name], result.metrics[result.metric or ""]) for result in of_kind if result
        ]
        if points:
            values, heights = zip(*points, strict=True)
            panel.scatter(_places(values, varied), heights, **style)
    if isinstance(varied, Choice):
        panel.set_xticks(range(len(varied.values)), [str(value) for value in varied.values])
        panel.set_xlim(-0.5, len(varied.values) - 0.5)
    elif varied.logarithmic:
        panel.set_xscale("log")
        ticks = (varied.low, (varied.low * varied.high) ** 0.5, varied.high)
        panel.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        panel.set_xticks([], minor=True)
    if found[0].metric == "valid_loss":
        panel.set_yscale("log")
    panel.set_xlabel(name)
    panel.grid(alpha=0.3)


def _places(values: Sequence[Any], varied: Range | Choice) -> list[float]:
    """Where on the axis: values that were listed stand side by side."""
    return [varied.values.index(value) if isinstance(varied, Choice) else value for value in values]
