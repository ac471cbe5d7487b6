"""What all figures are made of, where the extra `plot` (matplotlib) is installed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ftcore.models.atomic import write_atomically

Figure = Any  # a matplotlib.figure.Figure; matplotlib is imported by those alone who draw
Axes = Any  # and one of its panels

MOST_LABELS = 48  # more would overlap


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # and no display: Figure alone needs no window system
    except ImportError:
        raise ValueError(
            'figures need matplotlib, which is not installed: pip install -e ".[plot]"'
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all. The directory is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=130))


def draw_matrix(
    axes: Axes,
    values: Tensor,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    signed: bool = False,
    high: float | None = None,
) -> None:
    """Numbers (rows, columns) as colours; `texts` are written into the cells.

    The scale goes from 0 to `high`, or where the numbers are `signed`, from -high to high, blue to red.
    """
    from matplotlib import colormaps

    numbers = values.detach().float().cpu().numpy()
    top = float(abs(numbers).max()) if high is None else high
    colours = colormaps["RdBu_r" if signed else "Blues"]
    image = axes.imshow(numbers, cmap=colours, vmin=-top if signed else 0, vmax=top or 1, aspect="auto")
    _label(axes.set_yticks, rows, rotation=0)
    _label(axes.set_xticks, columns, rotation=90)
    for row, line in enumerate(texts or ()):
        for column, text in enumerate(line):
            is_dark = abs(numbers[row, column]) > 0.6 * top
            colour = "white" if is_dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour, parse_math=False)
    axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)


def _label(set_ticks: Any, names: Sequence[str] | None, rotation: int) -> None:
    if names is None:
        return
    if len(names) > MOST_LABELS:
        set_ticks([])
        return
    # parse_math=False: a token may be a dollar sign.
    set_ticks(range(len(names)), names, rotation=rotation, fontsize=7, parse_math=False)
