"""A CUDA graph's stand-in on a CPU: what it records it repeats, kernel by kernel, on the same memory.

As with a graph, no Python runs again: sizes, numbers and branches are those of the recording. And as with a
graph, whatever would have to wait for the device to know a number cannot be recorded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What brings a number, or a size, from the device to Python.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in WAITS:
            raise RuntimeError(f"{function} waits for the device, and cannot be recorded")
        outputs = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, outputs))
        return outputs

    def play(self) -> None:
        for function, args, kwargs, outputs in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tensors(outputs), tensors(again), strict=True):
                assert old.shape == new.shape
                if old.data_ptr() != new.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and not leaf.is_meta]


def record(compute: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """In the place of ftcore.fast.cuda_graph's."""
    compute()
    with Tape() as tape:
        result = compute()
    return tape.play, result
