"""A run's curves, drawn by matplotlib where it is installed (the extra `plot`)."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

from ftcore.figures import Figure, new_figure, save_figure

# Title -> keys of metrics.jsonl without the name of a validation set, or their names from `scoring.named`,
# with their labels.
PANELS = {
    "loss (nats per token)": {"train_loss": "training", "valid_loss": "validation"},
    "validation answers (share)": {
        "exact_match": "exact match",
        "f1": "F1",
        "exact_match (SQuAD)": "exact match (SQuAD)",
        "f1 (SQuAD)": "F1 (SQuAD)",
        "accuracy": "accuracy",
    },
    "ROUGE F-measure (share)": {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"},
    "BLEU and chrF (0 to 100)": {"bleu": "BLEU", "chrf": "chrF"},
    "token accuracy (share)": {"token_accuracy": "validation"},
    "learning rate": {"learning_rate": "learning rate"},
    "gradient norm": {"grad_norm": "before clipping"},
    "tokens per second": {"tokens_per_second": "training"},
}
LOGARITHMIC = ("loss (nats per token)", "gradient norm")  # where values differ by more than a factor of 20
_NOT_DRAWN = {"step", "epoch", "perplexity", "skipped_steps", "examples_per_second"}


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A figure of the lines of metrics.jsonl; None without matplotlib or without any line.

    A user's metric has a panel of its own.
    """
    keys = [split_key(key) for key in dict.fromkeys(key for line in metrics for key in line)]
    found = dict.fromkeys(metric for _, metric in keys if metric not in _NOT_DRAWN)
    known = {metric for labels in PANELS.values() for metric in labels}
    others = {metric.replace("$", r"\$"): {metric: metric} for metric in found if metric not in known}
    panels = {title: labels for title, labels in (PANELS | others).items() if found.keys() & labels.keys()}
    if not panels or find_spec("matplotlib") is None:
        return None
    sets = list(dict.fromkeys(name for name, _ in keys if name))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4 * columns, 3 * rows)
    for number, (title, labels) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_panel(axes, metrics, {key: label for key, label in labels.items() if key in found}, sets)
        values = [value for line in axes.get_lines() for value in line.get_ydata()]
        if title in LOGARITHMIC and 0 < 20 * min(values) < max(values):
            axes.set_yscale("log")
        if "(share)" in title:
            axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False)
    return figure


def split_key(key: str) -> tuple[str, str]:
    """(name of the validation set, metric) of a key: "dev/f1" -> ("dev", "f1"), "f1" -> ("", "f1")."""
    name, _, metric = key.rpartition("/")
    return name, metric


def _draw_panel(
    axes: Any, metrics: Sequence[Mapping[str, Any]], labels: Mapping[str, str], sets: Sequence[str]
) -> None:
    """Draw metrics in different colors, and validation sets as different kinds of lines."""
    kinds = {"": "-"} | dict(zip(sets, cycle(("-", "--", ":", "-.")), strict=False))
    for color, (metric, label) in enumerate(labels.items()):
        shown = label
        for name, kind in kinds.items():
            key = f"{name}/{metric}" if name else metric
            points = [(line["step"], line[key]) for line in metrics if key in line]
            if points:
                style = {"color": f"C{color}", "linestyle": kind, "markersize": 3}
                style |= {"marker": "o" if len(points) < 30 else None}
                axes.plot(*zip(*points, strict=True), label=shown if len(labels) > 1 else name, **style)
                shown = "_"  # not in the legend
    if len(labels) > 1:
        for name in sets:
            axes.plot([], [], color="gray", linestyle=kinds[name], label=name)


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
