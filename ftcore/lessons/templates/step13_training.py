"""Step 13: a training step.

    1. loss        mean of -log p of the next tokens: logits at t predict the label at t + 1
    2. backward    loss.backward() puts the gradient g of each weight w in its .grad
    3. clip        norm = sqrt(sum of g^2 over all weights of the model)
                   if norm > max_norm, multiply every g by max_norm / norm
    4. AdamW       change each weight, with a learning rate lr from the schedule

AdamW keeps two running means for each weight, m and v, both 0 at first. Step t = 1, 2, 3, ...:

    m = beta1 * m + (1 - beta1) * g           where to
    v = beta2 * v + (1 - beta2) * g^2         how large g usually is
    m' = m / (1 - beta1^t)                    m and v begin at 0, so they are too small at first:
    v' = v / (1 - beta2^t)                    this corrects it
    w = w - lr * weight_decay * w             weight decay shrinks w; it is not added to g
    w = w - lr * m' / (sqrt(v') + eps)

So a weight moves by about lr each step, however large its gradients are.

The schedule rises to its peak and falls to 0, both linearly. The steps are 0, 1, ..., total - 1:

    lr
    peak |      o
         |    o    o           step < warmup:  peak * (step + 1) / warmup
         |  o         o        afterwards:     peak * (total - step) / (total - warmup)
         |o              o
       0 +------+-----------o--> step
              warmup     total
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from step01_softmax import cross_entropy


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss over all positions that have a next token with a label.

    Args:
        logits: (B, T, V)
        labels: (B, T), the ids that the model read, in their places; -100 where there is no label.

    Returns:
        One number, a tensor of shape ().
    """
    raise NotImplementedError


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Shrink all gradients, in place, so that their common norm is at most max_norm.

    Args:
        parameters: each has its gradient in `.grad`, or None there if the loss does not depend on it.

    Returns:
        The norm before, a tensor of shape ().
    """
    raise NotImplementedError


class AdamW:
    """The optimizer."""

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


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """The schedule."""
    raise NotImplementedError


def training_step(
    model: nn.Module, optimizer: AdamW, input_ids: Tensor, labels: Tensor, lr: float, max_norm: float
) -> float:
    """Steps 1 to 4, for one batch.

    Args:
        model: ids (B, T) -> logits (B, T, V). Its parameters still have the gradients of the last batch.
        input_ids, labels: (B, T)

    Returns:
        The loss.
    """
    raise NotImplementedError


# region Hint
# Step 1's cross_entropy takes (N, V) and (N,): `.flatten(0, 1)` makes one row of all positions.
# An iterable such as model.parameters() can be gone through only once: make a list of it first.
# `weight -= change` and `weight.mul_(factor)` change a tensor in place; `weight = weight - change` does not.
# `.backward()` adds to gradients that are there: model.zero_grad() removes them.
# endregion

# Questions
# 1. All gradients of a model are multiplied by 10, in every step. What does AdamW do differently?
# 2. Why clip the norm of all gradients together, and not each number?
#
# region Answers
# 1. Nothing, but for eps: m' and sqrt(v') are both 10 times as large.
# 2. One factor for all keeps the direction of the step; only its length changes.
# endregion
