"""How surprised a model is at each token of a text."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.analysis.figures import Figure, new_figure
from ftcore.analysis.reading import Inputs, logits_of
from ftcore.models import Model, T5ForConditionalGeneration


@torch.no_grad()
def token_losses(model: Model, inputs: Inputs, labels: Tensor | None = None) -> Tensor:
    """The cross-entropy of each token, in nats.

    Args:
        model: GPT-2 or T5.
        inputs: see reading.py. T5's need no decoder_input_ids.
        labels: (B, T) T5's target, -100 where none is asked for. GPT-2 is asked for its input.

    Returns:
        T5: (B, T), 0 where no label is. GPT-2: (B, T - 1), the loss of each token but the first, which none
        predicts; 0 where it or the token before it is padding.

    Raises:
        ValueError: T5 without labels, or GPT-2 with some.
    """
    if isinstance(model, T5ForConditionalGeneration):
        if labels is None:
            raise ValueError("labels are missing: T5 is asked for a target")
        logits = logits_of(model, {**inputs, "decoder_input_ids": model.shift_right(labels)})
    else:
        if labels is not None:
            raise ValueError("labels are for T5; GPT-2 is asked for each next token of input_ids")
        logits, labels = logits_of(model, inputs)[:, :-1], inputs["input_ids"][:, 1:]
        if (mask := inputs.get("attention_mask")) is not None:
            labels = labels.masked_fill((mask[:, 1:] & mask[:, :-1]) == 0, -100)
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")


def draw_token_losses(losses: Tensor, tokens: Sequence[str]) -> Figure:
    """One text's losses (T) as bars below its T tokens."""
    figure = new_figure(max(4.0, 0.24 * len(tokens)), 2.8)
    axes = figure.subplots()
    axes.bar(range(len(tokens)), losses.cpu(), color="C0")
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8, parse_math=False)
    axes.set_ylabel("loss in nats")
    axes.margins(x=0.01)
    return figure
