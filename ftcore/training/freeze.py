"""Keeping parts of a model as they are, by the names of their modules."""

import re
from collections.abc import Iterator, Sequence
from itertools import product

from torch import nn

from ftcore.cli import did_you_mean

_RANGE = re.compile(r"(\d+)-(\d+)")


def freeze(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Take all parameters of the modules with these dotted names out of the training.

    A part of a name may be a range, both ends included: `decoder.block.0-3`. Gradients still flow through a
    frozen module to trained ones before it; and where there are none, as in front of T5's encoder, its
    backward pass is saved.

    Returns:
        The parameters outside of these modules that are frozen with them because they are the same tensor:
        the embedding of a tied model serves both of T5's stacks and the head.

    Raises:
        ValueError: the model has no module of such a name, or nothing would be left to train.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    frozen = set()
    for name in names:
        for module in _expand(name):
            if module not in modules:
                hint = _hint(module, modules)
                raise ValueError(f"--freeze {name}: the model has no module {module!r}{hint}")
            frozen.update(modules[module].parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(names)} leaves nothing to train")
    inside = tuple(f"{module}." for name in names for module in _expand(name))
    everywhere = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in everywhere if parameter in frozen and not name.startswith(inside)]


def _expand(name: str) -> Iterator[str]:
    """ "decoder.block.0-1" -> "decoder.block.0", "decoder.block.1" """
    parts = [_part(part) for part in name.split(".")]
    return (".".join(module) for module in product(*parts))


def _part(part: str) -> list[str]:
    if not (ends := _RANGE.fullmatch(part)):
        return [part]
    first, last = int(ends[1]), int(ends[2])
    return [str(number) for number in range(first, last + 1)] or [part]  # backwards: no module is called that


def _hint(module: str, modules: dict[str, nn.Module]) -> str:
    near = did_you_mean(module, modules)
    return near or "; its parts are " + ", ".join(name for name, _ in modules[""].named_children())
