"""What T5's heads think of distance alone: the learnt relative position biases as curves."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ftcore.analysis.figures import Axes, Figure, new_figure
from ftcore.models import T5ForConditionalGeneration
from ftcore.models.t5 import relative_position_bucket


class BiasCurves(NamedTuple):
    distances: Tensor  # (N) key position minus query position: negative for keys before the query
    buckets: Tensor  # (N) the row of the table that each distance falls into
    edges: list[int]  # the distances at which another bucket begins
    biases: Tensor  # (tables, H, N) what is added to the scores; uMT5 has a table for each block, others one


@torch.no_grad()
def relative_bias_curves(
    model: T5ForConditionalGeneration, stack: str, reach: int | None = None
) -> BiasCurves:
    """What each head adds to its scores for each distance (Raffel et al. 2020, section 2.1).

    Args:
        model: T5.
        stack: "encoder", whose queries look both ways, or "decoder", whose queries look back.
        reach: the longest distance; by default that from which all share a bucket, and a few more.
    """
    config = model.config
    reach = config.relative_attention_max_distance + 8 if reach is None else reach
    looks_both_ways = stack == "encoder"
    distances = torch.arange(-reach, reach + 1 if looks_both_ways else 1)
    buckets = relative_position_bucket(
        distances,
        bidirectional=looks_both_ways,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    tables = [
        part.weight
        for name, part in model.get_submodule(stack).named_modules()
        if name.endswith("SelfAttention.relative_attention_bias") and isinstance(part, nn.Embedding)
    ]
    changes = (buckets[1:] != buckets[:-1]).nonzero()[:, 0] + 1
    biases = torch.stack([table[buckets.to(table.device)].T for table in tables])
    return BiasCurves(distances, buckets, distances[changes].tolist(), biases)


def draw_relative_bias(curves: BiasCurves, title: str = "", table: int = 0) -> Figure:
    """A curve for each head over a grey line at each bucket's edge; far distances are closer together."""
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    plot_relative_bias(axes, curves, table)
    axes.set_title(title, fontsize=10)
    return figure


def plot_relative_bias(axes: Axes, curves: BiasCurves, table: int = 0) -> None:
    """As `draw_relative_bias`, into a panel of a figure."""
    for edge in curves.edges:
        axes.axvline(edge - 0.5, color="0.9", lw=0.8)
    for head, curve in enumerate(curves.biases[table].cpu()):
        axes.plot(curves.distances, curve.float(), drawstyle="steps-mid", lw=1.3, label=f"head {head}")
    axes.set_xscale("symlog", linthresh=16)
    ticks = [tick for tick in (-128, -64, -32, -16, -8, 0, 8, 16, 32, 64, 128) if tick in curves.distances]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("key position minus query position")
    axes.set_ylabel("added to the score")
    axes.legend(frameon=False, fontsize=8, ncols=2)
