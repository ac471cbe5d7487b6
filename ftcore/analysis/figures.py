"""What the figures of the analyses share: heat maps and their labels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ftcore.analysis.inputs import check_dims
from ftcore.figures import Axes, Figure, new_figure

MOST_LABELS = 48  # more tick labels would overlap


def check_labels(argument: str, labels: Sequence[Any] | None, count: int) -> None:
    """Raise ValueError unless there are no labels, or `count`."""
    if labels is not None and len(labels) != count:
        raise ValueError(f"{argument} has {len(labels)} labels, expected {count}")


def draw_matrix(
    axes: Axes,
    values: Tensor,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    signed: bool = False,
    high: float | None = None,
    bar: bool = True,
) -> None:
    """Draw a heat map of `values`, a tensor (rows, columns), with `texts` in its cells.

    The color scale, shown by `bar`, is 0 to `high`, or -high to high (blue to red) if `signed`; `high` is
    the largest absolute value by default.
    """
    from matplotlib import colormaps

    check_dims("values", values, "rows columns")
    check_labels("rows", rows, values.shape[0])
    check_labels("columns", columns, values.shape[1])
    numbers = values.detach().float().cpu().numpy()
    top = float(abs(numbers).max()) if high is None else high
    colors = colormaps["RdBu_r" if signed else "Blues"]
    image = axes.imshow(numbers, cmap=colors, vmin=-top if signed else 0, vmax=top or 1, aspect="auto")
    _label(axes.set_yticks, rows, rotation=0)
    _label(axes.set_xticks, columns, rotation=90)
    for row, line in enumerate(texts or ()):
        for column, text in enumerate(line):
            is_dark = abs(numbers[row, column]) > 0.6 * top
            color = "white" if is_dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color, parse_math=False)
    if bar:
        axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)


def _label(set_ticks: Any, names: Sequence[str] | None, rotation: int) -> None:
    if names is not None and len(names) > MOST_LABELS:
        set_ticks([])
    elif names is not None:  # parse_math=False: a token may be a dollar sign
        set_ticks(range(len(names)), names, rotation=rotation, fontsize=7, parse_math=False)


def draw_head_field(axes: Axes, field: Tensor, title: str, *, signed: bool = False, high: float) -> None:
    """Draw a heat map of one number per head, (L, H), on the scale of `draw_matrix`."""
    check_dims("field", field, "L H")
    blocks, heads = field.shape
    draw_matrix(
        axes,
        field,
        rows=[f"block {block}" for block in range(blocks)],
        columns=[f"head {head}" for head in range(heads)],
        texts=[[f"{value:.2f}" for value in line] for line in field.tolist()],
        signed=signed,
        high=high,
        bar=False,
    )
    axes.set_title(title, fontsize=9)


def draw_heads(fields: dict[str, Tensor], title: str = "", *, signed: bool = False) -> Figure:
    """A heat map of one number per head, (L, H), for each part in `fields`; `signed` as in `draw_matrix`."""
    figure = new_figure(0.6 + sum(0.5 + 0.45 * field.shape[-1] for field in fields.values()), 3.0)
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    high = max(float(field.abs().max()) for field in fields.values())
    for axes, (part, field) in zip(panels, fields.items(), strict=True):
        draw_head_field(axes, field, part, signed=signed, high=high)
    figure.suptitle(title, fontsize=10)
    return figure
