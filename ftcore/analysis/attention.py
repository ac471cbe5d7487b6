"""Where each head looks, and the residual stream between the blocks: what transformers returns on request."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftcore.analysis.figures import Figure, draw_matrix, new_figure
from ftcore.analysis.reading import Inputs, activations_of, of_all_blocks, parts_of
from ftcore.decoding import generate
from ftcore.models import GPT2LMHeadModel, Model


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
