"""Align two modules for a comparison: their inputs, names and weights."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ftcore.output import did_you_mean
from ftcore.study.recording import dotted
from ftcore.study.report import difference

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword
Rename = Mapping[str, str] | Callable[[str], str] | None


def copy_inputs(inputs: Inputs, requires_grad: bool) -> Arguments:
    """The arguments of a call, with copies of all tensors: either module may modify them in place."""

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(requires_grad and value.is_floating_point())

    if isinstance(inputs, dict):
        return (), {name: copied(value) for name, value in inputs.items()}
    positional = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(copied(value) for value in positional), {}


def renaming(mine: nn.Module, rename: Rename) -> Callable[[str], str]:
    """A function from the names of calls of `mine` to those of the reference.

    Raises:
        ValueError: `rename` names an unknown module, or maps two modules to one name.
    """
    rename = {} if rename is None else rename
    modules = [name for name, _ in mine.named_modules() if name]
    for prefix in () if callable(rename) else rename:
        if prefix not in modules:
            hint = did_you_mean(prefix, modules) or f"; it has {', '.join(modules)}"
            raise ValueError(f"rename: mine has no module {prefix!r}{hint}")

    def renamed(name: str) -> str:
        if callable(rename):
            return rename(name)
        parts = name.split(".")
        for count in range(len(parts), 0, -1):  # the longest matching prefix wins
            if (prefix := ".".join(parts[:count])) in rename:
                return ".".join([rename[prefix], *parts[count:]])
        return name

    targets: dict[str, str] = {}
    for name in modules:
        if (other := targets.setdefault(renamed(name), name)) != name:
            raise ValueError(f"rename: both {other!r} and {name!r} become {renamed(name)!r}")

    def to_reference(name: str) -> str:
        module, mark, number = name.partition(" #")
        return (renamed(module) if module else "") + mark + number

    return to_reference


def parameter_name(name: str, to_reference: Callable[[str], str]) -> str:
    """The name in the reference of a parameter of `mine`."""
    module, _, parameter = name.rpartition(".")
    return dotted(to_reference(module), parameter)


def _parameter_pairs(
    mine: nn.Module, reference: nn.Module, to_reference: Callable[[str], str]
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(name, parameter of mine, parameter of the reference or None)."""
    theirs = dict(reference.named_parameters(remove_duplicate=False))
    for name, weight in mine.named_parameters():
        yield name, weight, theirs.get(parameter_name(name, to_reference))


@torch.no_grad()
def copy_matching_weights(mine: nn.Module, reference: nn.Module, to_reference: Callable[[str], str]) -> None:
    """Copy into the parameters of `mine` those of the reference with the same name and shape.

    Raises:
        ValueError: there are none.
    """
    copied = 0
    for _, weight, other in _parameter_pairs(mine, reference, to_reference):
        if other is not None and other.shape == weight.shape:
            weight.copy_(other)
            copied += 1
    if not copied and list(mine.parameters()):
        mine_has, reference_has = (
            ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in module.named_parameters())
            for module in (mine, reference)
        )
        raise ValueError(
            "copy_weights: no parameter of mine has the name and shape of one in the reference; pass rename= "
            f"(mine: {mine_has}; the reference: {reference_has})"
        )


@torch.no_grad()
def unequal_weights(
    mine: nn.Module, reference: nn.Module, to_reference: Callable[[str], str]
) -> dict[str, str]:
    """The parameters of mine that differ from the reference's of the same name, and how."""
    unequal: dict[str, str] = {}
    for name, weight, other in _parameter_pairs(mine, reference, to_reference):
        if other is None:
            unequal[name] = "not in the reference"
        elif other.shape != weight.shape:
            unequal[name] = f"{tuple(weight.shape)}, expected {tuple(other.shape)}"
        elif weight.isnan().any():
            unequal[name] = "holds NaN"
        elif not torch.equal(weight.to(other.dtype), other):
            unequal[name] = f"relative difference {difference(weight, other).relative:.1e}"
    return unequal


@torch.no_grad()
def randomize_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite all parameters with random values that expose mistakes; returns the module.

    Fresh layers hide mistakes: biases are 0, norm weights are 1, and scores are so small that softmax is
    nearly uniform for any scale and mask. Here biases and norm weights vary, embeddings are standard normal,
    and matrices preserve the variance of their input. T5's query matrix is smaller by 1/sqrt(K), since its
    attention does not divide by sqrt(K) and its softmax would otherwise be nearly one-hot.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        part = module.get_submodule(name.rpartition(".")[0])
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        if weight.dim() < 2:
            weight.add_(0.2 * noise)
        elif isinstance(part, nn.Embedding):
            weight.copy_(noise)
        else:
            is_in_out = type(part).__name__ == "Conv1D"  # stores (in, out)
            weight.copy_(noise * weight.shape[0 if is_in_out else 1] ** -0.5)
    for part in module.modules():
        if type(part).__name__ == "T5Attention":
            q, heads = cast(nn.Linear, part.q), getattr(part, "num_heads", None) or part.n_heads
            q.weight.mul_((q.out_features // cast(int, heads)) ** -0.5)
    return module
