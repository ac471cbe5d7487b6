"""Attention maps, hidden states, and T5's relative position bias."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ftcore.analysis.figures import check_labels, draw_matrix
from ftcore.analysis.inputs import (
    Inputs,
    activations_by_part,
    activations_of,
    check_dims,
    check_index,
    check_number,
    part_prefixes,
    stack_blocks,
    stack_parameters,
)
from ftcore.analysis.results import Tensors, one_per_line
from ftcore.decoding import generate
from ftcore.decoding.arguments import Arguments, arguments_for
from ftcore.decoding.inputs import checked_source, decoder_prompt
from ftcore.decoding.state import extended
from ftcore.figures import Axes, Figure, new_figure
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.models.t5 import relative_position_bucket
from ftcore.output import did_you_mean


def attention_maps(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """The attention weights by part (see inputs.py): each (L, B, H, T, S), rows sum to 1.

    Equal to `output_attentions` of transformers. Rows of padding are arbitrary.
    """
    return activations_by_part(model, inputs, "pattern")


def attention_while_generating(
    model: Model, input_ids: Tensor, attention_mask: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Generate, and return the attention maps of the returned sequences.

    The maps are computed in one pass over the generated sequence, which equals the steps with a cache.
    (During beam search, `record` would see the running beams instead.)

    Arguments as for `generate`, with input_ids and attention_mask (B, S).

    Returns:
        The ids (R, length) that `generate` returns, and the maps (L, R, H, T, S) by part, where R = B *
        num_return_sequences. The last token has no row, since it was never an input.
    """
    ids = generate(model, input_ids, attention_mask, **arguments)
    known = {field.name for field in fields(Arguments)} & arguments.keys()
    chosen = arguments_for(model, {name: arguments[name] for name in known})
    # As in `generate`, which masks GPT-2's pad tokens where no mask is given.
    input_ids, attention_mask = checked_source(model, chosen, input_ids, attention_mask)
    inputs = {"input_ids": ids[:, :-1]}
    masks = {"attention_mask": attention_mask}
    per_source = len(ids) // len(input_ids)
    if not isinstance(model, GPT2LMHeadModel):
        prefix = arguments.get("decoder_input_ids"), arguments.get("decoder_attention_mask")
        _, masks["decoder_attention_mask"] = decoder_prompt(model, chosen, *prefix, input_ids)
        inputs = {"input_ids": input_ids.repeat_interleave(per_source, 0), "decoder_input_ids": ids[:, :-1]}
    for name, mask in masks.items():
        if mask is not None:
            length = inputs[name.replace("attention_mask", "input_ids")].shape[1]
            inputs[name] = extended(mask.repeat_interleave(per_source, 0), length)
    return ids, attention_maps(model, inputs)


def hidden_states(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """The residual stream before each block, and last the final norm's output: (L + 1, B, T, D).

    Equal to `output_hidden_states` of transformers. By stack: `decoder`, and T5's `encoder`.
    """
    final_norms = {"decoder": "transformer.ln_f"}
    if not isinstance(model, GPT2LMHeadModel):
        final_norms = {stack: f"{stack}.final_layer_norm" for stack in ("encoder", "decoder")}
    prefixes = part_prefixes(model)
    streams = [f"{prefixes[stack]}resid_pre.*" for stack in final_norms]
    acts = activations_of(model, inputs, *streams, *final_norms.values())
    return Tensors(
        (stack, torch.cat([stack_blocks(acts, f"{prefixes[stack]}resid_pre"), acts[norm][None]]))
        for stack, norm in final_norms.items()
    )


MAX_WIDTH = 10  # inches: the heads of one block take several rows beyond it


def draw_attention(maps: Tensor, queries: Sequence[str], keys: Sequence[str], title: str = "") -> Figure:
    """A grid of attention maps: a row for each block, a column for each head. Wide heads of one block wrap.

    Args:
        maps: (L, H, T, S), of one text: `attention_maps(model, inputs)["cross"][:, 0]`, or `[3:4, 0]` for
            one block.
        queries, keys: labels of the T query tokens and of the S key tokens.
    """
    check_dims("maps", maps, "L H T S")
    blocks, heads, length, width = maps.shape
    check_labels("queries", queries, length)
    check_labels("keys", keys, width)
    panel = (max(1.8, min(5.0, 0.12 * width)), max(1.6, min(5.0, 0.12 * length)))
    columns = heads
    if blocks == 1:  # as many as fit, in full rows
        fitting = max(1, int(MAX_WIDTH / panel[0]))
        columns = max(n for n in range(1, fitting + 1) if heads % n == 0)
    rows = blocks * heads // columns
    figure = new_figure(0.8 + columns * panel[0], 0.8 + rows * panel[1])
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, (block, head) in zip(panels, product(range(blocks), range(heads)), strict=True):
        draw_matrix(axes, maps[block, head], rows=queries, columns=keys, high=1.0, bar=False)
        axes.set_title(f"block {block}, head {head}" if blocks > 1 else f"head {head}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


class BiasCurves(NamedTuple):
    """T5's relative position bias by distance, of all heads."""

    distances: Tensor  # (N) key position minus query position
    buckets: Tensor  # (N) row of the table for each distance
    edges: list[int]  # distances at which the bucket changes
    biases: Tensor  # (tables, H, N) added to the scores; uMT5 has one table per block, others one in all

    def __repr__(self) -> str:
        return one_per_line(self._asdict())


@torch.no_grad()
def relative_bias_curves(
    model: T5ForConditionalGeneration, stack: str, reach: int | None = None
) -> BiasCurves:
    """T5's relative position bias as a function of distance (Raffel et al. 2020, section 2.1).

    Args:
        stack: "encoder" (distances in both directions) or "decoder" (the past only).
        reach: largest distance; by default a few more than relative_attention_max_distance.

    Raises:
        ValueError: another stack, or a reach below 0.
    """
    config = model.config
    stacks = ("encoder", "decoder")
    if stack not in stacks:
        raise ValueError(f"stack is {stack!r}, expected one of {stacks}{did_you_mean(stack, stacks)}")
    reach = check_number("reach", config.relative_attention_max_distance + 8 if reach is None else reach, 0)
    bidirectional = stack == "encoder"
    distances = torch.arange(-reach, reach + 1 if bidirectional else 1)
    buckets = relative_position_bucket(
        distances,
        bidirectional=bidirectional,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    name = f"{stack}.block.*.layer.0.SelfAttention.relative_attention_bias.weight"
    tables = stack_parameters(model, name)  # (tables, buckets, H)
    edges = (buckets[1:] != buckets[:-1]).nonzero()[:, 0] + 1
    return BiasCurves(distances, buckets, distances[edges].tolist(), tables[:, buckets.to(tables.device)].mT)


def draw_relative_bias(
    curves: BiasCurves, title: str = "", table: int = 0, axes: Axes | None = None
) -> Figure:
    """A curve for each head, with grey lines at the bucket edges; into `axes` or a new figure.

    Args:
        curves: of `relative_bias_curves`.
        table: of uMT5, the block.
    """
    table = check_index("table", table, len(curves.biases))
    axes = axes or new_figure(8, 3.6).subplots()
    axes.set_title(title, fontsize=10)
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
    return axes.figure
