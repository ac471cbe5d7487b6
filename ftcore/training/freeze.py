"""Freezing parts of a model by the names of their modules."""

import re
from collections.abc import Sequence
from itertools import product

from torch import nn

from ftcore.cli import did_you_mean

_RANGE = re.compile(r"(\d+)-(\d+)")


def freeze(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Set requires_grad to False for all parameters of the modules with these dotted names.

    A part of a name may be an inclusive range: `decoder.block.0-3`. Gradients still flow through a frozen
    module to trainable ones before it.

    Returns:
        The names outside of these modules whose parameters are frozen too because they are tied: a tied
        embedding is used by both of T5's stacks and the head.

    Raises:
        ValueError: the model has no module of such a name, or no parameter would be left to train.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    expanded = [(name, module) for name in names for module in expand_ranges(name)]
    for name, module in expanded:
        if module not in modules:
            hint = did_you_mean(module, modules)
            hint = hint or "; its parts are " + ", ".join(child for child, _ in model.named_children())
            raise ValueError(f"--freeze {name}: the model has no module {module!r}{hint}")
    frozen = {parameter for _, module in expanded for parameter in modules[module].parameters()}
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(names)} leaves nothing to train")
    inside = tuple(f"{module}." for _, module in expanded)
    every_name = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in every_name if parameter in frozen and not name.startswith(inside)]


def expand_ranges(name: str) -> list[str]:
    """ "decoder.block.0-1" -> "decoder.block.0", "decoder.block.1"; an empty range stays as it is."""
    parts = []
    for part in name.split("."):
        ends = _RANGE.fullmatch(part)
        numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
        parts.append([str(number) for number in numbers] or [part])
    return [".".join(module) for module in product(*parts)]
