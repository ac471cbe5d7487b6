"""Step 13: a training step, without torch.optim.

    loss       mean cross-entropy of the next token. GPT-2's labels are its own input: the logits at
               position t predict the label at t + 1. Positions with the label -100 are ignored.
    backward   gradients g of all weights w (autograd computes them)
    clip       norm = sqrt(sum of all g^2), over all parameters together.
               If norm > max_norm, multiply every g by max_norm / norm: the direction stays.
    AdamW      below
    schedule   a new learning rate lr for the next step

AdamW keeps two running means of each weight's gradient, m and v, both 0 at first. Step t = 1, 2, ...:

    m = beta1 * m + (1 - beta1) * g            which way
    v = beta2 * v + (1 - beta2) * g^2          how large, usually
    m' = m / (1 - beta1^t)                     bias correction: m and v start at 0, so they
    v' = v / (1 - beta2^t)                     are too small at first
    w = w - lr * weight_decay * w              decoupled: not part of g, so not divided by sqrt(v')
    w = w - lr * m' / (sqrt(v') + eps)

The schedule, for step = 0, 1, ... total - 1:

    lr                 peak * (step + 1) / warmup                      while step < warmup
    ^    /\\
    |   /   \\          peak * (total - step) / (total - warmup)        afterwards
    |  /      \\
    | /         \\
    +-----------------> step
       warmup    total
"""

from collections.abc import Iterable

import torch
from step01_softmax import cross_entropy
from torch import Tensor, nn


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, T, V) and labels (B, T), aligned with the input -> scalar, the mean over the labels."""
    raise NotImplementedError


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all `.grad` in place so that their norm is at most `max_norm`; return the norm before."""
    raise NotImplementedError


class AdamW:
    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        self.parameters = list(parameters)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        # m and v of each parameter, and t
        raise NotImplementedError

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Change every parameter in place, by its `.grad`."""
        raise NotImplementedError


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    raise NotImplementedError


def training_step(
    model: nn.Module, optimizer: AdamW, input_ids: Tensor, labels: Tensor, lr: float, max_norm: float
) -> float:
    """Loss, backward, clip, optimizer step; returns the loss. `model(input_ids)` returns logits (B, T, V).

    Gradients of an earlier step must not be added to those of this one.
    """
    raise NotImplementedError
