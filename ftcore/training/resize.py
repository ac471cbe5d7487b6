"""Changes of a model before training: other sizes than its checkpoint's, and frozen parts.

Parts are named by module, with blocks as ranges: `decoder.block.0-3`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import model_from_config
from ftcore.checkpoints.files import parse_json
from ftcore.models import GPT2Config, Model, T5Config
from ftcore.output import did_you_mean
from ftcore.training.options import SIZES, TrainOptions

ORIGINS = ("loaded", "cut", "grown", "new", "left out")

_GPT2_NAMES = {"num_layers": "n_layer", "d_model": "n_embd", "num_heads": "n_head", "d_ff": "n_inner"}

# Key -> keys that are derived from it again, unless they are changed themselves.
_DERIVED = {
    "num_layers": ["num_decoder_layers"],
    "feed_forward_proj": ["dense_act_fn", "is_gated_act"],
    "n_positions": ["n_ctx"],  # the same number in old files
}

_RANGE = re.compile(r"(\d{1,4})-(\d{1,4})")
_BLOCK = re.compile(r"(?P<before>.*?\.)(?P<number>\d+)(?P<after>.*)")


def config_changes(options: TrainOptions, config: GPT2Config | T5Config) -> dict[str, Any]:
    """The keys of this config.json that --num-layers and similar options or --set change -> new values.

    Raises:
        ValueError: a model of this family has no such key, or two options contradict each other.
    """
    given = [(f"`{name}`", name, getattr(options, name)) for name in SIZES]
    given = [(option, name, value) for option, name, value in given if value is not None]
    given += [(f"`set` {text}", *_key_and_value(text)) for text in options.set or []]
    names = config.aliases | ({} if config.is_encoder_decoder else _GPT2_NAMES)
    keys = [field.name for field in fields(config) if field.name != "extra"]
    changes: dict[str, Any] = {}
    for option, name, value in given:
        key = names.get(name, name)
        if key not in keys:
            raise ValueError(f"{option}: {config.model_type} has no {name!r}{did_you_mean(name, keys)}")
        if changes.setdefault(key, value) != value:
            raise ValueError(f"{option} contradicts another option, which sets {key} to {changes[key]!r}")
    return changes


def _key_and_value(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, parse_json(value, text)
    except ValueError:  # a string without quotes
        return key, value


@dataclass(frozen=True)
class Resized:
    """Differences between a resized model and its checkpoint."""

    keys: dict[str, tuple[Any, Any]]  # of config.json: old and new value, derived keys included
    # Origin -> names of modules and parameters, with blocks as ranges. A parameter is "loaded"; "cut", the
    # leading part of the checkpoint's; "grown", the checkpoint's followed by random numbers; "new", all
    # random; or "left out", not part of the new model.
    parameters: dict[str, list[str]]


def resize(model: Model, changes: dict[str, Any], *, keep_weights: bool = True) -> tuple[Model, Resized]:
    """Build a model with a changed config.json and copy all weights that fit.

    Tensors of another shape keep their leading part: the first positions, heads, neurons; stacks of another
    depth keep their first blocks. Cut consistently, the parts still fit each other, a better initialization
    than random numbers (Xu et al. 2024, Initializing Models with Larger Ones).

    Raises:
        ValueError: an invalid value; the message names the key.
    """
    derived = {name for key in changes for name in _DERIVED.get(key, [])}
    before = model.config.to_dict()
    kept = {key: value for key, value in before.items() if key not in derived}
    resized = model_from_config(kept | changes, where="the changed config.json")
    resized.generation_config = model.generation_config
    old_weights = model.state_dict() if keep_weights else {}  # a tied weight under each of its names
    origins = {name: "left out" for name, _ in model.named_parameters() if name in old_weights}
    for name, weight in resized.named_parameters():
        if name in old_weights:
            old = _split_heads(name, old_weights[name], model.config)
            origins[name] = _copy_leading_part(old, _split_heads(name, weight.detach(), resized.config))
        else:
            origins[name] = "new"
    after = resized.config.to_dict()
    keys = {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}
    return resized, Resized(keys, _summarize(origins))


def _split_heads(name: str, weight: Tensor, config: GPT2Config | T5Config) -> Tensor:
    """A view of an attention weight with a separate axis for heads, so that whole heads are cut."""
    if isinstance(config, GPT2Config):
        if ".attn.c_attn." in name:  # (D, 3 * H * K), or its bias (3 * H * K,)
            return weight.unflatten(-1, (3, config.n_head, -1))
        return weight.unflatten(0, (config.n_head, -1)) if name.endswith(".attn.c_proj.weight") else weight
    if name.endswith((".q.weight", ".k.weight", ".v.weight")):  # (H * K, D)
        return weight.unflatten(0, (config.num_heads, -1))
    return weight.unflatten(1, (config.num_heads, -1)) if name.endswith(".o.weight") else weight


def _copy_leading_part(old: Tensor, new: Tensor) -> str:
    """Copy the overlap of both shapes from `old` to `new`; returns the origin of `new`."""
    common = [min(sizes) for sizes in zip(old.shape, new.shape, strict=True)]
    part = tuple(slice(size) for size in common)
    new[part] = old[part]
    if list(new.shape) == common:
        return "loaded" if new.shape == old.shape else "cut"
    return "grown"


def _summarize(origins: dict[str, str]) -> dict[str, list[str]]:
    """Origin -> the largest modules whose parameters all share it, adjacent blocks as a range."""
    inside: dict[str, set[str]] = defaultdict(set)  # module -> origins of its parameters
    for name, origin in origins.items():
        for module in _prefixes(name):
            inside[module].add(origin)
    summary: dict[str, dict[str, None]] = {origin: {} for origin in ORIGINS}
    for name, origin in origins.items():
        largest = next(module for module in _prefixes(name) if inside[module] == {origin})
        summary[origin][largest or "everything"] = None
    return {origin: _with_ranges(modules) for origin, modules in summary.items() if modules}


def _prefixes(name: str) -> list[str]:
    """ "encoder.block.0" -> "", "encoder", "encoder.block", "encoder.block.0" """
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def _with_ranges(modules: Iterable[str]) -> list[str]:
    """encoder.block.0, encoder.block.1 -> encoder.block.0-1"""
    names: list[str] = []
    ranges: dict[tuple[str, str], tuple[int, int, int]] = {}  # text around the number -> index, first, last
    for module in modules:
        block = _BLOCK.fullmatch(module)
        if block is None:
            names.append(module)
            continue
        before, number, after = block["before"], int(block["number"]), block["after"]
        index, first, last = ranges.get((before, after), (0, 0, -2))
        if number == last + 1:
            names[index] = f"{before}{first}-{number}{after}"
        else:
            index, first = len(names), number
            names.append(module)
        ranges[before, after] = index, first, number
    return names


def freeze(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Set requires_grad to False for all parameters of the modules with these dotted names.

    A part of a name may be an inclusive range: `decoder.block.0-3`. Gradients still flow through a frozen
    module to trainable ones before it.

    Returns:
        The names outside of these modules whose parameters are frozen too because they are tied: a tied
        embedding is used by both of T5's stacks and the head.

    Raises:
        ValueError: the model has no module of such a name, or no parameter would be left to train.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    expanded = []
    for name in names:
        for module in expand_ranges(name):
            if module not in modules:
                hint = did_you_mean(module, modules)
                hint = hint or "; its parts are " + ", ".join(child for child, _ in model.named_children())
                raise ValueError(f"`freeze` {name}: the model has no module {module!r}{hint}")
            expanded.append(module)
    frozen = {parameter for module in expanded for parameter in modules[module].parameters()}
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"`freeze` {' '.join(names)} leaves nothing to train")
    inside = tuple(f"{module}." for module in expanded)
    every_name = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in every_name if parameter in frozen and not name.startswith(inside)]


def expand_ranges(name: str) -> Iterator[str]:
    """ "decoder.block.0-1" -> "decoder.block.0", "decoder.block.1"; an empty range stays as it is."""
    parts = []
    for part in name.split("."):
        ends = _RANGE.fullmatch(part)
        numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
        parts.append([str(number) for number in numbers] or [part])
    return (".".join(module) for module in product(*parts))
