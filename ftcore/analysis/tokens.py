"""Losses of individual tokens, and the tokens that activate a neuron most."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.analysis.figures import check_labels
from ftcore.analysis.inputs import (
    Inputs,
    activations_of,
    check_dims,
    check_index,
    check_number,
    logits_of,
    padding_mask,
    token_ids,
)
from ftcore.analysis.results import one_per_line
from ftcore.figures import Figure, new_figure
from ftcore.models import Model, T5ForConditionalGeneration


@torch.no_grad()
def token_losses(model: Model, inputs: Inputs, labels: Tensor | None = None) -> Tensor:
    """The cross-entropy of each token, in nats.

    Args:
        inputs: see inputs.py; for T5 without decoder_input_ids.
        labels: (B, T) T5's target, -100 where ignored; padded on the right unless the inputs have a
            decoder_attention_mask. For GPT-2 the labels are input_ids.

    Returns:
        T5: (B, T), 0 for ignored labels. GPT-2: (B, T - 1), of each token after the first; 0 if it or the
        token before is padding.

    Raises:
        ValueError: labels missing for T5, or given for GPT-2.
    """
    if isinstance(model, T5ForConditionalGeneration):
        if labels is None:
            raise ValueError("labels are missing: T5 needs a target")
        token_ids("labels", labels.masked_fill(labels == -100, 0), model.config.vocab_size, labels)
        logits = logits_of(model, {**inputs, "decoder_input_ids": model.shift_right(labels)})
    else:
        if labels is not None:
            raise ValueError("labels are for T5; GPT-2 predicts each next token of input_ids")
        logits, labels = logits_of(model, inputs)[:, :-1], inputs["input_ids"][:, 1:]
        mask = padding_mask(model, inputs, "decoder")
        labels = labels.masked_fill(~(mask[:, 1:] & mask[:, :-1]), -100)
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")


def draw_token_losses(losses: Tensor, tokens: Sequence[str]) -> Figure:
    """A bar for each of the `losses` of one text, (T), labeled with its token of `tokens`."""
    check_dims("losses", losses, "T")
    check_labels("tokens", tokens, len(losses))
    figure = new_figure(max(4.0, 0.24 * len(tokens)), 2.8)
    axes = figure.subplots()
    axes.bar(range(len(tokens)), losses.cpu(), color="C0")
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8, parse_math=False)
    axes.set_ylabel("loss in nats")
    axes.margins(x=0.01)
    return figure


CONTEXT = 6  # tokens in a label before the active one


class TopActivations(NamedTuple):
    """The k highest activations of F neurons in descending order: (F, k) each."""

    values: Tensor
    texts: Tensor  # index of the text, over all batches
    positions: Tensor  # index of the token in it

    def __repr__(self) -> str:
        return one_per_line(self._asdict())


@torch.no_grad()
def top_activations(model: Model, batches: Iterable[Inputs], name: str, k: int = 10) -> TopActivations:
    """Find the tokens of a data set at which each neuron is most active.

    Args:
        batches: inputs of the model, see inputs.py; padding is ignored.
        name: of the neurons: "neurons.1", "encoder.neurons.0"; or of any other activation (B, T, F).
        k: activations per neuron; if the data set has fewer tokens, the last are -inf.

    Raises:
        ValueError: no batches, k below 1, or a name that does not match one activation (B, T, F).
    """
    k = check_number("k", k, 1)
    best: TopActivations | None = None
    seen = 0  # texts
    for inputs in batches:
        found, *others = activations_of(model, inputs, name).items()
        if others:
            raise ValueError(f"name is {name!r}, which matches several activations: expected one")
        _, activations = found  # (B, T, F)
        check_dims(name, activations, "B T F")
        rows, length, neurons = activations.shape
        mask = padding_mask(model, inputs, "encoder" if name.startswith("encoder") else "decoder")
        activations = activations.masked_fill(~mask[:, :, None], -torch.inf)
        if best is None:
            none = torch.zeros(neurons, k, dtype=torch.long, device=activations.device)
            best = TopActivations(activations.new_full((neurons, k), -torch.inf), none, none)
        values = torch.cat([best.values, activations.flatten(0, 1).T], 1)  # (F, k + B * T)
        index = torch.arange(rows * length, device=values.device).expand(neurons, -1)  # (F, B * T)
        texts = torch.cat([best.texts, seen + index // length], 1)
        positions = torch.cat([best.positions, index % length], 1)
        top = values.topk(k)
        best = TopActivations(top.values, texts.gather(1, top.indices), positions.gather(1, top.indices))
        seen += rows
    if best is None:
        raise ValueError("batches is empty: expected at least one")
    return best


def draw_top_activations(top: TopActivations, neuron: int, texts: Sequence[Sequence[str]]) -> Figure:
    """A bar for each of one neuron's top activations, labeled with its token and those before it.

    `texts` are the tokens of all texts of the data set.

    Raises:
        ValueError: fewer texts than `top` refers to.
    """
    neuron = check_index("neuron", neuron, len(top.values))
    if (needed := int(top.texts[neuron].max()) + 1) > len(texts):
        raise ValueError(f"texts has the tokens of {len(texts)} texts, expected at least {needed}")
    values = top.values[neuron][top.values[neuron] > -torch.inf].tolist()
    indices = zip(top.texts[neuron].tolist(), top.positions[neuron].tolist(), strict=True)
    labels = [" ".join(texts[text][max(0, last - CONTEXT) : last + 1]) for text, last in indices]
    figure = new_figure(8, 0.8 + 0.28 * len(values))
    axes = figure.subplots()
    axes.barh(range(len(values)), values, color="C0")
    axes.set_yticks(range(len(values)), labels[: len(values)], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_title(f"neuron {neuron}", fontsize=10)
    return figure
