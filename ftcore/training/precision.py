"""Mixed precision: which number format the forward pass computes in. Weights stay in float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
Autocast = Callable[[], AbstractContextManager]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> Autocast:
    """What to put around a forward pass: `with autocast(): ...`

    Raises:
        ValueError: fp16 on the CPU, which has neither the kernels nor the need.
    """
    if precision == "fp32":
        return nullcontext
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision fp16 needs a CUDA device, this is {device.type}: take bf16 or fp32")
    return partial(torch.autocast, device.type, _DTYPES[precision])


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that float16 gradients do not vanish; does nothing in the other formats."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
