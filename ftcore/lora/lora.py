"""LoRA (Hu et al. 2021): a matrix stays as it is, and a change of low rank beside it learns.

    h = W x + alpha / r * B A x        W (out, in) is frozen; A (r, in) and B (out, r) are trained

At r = 4 these are 0.15 of T5-small's 60 million weights. Gradients and the optimizer's moments exist for them
alone, and they are all that has to be saved (adapter.py). Afterwards W + alpha / r * B A is one matrix again,
and the model is as fast as before (`merge_lora`).
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ftcore.models.gpt2 import Conv1D, GPT2LMHeadModel
from ftcore.models.t5 import T5ForConditionalGeneration

AnyModel = TypeVar("AnyModel", bound=GPT2LMHeadModel | T5ForConditionalGeneration)


class LoRALayer(nn.Module):
    """A linear layer and its change of low rank, which begins as none because B begins as 0."""

    def __init__(self, base_layer: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float):
        super().__init__()
        weight = base_layer.weight
        in_features, out_features = features(base_layer)
        # Half precision would lose most steps of the optimizer: they are far smaller than the weights.
        options = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.base_layer = base_layer
        self.lora_dropout = nn.Dropout(dropout)
        self.lora_A = nn.Linear(in_features, rank, bias=False, **options)  # random, as nn.Linear makes it
        self.lora_B = nn.Linear(rank, out_features, bias=False, **options)
        nn.init.zeros_(self.lora_B.weight)
        self.rank = rank
        self.alpha = alpha
        self.scaling = alpha / rank  # so that another rank does not ask for another learning rate

    @property
    def weight(self) -> Tensor:
        """The frozen matrix: T5's feed-forward layer asks its `wo` for the type."""
        return self.base_layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.base_layer(inputs)  # (B, T, out)
        low_rank = self.lora_A(self.lora_dropout(inputs).to(self.lora_A.weight.dtype))  # (B, T, r)
        return (hidden + self.lora_B(low_rank) * self.scaling).to(hidden.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear | Conv1D:
        """The base layer with the sum of both as its weight."""
        change = self.lora_B.weight @ self.lora_A.weight * self.scaling  # (out, in)
        if isinstance(self.base_layer, Conv1D):
            change = change.T
        self.base_layer.weight = nn.Parameter((self.weight + change).to(self.weight.dtype))
        return self.base_layer


def features(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """How many numbers go in and come out."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def add_lora(
    model: AnyModel,
    *,
    rank: int = 4,
    alpha: float = 8,
    dropout: float = 0.0,
    targets: str | Sequence[str] | None = None,
) -> None:
    """Freeze a model and give some of its linear layers a change that learns; its output stays the same.

    Args:
        model: changed in place. What it trains from now on are the parameters with `requires_grad`.
        rank: r, the width between A and B.
        alpha: the change counts alpha / r times.
        dropout: of what A reads; what the frozen matrix reads is not touched.
        targets: names of layers or the ends of them, such as "q" or "block.0.layer.0.SelfAttention.q"; or
            "all-linear" for all but the head. None is the paper's choice (section 4.2) and PEFT's: queries
            and values, which GPT-2 makes with its keys in one matrix, c_attn.

    Raises:
        ValueError: a target that names no linear layer, an argument out of range, or a model that has LoRA.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}, expected more than 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected a rate from 0 to below 1")
    require_plain(model)
    if targets is None:
        targets = ["c_attn"] if isinstance(model, GPT2LMHeadModel) else ["q", "v"]
    chosen = _choose(model, targets)
    model.requires_grad_(False)
    for name, layer in chosen.items():
        model.set_submodule(name, LoRALayer(layer, rank, alpha, dropout).train(layer.training))


def merge_lora(model: AnyModel) -> AnyModel:
    """The same model with plain matrices again, under Hugging Face's names: for `save_model` and `generate`.

    `model` stays as it is and can be trained on. The two share the memory of all that has no LoRA; a model
    without any gives a copy that shares everything.
    """
    shared = {id(parameter): nn.Parameter(parameter.detach()) for parameter in model.parameters()}
    merged = copy.deepcopy(model, shared)  # new modules around the old memory
    for name, layer in lora_layers(merged).items():
        merged.set_submodule(name, layer.merged())
    return merged


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """The layers with LoRA under the names that they have without it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}


def require_plain(model: nn.Module) -> None:
    """For what can be done with plain models only.

    Raises:
        ValueError: the model has LoRA layers.
    """
    if lora_layers(model):
        raise ValueError(
            "the model has LoRA layers: take merge_lora(model) instead, or save_adapter to save them alone"
        )


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The layers that LoRA can change.

    Not the head: it is mostly the embedding too, and the loss reads its matrix without calling it.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head"
    }


def _choose(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear | Conv1D]:
    layers = linear_layers(model)
    if targets == "all-linear":
        return layers
    targets = [targets] if isinstance(targets, str) else targets
    for target in targets:
        if not any(_ends_with(name, target) for name in layers):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ValueError(
                f"targets: {target!r} names no layer that LoRA can change; expected names or the ends of "
                f"them (here {ends}), or all-linear"
            )
    chosen = {name: layer for name, layer in layers.items() if any(_ends_with(name, t) for t in targets)}
    if not chosen:
        raise ValueError("targets is empty, expected names of layers or all-linear")
    return chosen


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
