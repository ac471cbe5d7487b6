"""A pretended CUDA device: tensors stay on the CPU, and a mode keeps track of the device each would be on.

    with PretendedCuda() as cuda:
        model.to("cuda")
        train(...)
    assert cuda.waits == Counter({"loss.py batch_loss: int": 12})

As on a real device:

- An operation on tensors of both devices fails; only numbers (0-dimensional tensors) may be on the CPU.
- `torch.autocast("cuda")` casts by CUDA's lists of operations, which differ from the CPU's.
- What makes Python wait for the device is recorded, by the function of ftcore that asks for it.

The results are those of the CPU, bit for bit. Not covered: kernels, streams, memory, and operations between
tensors that the autograd engine makes, whose device is not known.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # imported by optimizers; it inspects functions that are patched here
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

MAKE_SUBCLASS: Any = torch.Tensor._make_subclass
GROUPED: Any = torch._C._group_tensors_by_device_and_dtype
words = re.compile(r"\w+").findall

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

# What waits for the device, on a CUDA tensor.
WAITS = set(
    words(
        """item tolist numpy __bool__ __int__ __float__ __index__ __array__ __repr__ nonzero masked_select
        unique unique_consecutive equal allclose is_nonzero bincount one_hot"""
    )
)
# Functions that take numbers from tensors on the CPU, or look at no data.
ANY_DEVICES = {"copy_", "type_as", "_has_compatible_shallow_copy_type"}

# CUDA's autocast, from PyTorch's documentation ("CUDA Ops that can autocast to ...").
TO_HALF = set(
    words(
        """__matmul__ __rmatmul__ matmul mm bmm addmm baddbmm addbmm linear einsum chain_matmul conv1d prelu
        scaled_dot_product_attention"""
    )
)
TO_FLOAT32 = set(
    words(
        """__pow__ __rpow__ acos asin cosh cosine_similarity cross_entropy cumprod cumsum erfinv exp expm1
        group_norm kl_div l1_loss layer_norm log log10 log_softmax log1p log2 logsumexp mse_loss nll_loss
        norm pow prod reciprocal rsqrt sinh smooth_l1_loss soft_margin_loss softmax softplus sum tan"""
    )
)


class PretendedCuda(TorchFunctionMode):
    """See the module's docstring. `waits` counts "file function: operation"."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._devices: Any = WeakIdKeyDictionary()
        self._half: list[torch.dtype | None] = [None]  # of the autocast contexts, innermost last

    def __enter__(self) -> "PretendedCuda":
        self._patches = [
            patch("torch.autocast", self._autocast),
            patch("torch.amp.autocast", self._autocast),
            patch("torch.is_autocast_enabled", lambda device: self._half[-1] is not None),
            patch("torch.get_autocast_dtype", lambda device: self._half[-1] or torch.float16),
            patch("torch.Generator", PretendedGenerator),
            patch("torch.cuda.is_available", lambda: True),
            patch("torch.cuda.device_count", lambda: 1),
            patch("torch.cuda.get_device_name", lambda device=None: "pretended"),
            patch("torch.cuda.synchronize", lambda device=None: self._wait("synchronize")),
            patch("torch.cuda.get_rng_state_all", list),
            patch("torch.cuda.set_rng_state_all", lambda states: None),
            patch("torch.Tensor._make_subclass", partial(self._subclass, MAKE_SUBCLASS)),
            patch("torch._C._group_tensors_by_device_and_dtype", partial(self._grouped, GROUPED)),
        ]
        for patched in self._patches:
            patched.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for patched in self._patches:
            patched.stop()

    def device_of(self, tensor: Tensor) -> torch.device | None:
        """None for a tensor of the autograd engine."""
        in_backward = torch._C._current_graph_task_id() != -1
        return self._devices.get(tensor, None if in_backward else CPU)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.__name__
        if name == "__get__":
            return self._get(function, *args)
        if name == "__set__":
            if isinstance(args[1], Tensor):  # .data or .grad
                self._devices[args[0]] = self.device_of(args[1])
            return function(*args)
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = [self.device_of(tensor) for tensor in tensors]
        if name in ("to", "cpu", "cuda"):
            return self._to(function, args, kwargs)
        self._require_one_device(name, tensors, devices, kwargs)
        on_cuda = CUDA in devices
        is_condition = name == "where" and len(args) == 1
        if on_cuda and (name in WAITS or is_condition or self._is_lookup_by_mask(name, args)):
            self._wait(name)
        if on_cuda and name == "copy_" and self.device_of(args[0]) == CPU:
            self._wait("copy_ to the CPU")
        device = CUDA if on_cuda else None
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            kwargs = kwargs | {"device": CPU} if device.type == "cuda" else kwargs
        if on_cuda and self._half[-1] is not None:
            args, kwargs = self._cast(name, args, kwargs, self._half[-1])
        outputs = function(*args, **kwargs)
        return self._placed(outputs, device if device is not None else (CPU if not tensors else devices[0]))

    def _get(self, function: Any, tensor: Tensor, *rest: Any) -> Any:
        """A property."""
        name = function.__self__.__name__
        device = self.device_of(tensor)
        if name == "device":
            return CUDA if device == CUDA else CPU
        if name == "is_cuda":
            return device == CUDA
        if name == "is_cpu":
            return device != CUDA
        return self._placed(function(tensor, *rest), device)

    def _to(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        name, tensor = function.__name__, args[0]
        here = self.device_of(tensor)
        there = here
        if name != "to":
            there = CPU if name == "cpu" else CUDA
            result = tensor.clone() if here != there else tensor
        else:
            is_device = lambda value: isinstance(value, str | torch.device)  # noqa: E731
            others = [value for value in args[1:] if isinstance(value, Tensor)]
            named = [value for value in (*args[1:], kwargs.get("device")) if is_device(value)]
            there = torch.device(named[0]) if named else self.device_of(others[0]) if others else here
            args = tree_map(lambda value: CPU if is_device(value) else value, tuple(args))
            kwargs = kwargs | {"device": CPU} if kwargs.get("device") is not None else kwargs
            result = function(*args, **kwargs)
            if result is tensor and there is not None and here is not None and there.type != here.type:
                result = tensor.clone()
        if here == CUDA and there is not None and there.type == "cpu":
            self._wait("to the CPU")
        return self._placed(result, there)

    def _placed(self, outputs: Any, device: torch.device | None) -> Any:
        device = CUDA if device is not None and device.type == "cuda" else device
        for leaf in leaves(outputs):
            if isinstance(leaf, Tensor) and device is not None:
                self._devices[leaf] = device
        return outputs

    def _require_one_device(self, name: str, tensors: Any, devices: Any, kwargs: Any) -> None:
        if name in ANY_DEVICES:
            return
        generator = kwargs.get("generator")
        if generator is not None and CUDA in devices and not getattr(generator, "is_cuda", False):
            raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
        known = {
            device
            for tensor, device in zip(tensors, devices, strict=True)
            if device is not None and (tensor.dim() > 0 or device == CUDA)
        }
        if name in ("__getitem__", "__setitem__", "index_put_") and devices[0] == CUDA:
            return  # indices may be on the CPU
        if len(known) > 1:
            shapes = ", ".join(
                f"{device} {tuple(tensor.shape)}" for tensor, device in zip(tensors, devices, strict=True)
            )
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {shapes}")

    def _subclass(self, make: Any, kind: type, data: Tensor, *options: Any) -> Tensor:
        """A parameter."""
        return self._placed(make(kind, data, *options), self.device_of(data))

    def _grouped(self, group: Any, lists: Any, with_indices: bool = False) -> Any:
        """Tensors of an optimizer by device and dtype, which C++ looks up."""
        device = CUDA if any(self.device_of(tensor) == CUDA for tensor in lists[0]) else CPU
        return {(device, dtype): found for (_, dtype), found in group(lists, with_indices).items()}

    def _is_lookup_by_mask(self, name: str, args: Any) -> bool:
        if name not in ("__getitem__", "__setitem__"):
            return False
        indices = [leaf for leaf in leaves(args[1]) if isinstance(leaf, Tensor)]
        return any(index.dtype == torch.bool or self.device_of(index) == CPU for index in indices)

    def _wait(self, operation: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and "/ftcore/" not in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None:  # a test
            return
        code = frame.f_code
        self.waits[f"{code.co_filename.split('/ftcore/')[-1]} {code.co_name}: {operation}"] += 1

    def _cast(self, name: str, args: Any, kwargs: Any, half: torch.dtype) -> tuple[Any, Any]:
        if name not in TO_HALF | TO_FLOAT32:
            return args, kwargs
        if kwargs.get("dtype") is not None:
            return args, kwargs
        dtype = half if name in TO_HALF else torch.float32

        def cast(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.dtype == torch.float64:
                return leaf
            return leaf.to(dtype)

        return tree_map(cast, tuple(args)), tree_map(cast, kwargs)

    @contextmanager
    def _autocast(
        self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **options: bool
    ) -> Iterator[None]:
        """Autocast of the CPU changes nothing here."""
        self._half.append(
            self._half[-1] if device_type != "cuda" else dtype or torch.float16 if enabled else None
        )
        try:
            yield
        finally:
            self._half.pop()


class PretendedGenerator(torch.Generator):
    """A generator of the CPU that knows which device it is for."""

    def __new__(cls, device: Any = "cpu") -> "PretendedGenerator":
        generator = super().__new__(cls)
        generator.is_cuda = torch.device(device).type == "cuda"
        return generator


def leaves(values: Any) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold."""
    if isinstance(values, tuple | list):
        for value in values:
            yield from leaves(value)
    elif isinstance(values, dict):
        yield from leaves(tuple(values.values()))
    else:
        yield values
