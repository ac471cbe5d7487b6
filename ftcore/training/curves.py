"""A run's curves, drawn by matplotlib where it is installed (the extra `plot`)."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ftcore.figures import Figure, new_figure, save_figure

# Title -> keys of metrics.jsonl, or their names from `scoring.named`, with their labels.
PANELS = {
    "loss (nats per token)": {"train_loss": "training", "valid_loss": "validation"},
    "validation answers (share)": {
        "exact_match": "exact match",
        "f1": "F1",
        "exact_match (SQuAD)": "exact match (SQuAD)",
        "f1 (SQuAD)": "F1 (SQuAD)",
    },
    "token accuracy (share)": {"token_accuracy": "validation"},
    "learning rate": {"learning_rate": "learning rate"},
    "gradient norm": {"grad_norm": "before clipping"},
    "tokens per second": {"tokens_per_second": "training"},
}
LOGARITHMIC = ("loss (nats per token)", "gradient norm")  # where values differ by more than a factor of 20


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A figure of the lines of metrics.jsonl; None without matplotlib or without any line."""
    keys = {key for line in metrics for key in line}
    panels = {title: labels for title, labels in PANELS.items() if keys & labels.keys()}
    if not panels or find_spec("matplotlib") is None:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4 * columns, 3 * rows)
    for number, (title, labels) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        values = []
        for key, label in labels.items():
            points = [(line["step"], line[key]) for line in metrics if key in line]
            if points:
                marker = "o" if len(points) < 30 else None
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
                values += [value for _, value in points]
        if title in LOGARITHMIC and 0 < 20 * min(values) < max(values):
            axes.set_yscale("log")
        if "share" in title:
            axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(labels) > 1:
            axes.legend(frameon=False)
    return figure


def save_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure as PNG; without matplotlib no file is written."""
    figure = draw_curves(metrics)
    if figure is not None:
        save_figure(figure, path)


def curves_svg(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The figure as an <svg> element without a background, in the text color of the page around it.

    Returns "" where there is no figure.
    """
    figure = draw_curves(metrics)
    if figure is None:
        return ""
    from matplotlib import rc_context

    output = StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ftcore"}):  # text as text, reproducible ids
        figure.savefig(output, format="svg", transparent=True, metadata=no_metadata)
    label = "Curves over the steps of the run: " + ", ".join(axes.get_title() for axes in figure.axes)
    _, _, svg = output.getvalue().replace("#000000", "currentColor").partition("<svg ")
    return f'<svg role="img" aria-label="{escape(label)}" {svg}'
