"""Norms of the residual stream, and the logit lens as a figure."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ftcore.analysis.figures import check_labels, draw_matrix
from ftcore.analysis.inputs import Inputs, activations_of, check_dims, part_prefixes, stack_blocks
from ftcore.analysis.results import Tensors
from ftcore.figures import Figure, new_figure
from ftcore.models import Model
from ftcore.study.lens import token_mask


def residual_norms(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """L2 norms of the residual stream before each block and after the last: (L + 1, B, T).

    By stack: `decoder`, and T5's `encoder`. Pre-norm blocks read the direction of the stream only, so the
    larger its norm, the less a block's output changes it.
    """
    prefixes = {part: prefix for part, prefix in part_prefixes(model).items() if part != "cross"}
    acts = activations_of(model, inputs, *(f"{prefix}resid_p*.*" for prefix in prefixes.values()))
    norms = Tensors()
    for stack, prefix in prefixes.items():
        before, after = stack_blocks(acts, f"{prefix}resid_pre"), stack_blocks(acts, f"{prefix}resid_post")
        norms[stack] = torch.cat([before, after[-1:]]).norm(dim=-1)
    return norms


def draw_residual_norms(
    norms: dict[str, Tensor],
    attention_mask: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
) -> Figure:
    """A line for each token of the first row, and the mean over all tokens in black, without padding.

    Args:
        norms: of `residual_norms`.
        attention_mask, decoder_attention_mask: of the inputs, (B, T).
    """
    figure = new_figure(4.2 * len(norms), 3.2)
    panels = figure.subplots(1, len(norms), squeeze=False)[0]
    for axes, (stack, lengths) in zip(panels, norms.items(), strict=True):
        check_dims(f"norms of the {stack}", lengths, "L+1 B T")
        is_target = stack == "decoder" and "encoder" in norms
        mask = token_mask(decoder_attention_mask if is_target else attention_mask, lengths[0])
        axes.plot(lengths[:, 0, mask[0]].cpu(), color="C0", alpha=0.25, lw=0.8)
        axes.plot(lengths[:, mask].mean(1).cpu(), color="black", lw=2, marker="o", label="mean")
        axes.set_xticks(range(len(lengths)), [*(f"before {b}" for b in range(len(lengths) - 1)), "end"])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("norm of the residual stream")
        axes.set_title(stack, fontsize=10)
    return figure


def draw_lens(lens: Tensor, tokens: Sequence[str], name: Callable[[int], str]) -> Figure:
    """The most likely next token after each block at each position, colored by its probability.

    Args:
        lens: (blocks, T, V), of one text: `logit_lens(model, input_ids)[:, 0]`, see ftcore/study/lens.py.
        tokens: labels of the T input tokens.
        name: the text of a token id, such as `lambda token: tokenizer.decode([token], False)`.
    """
    check_dims("lens", lens, "blocks T V")
    check_labels("tokens", tokens, lens.shape[1])
    probability, best = lens.softmax(-1).max(-1)  # (blocks, T)
    figure = new_figure(1.2 + 0.62 * len(tokens), 1.3 + 0.32 * len(lens))
    axes = figure.subplots()
    draw_matrix(
        axes,
        probability,
        rows=[f"after block {block}" for block in range(len(lens))],
        columns=tokens,
        texts=[[name(token) for token in line] for line in best.tolist()],
        high=1.0,
    )
    return figure
