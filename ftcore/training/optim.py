"""AdamW and the learning rate."""

import math
from typing import Literal

import torch
from torch import nn

Schedule = Literal["linear", "cosine", "constant"]


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters, decaying matrices only.

    Norm scales and biases are left alone: pulling a scale towards 0 is not pulling towards simplicity.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def learning_rate(
    step: int, *, peak: float, schedule: Schedule, warmup_steps: int, total_steps: int
) -> float:
    """The learning rate of step `step`, counted from 0: a pure function, so nothing has to be saved.

    Rises linearly to `peak` over `warmup_steps`, of which the first is not 0; then stays (constant), falls on
    a straight line (linear) or on half a cosine wave (cosine), so that the step after the last would have 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def warmup_steps(warmup: float, total_steps: int) -> int:
    """`--warmup` is a number of steps, or below 1 a share of all steps."""
    return round(warmup * total_steps) if warmup < 1 else int(warmup)
