"""Dropout that trains faster on a CPU.

PyTorch draws each number's fate from a Bernoulli distribution, which takes longer than what is multiplied for
it in attention. Here 16 random bits decide, and one draw of the generator has four times as many.
"""

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of chance


class FastDropout(nn.Dropout):
    def forward(self, states: Tensor) -> Tensor:
        if not self.training or self.p == 0 or states.device.type != "cpu":
            return super().forward(states)
        return drop(states, *draw(states, self.p))


def draw(states: Tensor, rate: float) -> tuple[Tensor, float]:
    """Which of some numbers to keep, bools of the same shape, and the factor that makes up for the others.

    The rate, more than 0, is rounded to a level. The factor is that of the rounded one: the mean is exact.
    """
    dropped = max(1, round(rate * LEVELS))  # levels
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # (N / 4,)
    level = draws.view(torch.int16)[: states.numel()].view(states.shape)  # as `states`, from -2^15 on
    factor = LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0
    return level > dropped - LEVELS // 2 - 1, factor


def drop(states: Tensor, kept: Tensor, factor: float) -> Tensor:
    """What is kept times `factor`, and 0 for the rest; so is its gradient."""
    return torch.ops.aten.native_dropout_backward(states, kept, factor)
