"""LoRA (Hu et al. 2021): the matrix is frozen, and a low-rank update of it is trained.

    h = W x + alpha / r * B A x        W (out, in) frozen; A (r, in) and B (out, r) trained

At r = 4, A and B have 0.15 million weights; T5-small has 60 million. Only A and B have gradients and
optimizer moments, and only they need to be saved (adapter.py). `merge_lora` computes W + alpha / r * B A, a
plain matrix again.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ftcore.models.config import convert
from ftcore.models.gpt2 import Conv1D, GPT2LMHeadModel
from ftcore.models.t5 import T5ForConditionalGeneration

AnyModel = TypeVar("AnyModel", bound=GPT2LMHeadModel | T5ForConditionalGeneration)


class LoRALayer(nn.Module):
    """A linear layer with a low-rank update, which is 0 at first because B is."""

    def __init__(self, base_layer: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float):
        super().__init__()
        weight = base_layer.weight
        in_features, out_features = features(base_layer)
        # At least float32: in half precision most optimizer steps would be rounded away.
        options = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.base_layer = base_layer
        self.lora_dropout = nn.Dropout(dropout)
        self.lora_A = nn.Linear(in_features, rank, bias=False, **options)  # nn.Linear's random weights
        self.lora_B = nn.Linear(rank, out_features, bias=False, **options)
        nn.init.zeros_(self.lora_B.weight)
        self.rank = rank
        self.alpha = alpha
        self.scaling = alpha / rank  # so that the learning rate need not change with the rank

    @property
    def weight(self) -> Tensor:
        """The frozen matrix, (out, in); in Conv1D (in, out). T5's feed-forward layer reads its dtype."""
        return self.base_layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        hidden = self.base_layer(inputs)
        low_rank = self.lora_A(self.lora_dropout(inputs).to(self.lora_A.weight.dtype))  # (B, T, r)
        return (hidden + self.lora_B(low_rank) * self.scaling).to(hidden.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear | Conv1D:
        """The base layer with the update added to its weight."""
        update = self.lora_B.weight @ self.lora_A.weight * self.scaling  # (out, in)
        if isinstance(self.base_layer, Conv1D):
            update = update.T
        self.base_layer.weight = nn.Parameter((self.weight + update).to(self.weight.dtype))
        return self.base_layer


def features(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """(in_features, out_features) of a layer."""
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
    """Freeze a model and add trainable low-rank adapters to selected linear layers; its output is unchanged.

    Args:
        model: changed in place. Only the adapters have `requires_grad` afterwards.
        rank: r, the width between A and B.
        alpha: the update is multiplied by alpha / r.
        dropout: on the input of A; the frozen matrix's input is unchanged.
        targets: names of layers or their suffixes, such as "q" or "block.0.layer.0.SelfAttention.q"; or
            "all-linear" for all but the head. None is the choice of the paper (section 4.2) and PEFT:
            queries and values; in GPT-2 c_attn, the matrix of queries, keys and values.

    Raises:
        ValueError: a target that names no linear layer, an argument out of range, or a model with LoRA.
    """
    rank = convert("rank", rank, int)
    alpha, dropout = convert("alpha", alpha, float), convert("dropout", dropout, float)
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}, expected more than 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected a rate from 0 to below 1")
    require_plain(model)
    if targets is None:
        targets = ["c_attn"] if isinstance(model, GPT2LMHeadModel) else ["q", "v"]
    selected = _select(model, targets)
    widest = max(max(features(layer)) for layer in selected.values())
    if rank > widest:
        raise ValueError(f"rank is {rank}, expected at most {widest}, the width of the layers")
    model.requires_grad_(False)
    for name, layer in selected.items():
        model.set_submodule(name, LoRALayer(layer, rank, alpha, dropout).train(layer.training))


def merge_lora(model: AnyModel) -> AnyModel:
    """A copy of the model with plain, merged matrices under Hugging Face's names.

    `model` is unchanged and can be trained further. Both share the memory of all layers without LoRA.
    """
    shared = {id(parameter): nn.Parameter(parameter.detach()) for parameter in model.parameters()}
    merged = copy.deepcopy(model, shared)  # copies modules, but not the parameters in the memo
    for name, layer in lora_layers(merged).items():
        merged.set_submodule(name, layer.merged())
    return merged


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """The LoRA layers by name; the names are those of the layers that they replaced."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}


def require_plain(model: nn.Module) -> None:
    """Raise ValueError if the model has LoRA layers."""
    if lora_layers(model):
        raise ValueError(
            "the model has LoRA layers: use merge_lora(model) instead, or save_adapter to save them alone"
        )


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The layers that can have adapters.

    Without the head: it is often tied to the embedding, and the loss reads its matrix without calling it.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head"
    }


def _select(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear | Conv1D]:
    layers = linear_layers(model)
    if targets == "all-linear":
        return layers
    targets = [targets] if isinstance(targets, str) else targets
    if not targets:
        raise ValueError("targets is empty, expected names of layers or all-linear")
    for target in targets:
        if not any(_has_suffix(name, target) for name in layers):
            suffixes = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ValueError(
                f"targets: {target!r} names no layer; expected names of linear layers or their "
                f"suffixes (here {suffixes}), or all-linear"
            )
    return {name: layer for name, layer in layers.items() if any(_has_suffix(name, t) for t in targets)}


def _has_suffix(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
