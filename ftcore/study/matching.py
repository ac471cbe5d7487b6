"""What belongs together in two modules that should compute the same: their inputs, names and weights."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ftcore.study.recording import dotted
from ftcore.study.report import difference

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
Rename = Mapping[str, str] | Callable[[str], str] | None
Given = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(inputs: Inputs, backward: bool) -> Given:
    """Positional and named arguments: copies, so that neither side finds what the other wrote into them."""

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(backward and value.is_floating_point())

    if isinstance(inputs, dict):
        return (), {name: fresh(value) for name, value in inputs.items()}
    positional = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(fresh(value) for value in positional), {}


def renaming(mine: nn.Module, rename: Rename) -> Callable[[str], str]:
    """From the dotted names of `mine` to those of the reference.

    Raises:
        ValueError: `rename` names no module, or joins two.
    """
    if rename is None:
        return lambda name: name
    modules = [name for name, _ in mine.named_modules() if name]
    if callable(rename):
        renamed = rename
    else:
        for prefix in rename:
            if prefix not in modules:
                near = difflib.get_close_matches(prefix, modules, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f"; it has {', '.join(modules)}"
                raise ValueError(f"rename: mine has no module {prefix!r}{hint}")

        def renamed(name: str) -> str:
            parts = name.split(".")
            for count in range(len(parts), 0, -1):  # the longest prefix counts
                if (prefix := ".".join(parts[:count])) in rename:
                    return ".".join([rename[prefix], *parts[count:]])
            return name

    targets: dict[str, str] = {}
    for name in modules:
        if (other := targets.setdefault(renamed(name), name)) != name:
            raise ValueError(f"rename: both {other!r} and {name!r} become {renamed(name)!r}")

    def named(name: str) -> str:
        module, mark, run = name.partition(" #")
        return (renamed(module) if module else "") + mark + run

    return named


def parameter_name(name: str, named: Callable[[str], str]) -> str:
    """The name in the reference of a parameter of `mine`."""
    module, _, parameter = name.rpartition(".")
    return dotted(named(module), parameter)


@torch.no_grad()
def copy_matching_weights(mine: nn.Module, reference: nn.Module, named: Callable[[str], str]) -> None:
    """Overwrite the parameters of `mine` with those of the same name and shape.

    Raises:
        ValueError: there is none.
    """
    weights = dict(reference.named_parameters(remove_duplicate=False))
    copied = 0
    for name, weight in mine.named_parameters():
        other = weights.get(parameter_name(name, named))
        if other is not None and other.shape == weight.shape:
            weight.copy_(other)
            copied += 1
    if not copied and any(True for _ in mine.parameters()):
        raise ValueError(
            "copy_weights: no parameter of mine has name and shape of one of the reference's; say by rename "
            f"which is which (mine: {_shapes(mine)}; the reference: {_shapes(reference)})"
        )


def _shapes(module: nn.Module) -> str:
    return ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in module.named_parameters())


def unequal_weights(mine: nn.Module, reference: nn.Module, named: Callable[[str], str]) -> dict[str, str]:
    """The parameters of mine that are not the reference's of that name, and in which way."""
    weights = dict(reference.named_parameters(remove_duplicate=False))
    unequal: dict[str, str] = {}
    for name, weight in mine.named_parameters():
        other = weights.get(parameter_name(name, named))
        if other is None:
            unequal[name] = "the reference has none of that name"
        elif other.shape != weight.shape:
            unequal[name] = f"{tuple(weight.shape)}, the reference's is {tuple(other.shape)}"
        elif not torch.equal(weight.detach().to(other.dtype), other):
            apart = difference(weight.detach(), other.detach()).relative
            unequal[name] = f"relative difference {apart:.1e}"
    return unequal


@torch.no_grad()
def randomize_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights under which mistakes show; returns the module.

    Freshly initialised layers hide mistakes: biases are 0, norms are 1, and scores are so small that every
    softmax gives nearly the same weights, whatever its scale and mask. Here biases and norms vary, embeddings
    are normal, and matrices keep the size of what they are given. T5's q is smaller by 1/sqrt(K), because its
    attention does not divide by that: scores that are too large make a softmax choose one key alone.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[nn.Parameter] = set()
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight in done:
                continue  # a tied head stays the embedding
            done.add(weight)
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            if weight.dim() < 2:
                weight.add_(0.2 * noise)
            elif isinstance(part, nn.Embedding):
                weight.copy_(noise)
            else:
                stored_in_out = type(part).__name__ == "Conv1D" and name == "weight"
                weight.copy_(noise * weight.shape[0 if stored_in_out else 1] ** -0.5)
    for part in module.modules():
        if type(part).__name__ == "T5Attention":
            q, heads = cast(nn.Linear, part.q), getattr(part, "num_heads", None) or part.n_heads
            q.weight.mul_((q.out_features // cast(int, heads)) ** -0.5)
    return module
