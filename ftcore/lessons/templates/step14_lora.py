"""Step 14: LoRA. Fine-tune a model by training about a hundredth of its weights.

A linear layer's matrix W, (out, in), is frozen. A product of two narrow matrices, B A, is trained beside it:

              x (B, T, in)
              |
        +-----+--------------.
        |                    |
        W  (out, in)         A  (r, in)       trained, random at first
        |  frozen            |
        |                    B  (out, r)      trained, 0 at first: the model starts out unchanged
        |                    |
        |                    * alpha / r
        |                    |
        + <------------------'
        |
        W x + alpha / r * B A x

Training needs gradients and AdamW's two means for A and B alone. Afterwards W + alpha / r * B A, (out, in),
is one plain matrix again: merged, the model is as fast as before.

The division by r keeps the size of the update, and so the learning rate, about the same for every rank r.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base_layer = base_layer  # W, without a bias in T5
        # self.lora_A and self.lora_B, two nn.Linear without bias, and the scale
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)"""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer, with the update added to its weight."""
        raise NotImplementedError


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str] = ("q", "v")) -> None:
    """Freeze the model, and wrap every linear layer whose last name is in `targets`.

    model.named_modules() yields names such as encoder.block.0.layer.0.SelfAttention.q, and
    model.set_submodule(name, layer) puts another layer there. Only A and B have requires_grad afterwards.
    """
    raise NotImplementedError


def merge_lora(model: nn.Module) -> None:
    """Replace every LoRALinear by its merged layer."""
    raise NotImplementedError
