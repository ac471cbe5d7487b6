"""What every module of a model was given and gave, in execution order, by PyTorch's own hooks."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Call:
    """One module's run. Modules that give several tensors count by their first."""

    name: str  # dotted; " #2" follows at a module's second run
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor | None  # the tensor itself, part of the autograd graph
    value: Tensor | None  # its numbers, safe from whatever overwrites them later

    @property
    def module_name(self) -> str:
        return self.name.partition(" #")[0]

    @property
    def main_input(self) -> Tensor | None:
        return first_tensor((*self.args, *self.kwargs.values()))


def record_calls(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    prefix: str = "",
    weights: Mapping[str, Tensor] | None = None,
    leave_out: tuple[type[nn.Module], ...] = (),
) -> list[Call]:
    """Run `module` and return its calls and those of all modules in it, in the order in which they finish.

    Args:
        prefix: the dotted name of `module` itself, "" for a whole model.
        weights: parameters to use for this run instead of the module's own, by their names in it.
        leave_out: modules that are not to be watched.
    """
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, part in module.named_modules(remove_duplicate=False):
        if not isinstance(part, leave_out):
            names[part].append(dotted(prefix, name))
    running: list[str] = []
    runs: Counter[str] = Counter()
    calls: list[Call] = []

    def enter(part: nn.Module, args: tuple[Any, ...]) -> None:
        # A shared module goes by the name that its caller knows: encoder.embed_tokens, decoder.embed_tokens.
        inside = f"{running[-1]}." if running and running[-1] else ""
        known = [name for name in names[part] if name.startswith(inside)]
        running.append((known or names[part])[0])

    def leave(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = running.pop()
        runs[name] += 1
        numbered = name if runs[name] == 1 else f"{name} #{runs[name]}"
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


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a tensor, or in a nest of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def dotted(*names: str) -> str:
    """Names joined by dots, without the empty ones."""
    return ".".join(filter(None, names))


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards every module is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
