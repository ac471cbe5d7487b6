"""Figures: made without pyplot, shown as pictures in a notebook, saved atomically. They need matplotlib."""

import os
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import write_atomically

Figure = Any  # matplotlib.figure.Figure; matplotlib is imported only when drawing
Axes = Any  # matplotlib.axes.Axes

FORMATS = ("png", "pdf", "svg")
DPI = 130  # of PNG files


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. In a notebook, as the last line of a cell, it is a picture.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which may need a display
    except ImportError:
        message = "figures need matplotlib, which is not installed: pip install matplotlib"
        raise ValueError(message) from None
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = partial(_as_png, figure)  # IPython itself shows pyplot's figures only
    return figure


def _as_png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format of the path's suffix; create the directory if it is missing.

    Raises:
        ValueError: another suffix than those of FORMATS.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends with .{', .'.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=DPI))
