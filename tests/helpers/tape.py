"""A substitute for CUDA graphs on a CPU: captures operations and replays them on the same memory.

As with a CUDA graph, no Python runs at replay: sizes, numbers and branches are those of the capture. And as
with a CUDA graph, operations that synchronize with the device cannot be captured.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that bring a value or a size from the device to Python.
SYNCHRONIZING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::_unique2",
}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in SYNCHRONIZING:
            raise RuntimeError(f"{function} synchronizes with the device and cannot be captured")
        outputs = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, outputs))
        return outputs

    def replay(self) -> None:
        for function, args, kwargs, outputs in self.calls:
            for old, new in zip(tensors(outputs), tensors(function(*args, **kwargs)), strict=True):
                assert old.shape == new.shape
                if old.data_ptr() != new.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and not leaf.is_meta]


def capture(compute: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Replaces `ftcore.fast.cuda_graph.capture`."""
    compute()
    with Tape() as tape:
        result = compute()
    return tape.replay, result
