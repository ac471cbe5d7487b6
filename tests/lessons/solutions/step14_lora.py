from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / rank

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base_layer(inputs) + self.scale * self.lora_B(self.lora_A(inputs))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.base_layer.weight += self.scale * self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if name.split(".")[-1] in targets:
            model.set_submodule(name, LoRALinear(layer, rank, alpha))


def merge_lora(model: nn.Module) -> None:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            model.set_submodule(name, layer.merged())
