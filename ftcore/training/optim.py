"""AdamW and the learning rate."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["linear", "cosine", "constant"]


def adamw(model: nn.Module, *, lr: float, weight_decay: float, relative: bool = False) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters, decaying matrices only.

    Norm scales and biases are left alone: pulling a scale towards 0 is not pulling towards simplicity.

    With `relative`, a tensor's learning rate is a multiple of its root mean square, as in Adafactor (Shazeer
    and Stern 2018, section 8), which T5 was trained with. AdamW moves every weight by about the learning
    rate, which for T5's queries is much and for its embedding, 60 times their size, nothing.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    if relative:  # each tensor has a rate of its own
        groups = [group | {"params": [p], "relative": True} for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)
    set_learning_rate(optimizer, lr)
    return optimizer


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
        group["lr"] = lr * _size(group["params"][0]) if group.get("relative") else lr


def _size(tensor: Tensor) -> float:
    """Root mean square; at least 1e-3, so that what starts at 0 can leave it."""
    return max(1e-3, tensor.detach().square().mean().sqrt().item())


def warmup_steps(warmup: float, total_steps: int) -> int:
    """`--warmup` is a number of steps, or below 1 a share of all steps."""
    return round(warmup * total_steps) if warmup < 1 else int(warmup)
