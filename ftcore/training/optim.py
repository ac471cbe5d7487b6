"""The optimizers and the learning rate."""

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
    groups = _groups(model, weight_decay)
    if relative:  # each tensor has a rate of its own
        groups = [group | {"params": [p], "relative": True} for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    set_learning_rate(optimizer, lr)
    return optimizer


def adafactor(model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> torch.optim.Adafactor:
    """Adafactor (Shazeer and Stern 2018) with the settings of the published T5's fine-tuning.

    Steps are relative to the root mean square of each tensor, but at least 1e-3 of `lr`; there is no first
    moment; the second, of which a matrix keeps the means of rows and columns only, forgets at 1 - t^-0.8; an
    update is shortened to a root mean square of 1. T5 took a constant `lr` of 1e-3 and no weight decay.

    Two differences to T5's own: a matrix of less than 128 rows or columns is factored too, and `lr` counts
    up to 1/sqrt(t) at step t, the paper's bound, which 1e-3 meets after a million steps.
    """
    # T5 adds 1e-30 to the squared gradient. torch's first eps is a floor instead, squared under each square,
    # but not under the mean square of a matrix: there, its default of 1e-7 would count from gradients of 3e-4
    # on, which a large model always has.
    eps = (1e-15, 1e-3)
    return torch.optim.Adafactor(_groups(model, weight_decay), lr=lr, beta2_decay=-0.8, eps=eps, d=1.0)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters, matrices apart from what does not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
    mean_square = tensor.detach().square().mean()
    if hasattr(mean_square, "full_tensor"):  # parts of the tensor lie on other processes (sharded.py)
        mean_square = mean_square.full_tensor()
    return max(1e-3, mean_square.sqrt().item())


def warmup_steps(warmup: float, total_steps: int) -> int:
    """`--warmup` is a number of steps, or below 1 a share of all steps."""
    return round(warmup * total_steps) if warmup < 1 else int(warmup)
