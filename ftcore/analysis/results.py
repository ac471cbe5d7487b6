"""How results of the analyses print: the shape of a large tensor in place of its numbers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

MOST_NUMBERS = 50  # of a vector or matrix that is printed as it is


class Tensors(dict[str, Tensor]):
    """Tensors by name: a dict that prints a line for each."""

    def __repr__(self) -> str:
        return one_per_line(self)


def one_per_line(values: Mapping[str, Any]) -> str:
    """A line for each value: "cross (3, 1, 4, 3, 28)" for a tensor of that shape, numbers for a small one."""
    return "\n".join(_line(name, value) for name, value in values.items())


def _line(name: str, value: Any) -> str:
    if isinstance(value, Tensor) and (value.numel() > MOST_NUMBERS or value.dim() > 2):
        return f"{name} {tuple(value.shape)}"
    return f"{name} {value!r}".replace("\n", "\n" + " " * (len(name) + 1))
