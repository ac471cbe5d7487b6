"""PyTorch's compiler, which writes a program for a function: in C++ for a CPU, in Triton for a GPU."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


def compile_apart(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`torch.compile(function, **settings)`, apart from others that were made of the same function.

    The compiler keeps programs with a function's code, eight at most, and makes no more. So each caller gets
    code of its own.
    """
    assert isinstance(function, FunctionType)
    own = function.__code__.replace()
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    return torch.compile(FunctionType(own, *parts), **settings)


def require_compiler(device: torch.device, who: str) -> None:
    """Raises ValueError where what PyTorch's compiler writes for a device cannot be built.

    Args:
        who: what needs it, for the message.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # which takes seconds to import

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise ValueError(f"{who} needs a C++ compiler, such as g++, and finds none") from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(f"{who} needs Triton on {device}, and finds none: install it, or leave it out")
