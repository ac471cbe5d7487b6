"""Which tokens of a data set a neuron answers to most."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

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
