"""Optimizers, learning-rate schedules and mixed precision."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ftcore.output import warn
from ftcore.training.defaults import RunOptions
from ftcore.training.distributed import to_full
from ftcore.training.options import Schedule

Precision = Literal["fp32", "bf16", "fp16"]
Autocast = Callable[[], AbstractContextManager]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(model: nn.Module, options: RunOptions) -> torch.optim.Optimizer:
    """The optimizer that the options describe, over the trainable parameters."""
    lr, weight_decay = options.lr, options.weight_decay
    if options.optimizer == "adafactor":
        return adafactor(model, lr=lr, weight_decay=weight_decay)
    return adamw(model, lr=lr, weight_decay=weight_decay, relative=options.relative_steps)


def adamw(model: nn.Module, *, lr: float, weight_decay: float, relative: bool = False) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters.

    `lr` is the initial rate, see `set_learning_rate`. `weight_decay` is of matrices, not of norm scales and
    biases.

    With `relative`, a tensor's learning rate is multiplied by its root mean square, as in Adafactor (Shazeer
    and Stern 2018, section 8), which T5 was trained with. AdamW moves every weight by about the learning
    rate: a large step for T5's queries and a tiny one for its embedding, whose weights are 60 times larger.
    """
    groups = _groups(model, weight_decay)
    if relative:  # a group, and so a learning rate, per tensor
        groups = [group | {"params": [p], "relative": True} for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    set_learning_rate(optimizer, lr)
    return optimizer


def adafactor(model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> torch.optim.Adafactor:
    """Adafactor (Shazeer and Stern 2018) with the settings of the published T5's fine-tuning.

    Steps are relative to the root mean square of each tensor, at least 1e-3; no first moment; the second
    moment is factored into row and column means and decays at 1 - t^-0.8; updates are clipped to a root mean
    square of 1. T5 used a constant `lr` of 1e-3 and a `weight_decay` of 0.

    Two differences from T5's own: matrices of fewer than 128 rows or columns are factored too, and `lr` is at
    most 1/sqrt(t) at step t, the paper's bound, which 1e-3 reaches after a million steps.
    """
    # T5 adds 1e-30 to the squared gradient. torch's first eps is a lower bound on it instead: eps**2 for
    # vectors, but eps for the row and column means of matrices, where its default of 1e-7 would exceed the
    # squares of gradients below 3e-4.
    eps = (1e-15, 1e-3)
    return torch.optim.Adafactor(_groups(model, weight_decay), lr=lr, beta2_decay=-0.8, eps=eps, d=1.0)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay, everything else without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(
    step: int, *, peak: float, schedule: Schedule, warmup_steps: int, total_steps: int
) -> float:
    """The learning rate of step `step`, from 0: a pure function, so there is no scheduler state to save.

    Rises linearly to `peak` over `warmup_steps`, above 0 from the first step on; then, as `schedule` says, it
    stays (constant), or falls to 0 at `total_steps` linearly or as half a cosine.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def make_schedule(options: RunOptions, total_steps: int) -> Callable[[int], float]:
    """`learning_rate` as a function of the step alone. Warns of a warm-up that the run does not complete."""
    warmup = warmup_steps(options.warmup, total_steps)
    if warmup > total_steps:
        warn(
            f"--warmup {warmup} exceeds the {total_steps} steps of the run: the learning rate rises to "
            f"{total_steps / warmup:.2g} of --lr"
        )
    settings: dict[str, Any] = {"peak": options.lr, "schedule": options.schedule, "warmup_steps": warmup}
    return partial(learning_rate, **settings, total_steps=total_steps)


def warmup_steps(warmup: float, total_steps: int) -> int:
    """`--warmup` is a number of steps or, below 1, a share of all steps."""
    return round(warmup * total_steps) if warmup < 1 else int(warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of all groups of the optimizer to `lr`, times the tensor's size in relative groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * _root_mean_square(group["params"][0]) if group.get("relative") else lr


def _root_mean_square(tensor: Tensor) -> float:
    """At least 1e-3, so that tensors that start at 0 can move."""
    return max(1e-3, to_full(tensor.detach().square().mean()).sqrt().item())


def autocast(precision: Precision, device: torch.device) -> Autocast:
    """The context of a forward pass, `with autocast(): ...`. Raises ValueError for fp16 on a CPU."""
    if precision == "fp32":
        return nullcontext
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"`precision` fp16 needs a CUDA device, this is {device.type}: use bf16 or fp32")
    return partial(torch.autocast, device.type, _DTYPES[precision])


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, so that float16 gradients do not underflow; disabled in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
