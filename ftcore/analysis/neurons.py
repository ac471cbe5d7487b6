"""Which tokens of a data set a neuron answers to most."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ftcore.analysis.figures import Figure, new_figure
from ftcore.analysis.reading import Inputs, activations_of
from ftcore.models import Model


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
