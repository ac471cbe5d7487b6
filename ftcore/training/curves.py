"""A run's curves as a picture, where the extra `plot` (matplotlib) is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import write_atomically


def save_picture(metrics: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the lines of metrics.jsonl: losses against steps and, where there are answers, exact match and F1.

    Returns False, and draws nothing, where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # an extra, and no display: Figure alone needs no window system

    has_answers = any("exact_match" in line for line in metrics)
    figure = Figure(figsize=(10 if has_answers else 5.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + has_answers, squeeze=False)[0]
    _draw(axes[0], metrics, {"train_loss": "training", "valid_loss": "validation"}, "loss (nats per token)")
    if has_answers:
        _draw(axes[1], metrics, {"exact_match": "exact match", "f1": "F1"}, "share of validation answers")
        axes[1].set_ylim(0, 1)
    write_atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=130))
    return True


def _draw(axes: Any, metrics: Sequence[dict[str, Any]], curves: dict[str, str], title: str) -> None:
    for key, label in curves.items():
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                marker="o" if len(points) < 30 else None,
                markersize=3,
            )
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
