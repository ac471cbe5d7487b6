"""Where each head looks, and the residual stream between the blocks: what transformers returns on request."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftcore.analysis.figures import Axes, Figure, draw_matrix, new_figure
from ftcore.analysis.inputs import Inputs, activations_of, of_all_blocks, parts_of
from ftcore.decoding import generate
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.models.relative_position import relative_position_bucket


def attention_maps(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """The attention weights of every head, by part (see reading.py): each (L, B, H, T, S), rows sum to 1.

    They are `output_attentions` of transformers. The rows of padding mean nothing.
    """
    kinds = {part: f"{prefix}pattern" for part, prefix in parts_of(model).items()}
    acts = activations_of(model, inputs, *(f"{kind}.*" for kind in kinds.values()))
    return {part: of_all_blocks(acts, kind) for part, kind in kinds.items()}


def attention_while_generating(
    model: Model, input_ids: Tensor, attention_mask: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `generate` says, and where each head looked while saying it.

    The maps are those of one pass over prompt or source and answer, which a cache computes step by step.
    Unlike what `record` sees during a beam search, they are the returned answers'.

    Args:
        model: GPT-2 or T5.
        input_ids: (B, S) as for `generate`, as are the others.

    Returns:
        The ids (R, length), as `generate` returns them, and the maps, (L, R, H, T, S) each. R counts
        `num_return_sequences` rows of each source. The last token has no row: no step has read it.
    """
    ids = generate(model, input_ids, attention_mask, **arguments)
    answers = len(ids) // len(input_ids)
    source = input_ids.repeat_interleave(answers, 0)
    mask = None if attention_mask is None else attention_mask.repeat_interleave(answers, 0)
    read = ids[:, :-1]
    if isinstance(model, GPT2LMHeadModel):
        inputs = {"input_ids": read}
        if mask is not None:
            new = mask.new_ones(len(read), read.shape[1] - mask.shape[1])
            inputs["attention_mask"] = torch.cat([mask, new], 1)
    else:
        inputs = {"input_ids": source, "decoder_input_ids": read}
        if mask is not None:
            inputs["attention_mask"] = mask
    return ids, attention_maps(model, inputs)


def hidden_states(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """The residual stream before each block and, last, behind the final norm: (L + 1, B, T, D) each.

    They are `output_hidden_states` of transformers, by stack: `decoder`, and T5's `encoder`.
    """
    final_norms = {"decoder": "transformer.ln_f"}
    if not isinstance(model, GPT2LMHeadModel):
        final_norms = {stack: f"{stack}.final_layer_norm" for stack in ("encoder", "decoder")}
    prefixes = parts_of(model)
    streams = [f"{prefixes[stack]}resid_pre.*" for stack in final_norms]
    acts = activations_of(model, inputs, *streams, *final_norms.values())
    return {
        stack: torch.cat([of_all_blocks(acts, f"{prefixes[stack]}resid_pre"), acts[norm][None]])
        for stack, norm in final_norms.items()
    }


def draw_attention(maps: Tensor, queries: Sequence[str], keys: Sequence[str], title: str = "") -> Figure:
    """Every head of every block as a panel, blocks below one another.

    Args:
        maps: (L, H, T, S), one text's: `attention_maps(model, inputs)["cross"][:, 0]`, or of one block alone
            `[3:4, 0]`.
        queries: the T tokens that look.
        keys: the S tokens that are looked at.
        title: of the figure.
    """
    blocks, heads, length, width = maps.shape
    panel = (max(1.8, min(5.0, 0.12 * width)), max(1.6, min(5.0, 0.12 * length)))
    figure = new_figure(0.8 + heads * panel[0], 0.8 + blocks * panel[1])
    panels = figure.subplots(blocks, heads, squeeze=False, sharex=True, sharey=True)
    for block in range(blocks):
        for head in range(heads):
            axes = panels[block, head]
            draw_matrix(axes, maps[block, head], rows=queries, columns=keys, high=1.0, bar=False)
            axes.set_title(f"block {block}, head {head}" if blocks > 1 else f"head {head}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


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
