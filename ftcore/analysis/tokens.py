"""How surprised a model is at each token of a text."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.analysis.figures import Figure, new_figure
from ftcore.analysis.inputs import Inputs, activations_of, logits_of
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


class TopActivations(NamedTuple):
    """For each of F neurons its k highest activations, the highest first: (F, k) each."""

    values: Tensor
    texts: Tensor  # the number of the text, counted over all batches from 0
    positions: Tensor  # and of the token in it


@torch.no_grad()
def top_activations(model: Model, batches: Iterable[Inputs], name: str, k: int = 10) -> TopActivations:
    """Where each neuron is highest over a data set.

    Args:
        model: GPT-2 or T5.
        batches: what the model is given, one batch after the other; padding is left out.
        name: whose neurons: "neurons.1", "encoder.neurons.0"; or any other activation (B, T, F).
        k: how many of each neuron; the last are -inf where there are fewer tokens.
    """
    best: TopActivations | None = None
    texts_before = 0
    for inputs in batches:
        activations = activations_of(model, inputs, name)[name]  # (B, T, F)
        rows, length, neurons = activations.shape
        is_target = model.config.is_encoder_decoder and not name.startswith("encoder")
        mask = inputs.get("decoder_attention_mask" if is_target else "attention_mask")
        if mask is not None:
            activations = activations.masked_fill(mask[:, :, None] == 0, -torch.inf)
        if best is None:
            none = torch.zeros(neurons, k, dtype=torch.long, device=activations.device)
            best = TopActivations(activations.new_full((neurons, k), -torch.inf), none, none)
        values = torch.cat([best.values, activations.flatten(0, 1).T], 1)  # (F, k + B * T)
        place = torch.arange(rows * length, device=values.device)
        text, position = (
            (texts_before + place // length).expand(neurons, -1),
            (place % length).expand(neurons, -1),
        )
        highest = values.topk(k)
        best = TopActivations(
            highest.values,
            torch.cat([best.texts, text], 1).gather(1, highest.indices),
            torch.cat([best.positions, position], 1).gather(1, highest.indices),
        )
        texts_before += rows
    if best is None:
        raise ValueError("batches is empty: expected at least one")
    return best


def draw_top_activations(top: TopActivations, neuron: int, texts: Sequence[Sequence[str]]) -> Figure:
    """One neuron's highest activations as bars, each with the words that lead to its token, which is last.

    `texts` are the tokens of every text of the data set, in its order.
    """
    values = top.values[neuron][top.values[neuron] > -torch.inf].tolist()
    places = zip(top.texts[neuron].tolist(), top.positions[neuron].tolist(), strict=True)
    labels = [" ".join(texts[text][max(0, last - _LEAD) : last + 1]) for text, last in places]
    figure = new_figure(8, 0.8 + 0.28 * len(values))
    axes = figure.subplots()
    axes.barh(range(len(values)), values, color="C0")
    axes.set_yticks(range(len(values)), labels[: len(values)], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_title(f"neuron {neuron}", fontsize=10)
    return figure


_LEAD = 6  # tokens before the one that counts
