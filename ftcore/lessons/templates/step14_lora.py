"""Step 14: LoRA, low-rank adaptation.

Training all weights of a model needs memory for their gradients and for AdamW's m and v. LoRA leaves
the matrix W of a linear layer as it is, and trains two narrow matrices A and B beside it:

                 +---- W (out, in), frozen ----------------------+
    x (B, T, in) |                                              (+)---> (B, T, out)
                 +---- A (r, in) ---- B (out, r) ---- alpha / r -+

    W x + alpha / r * B A x

- B is 0 at first, so the model does not change; A is random, or B's gradient would be 0 too.
- r, the rank, is small. With 512 x 512 numbers in W and r = 4, A and B have 4096, 64 times fewer.
- The division by r keeps the update's size, and so the learning rate, about the same for every r.

After training, W + alpha / r * B A is a matrix like W: merged, the model is as fast as before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A linear layer and its update."""

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base_layer = base_layer  # W
        # self.lora_A and self.lora_B: nn.Linear without bias, B's weight 0; and the factor alpha / r
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)"""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer, with the update added to its weight."""
        raise NotImplementedError


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze the model and replace some of its linear layers by LoRALinear, in place.

    Args:
        targets: the last parts of the layers' names: "q" is every layer named ....q, such as
            encoder.block.0.layer.0.SelfAttention.q. Of the model's parameters only A and B then
            have requires_grad.
    """
    raise NotImplementedError


def merge_lora(model: nn.Module) -> None:
    """Replace each LoRALinear by its merged layer, in place."""
    raise NotImplementedError


# region Hint
# model.requires_grad_(False) freezes all parameters that the model has now.
# list(model.named_modules()) has pairs of name and module; `name.split(".")[-1]` is the last part.
# model.set_submodule(name, layer) puts another layer there.
# endregion

# Questions
# 1. B is 0. Which of A and B changes in the first training step?
# 2. Is r = 512 for a matrix of 512 x 512 the same as training W itself?
#
# region Answers
# 1. B alone: A's gradient is a product with B, so it is 0.
# 2. B A can then be any change of W. But it has twice as many numbers, and learns at another pace.
# endregion
