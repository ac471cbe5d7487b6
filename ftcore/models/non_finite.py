"""Which weight or module produced NaN or infinity. Runs only once an output was found non-finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.models.attention import AttentionDropout, Softmax


def require_finite(output: Tensor, model: nn.Module, forward: Callable[[], object], what: str) -> None:
    """Raise FloatingPointError, naming the cause, where an output of the model holds NaN or infinity.

    Args:
        output: of any shape.
        forward: runs the model again as it ran for `output`; called only on failure.
        what: the output's name in the message, such as "the loss".
    """
    if not output.isfinite().all():
        raise FloatingPointError(f"{what} is not finite: {find_non_finite(model, forward)}")


@torch.no_grad()
def find_non_finite(model: nn.Module, forward: Callable[[], object]) -> str:
    """The cause of a non-finite output, as "transformer.ln_f.weight holds NaN": the first such weight, or
    else the first module with a non-finite output in a run of `forward`.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        values = tensor.to_dense()  # of a layout of oneDNN; others are returned as they are
        if not values.isfinite().all():
            return f"{name} holds {'NaN' if values.isnan().any() else 'infinity'}"
    found: list[str] = []
    with finite_checks(model, found.append):
        forward()
    return found[0] if found else "weights and outputs of all modules are finite in a second run"


@contextmanager
def finite_checks(model: nn.Module, report: Callable[[str], None]) -> Iterator[None]:
    """Report every non-finite module output, then every non-finite gradient of one, in order."""

    def forward_hook(name: str) -> Callable[..., None]:
        def check(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            where = name + (f", whose input {_range(inputs[0])}" if inputs else "")  # none: keywords only
            if not output.isfinite().all():
                bad = [f"{name}.{part}" for part, p in module.named_parameters() if not p.isfinite().all()]
                report(
                    f"first in the output of {where}" + (f"; {bad[0]} is not finite itself" if bad else "")
                )
            elif output.requires_grad:
                output.register_hook(lambda grad: check_gradient(grad, where))

        return check

    def check_gradient(grad: Tensor, where: str) -> None:
        if not grad.isfinite().all():
            report(f"first in the gradient with respect to the output of {where}")

    # Hooks on these would disable fused attention, whose dropout draws other random numbers.
    unhooked = Softmax | AttentionDropout
    modules = [(name, module) for name, module in model.named_modules() if not isinstance(module, unhooked)]
    handles = [module.register_forward_hook(forward_hook(name or "the model")) for name, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _range(tensor: Tensor) -> str:
    """ "ranged from -3.2 to 4.1" """
    finite = tensor.detach()[tensor.isfinite()]
    if not finite.numel():
        return "had no finite element"
    low, high = finite.aminmax()
    partly = "" if finite.numel() == tensor.numel() else " where it was finite"
    return f"ranged from {low.item():.4g} to {high.item():.4g}{partly}"
