"""Record every module call of a model in execution order, by forward hooks."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Call:
    """One call of a module. Of several output tensors, the first is recorded."""

    name: str  # dotted; " #2" is appended at the second call of a module
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor | None  # attached to the autograd graph
    value: Tensor | None  # a copy, unaffected by later in-place operations

    @property
    def module_name(self) -> str:
        """The name without the number of the call."""
        return self.name.partition(" #")[0]

    @property
    def main_input(self) -> Tensor | None:
        """The first tensor among the arguments."""
        return first_tensor((*self.args, *self.kwargs.values()))


def record_calls(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    prefix: str = "",
    weights: Mapping[str, Tensor] | None = None,
    exclude: tuple[type[nn.Module], ...] = (),
) -> list[Call]:
    """Run `module`; return its call and those of all its submodules, in the order in which they return.

    Args:
        prefix: dotted name of `module` itself, "" for a whole model.
        weights: parameters that replace the module's own during this call, by their names in it.
        exclude: module classes that are not hooked.
    """
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, part in module.named_modules(remove_duplicate=False):
        if not isinstance(part, exclude):
            names[part].append(dotted(prefix, name))
    running: list[str] = []
    counts: Counter[str] = Counter()
    calls: list[Call] = []

    def enter(part: nn.Module, args: tuple[Any, ...]) -> None:
        # A shared module takes its name from the caller: encoder.embed_tokens, decoder.embed_tokens.
        parent = f"{running[-1]}." if running and running[-1] else ""
        running.append(next((name for name in names[part] if name.startswith(parent)), names[part][0]))

    def leave(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = running.pop()
        counts[name] += 1
        numbered = name if counts[name] == 1 else f"{name} #{counts[name]}"
        tensor = first_tensor(output)
        value = None if tensor is None else tensor.detach().clone()
        calls.append(Call(numbered, part, args, kwargs, tensor, value))

    handles = [part.register_forward_pre_hook(enter) for part in names]
    handles += [part.register_forward_hook(leave, with_kwargs=True) for part in names]
    try:
        if weights:
            functional_call(module, dict(weights), args, kwargs, tie_weights=False)
        else:
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def configured(model: nn.Module, **settings: Any) -> Iterator[None]:
    """Change settings in the configurations of transformers' modules that have them."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    changed = [
        (config, name, getattr(config, name))
        for config in configs.values()
        for name in settings
        if hasattr(config, name)
    ]
    for config, name, _ in changed:
        setattr(config, name, settings[name])
    try:
        yield
    finally:
        for config, name, value in changed:
            setattr(config, name, value)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and mappings; None if there is none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def dotted(*names: str) -> str:
    """Join names by dots, skipping empty ones."""
    return ".".join(filter(None, names))
