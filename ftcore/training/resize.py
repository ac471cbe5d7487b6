"""A model with other sizes than its checkpoint's: what fits is loaded, the rest begins as random numbers."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ftcore.checkpoints.checkpoint import model_from_config
from ftcore.cli import did_you_mean
from ftcore.models import GPT2Config, Model, T5Config
from ftcore.training.options import SIZES, TrainOptions

FATES = ("loaded", "cut", "grown", "new", "left out")

_GPT2_NAMES = {"num_layers": "n_layer", "d_model": "n_embd", "num_heads": "n_head", "d_ff": "n_inner"}

# Keys and those that follow from them, unless these are changed themselves.
_SETTLES = {
    "num_layers": ["num_decoder_layers"],
    "feed_forward_proj": ["dense_act_fn", "is_gated_act"],
    "n_positions": ["n_ctx"],  # of old files, the same number
}

_BLOCK = re.compile(r"(?P<before>.*?\.)(?P<number>\d+)(?P<after>.*)")


def config_changes(options: TrainOptions, config: GPT2Config | T5Config) -> dict[str, Any]:
    """The keys of this config.json that --num-layers and its like or --set change, with their new values.

    Raises:
        ValueError: a model of this family has no such key, or two options say different things about it.
    """
    given = [(f"--{name.replace('_', '-')}", name, getattr(options, name)) for name in SIZES]
    given = [(flag, name, value) for flag, name, value in given if value is not None]
    given += [(f"--set {text}", *_key_and_value(text)) for text in options.set or []]
    names = config.aliases | ({} if config.is_encoder_decoder else _GPT2_NAMES)
    keys = [field.name for field in fields(config) if field.name != "extra"]
    changes: dict[str, Any] = {}
    for flag, name, value in given:
        key = names.get(name, name)
        if key not in keys:
            raise ValueError(f"{flag}: {config.model_type} has no {name!r}{did_you_mean(name, keys)}")
        if changes.setdefault(key, value) != value:
            raise ValueError(f"{flag} contradicts another option, which says {key} is {changes[key]!r}")
    return changes


def _key_and_value(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:  # a text need not be in quotes
        return key, value


@dataclass(frozen=True)
class Resized:
    """What a model lost and gained against its checkpoint."""

    keys: dict[str, tuple[Any, Any]]  # of config.json, before and after; those that follow from others too
    # Fate -> names of modules and parameters, with blocks as ranges. A parameter is "loaded"; "cut", the
    # leading part of the old one; "grown", the old one in front and the rest random; "new", all of it random;
    # or "left out", the new model having no place for it.
    parameters: dict[str, list[str]]


def resize(model: Model, changes: dict[str, Any], *, keep_weights: bool = True) -> tuple[Model, Resized]:
    """A model whose config.json has these changes, with all of the old weights that fit into it.

    Of a tensor of another shape the leading part is kept, and of a deeper model the first blocks: the first
    positions, heads, neurons. Cut alike everywhere, they still fit each other, and make a better beginning
    than random numbers (Xu et al. 2024, Initializing Models with Larger Ones).

    Raises:
        ValueError: a value that the model cannot have; the message names the key.
    """
    settled = {name for key in changes for name in _SETTLES.get(key, [])}
    before = model.config.to_dict()
    kept = {key: value for key, value in before.items() if key not in settled}
    resized = model_from_config(kept | changes, where="the changed config.json")
    resized.generation_config = model.generation_config
    old_weights = model.state_dict() if keep_weights else {}  # a tied weight under all of its names
    fates = {name: "left out" for name, _ in model.named_parameters() if name in old_weights}
    for name, weight in resized.named_parameters():
        if name in old_weights:
            old = _by_heads(name, old_weights[name], model.config)
            fates[name] = _copy_leading_part(old, _by_heads(name, weight.detach(), resized.config))
        else:
            fates[name] = "new"
    after = resized.config.to_dict()
    keys = {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}
    return resized, Resized(keys, _summary(fates))


def _by_heads(name: str, weight: Tensor, config: GPT2Config | T5Config) -> Tensor:
    """A view of an attention matrix with heads as an axis of its own, so that whole heads are cut."""
    if isinstance(config, GPT2Config):
        if ".attn.c_attn." in name:  # (D, 3 * H * K), or its bias (3 * H * K,)
            return weight.unflatten(-1, (3, config.n_head, -1))
        return weight.unflatten(0, (config.n_head, -1)) if name.endswith(".attn.c_proj.weight") else weight
    if name.endswith((".q.weight", ".k.weight", ".v.weight")):  # (H * K, D)
        return weight.unflatten(0, (config.num_heads, -1))
    return weight.unflatten(1, (config.num_heads, -1)) if name.endswith(".o.weight") else weight


def _copy_leading_part(old: Tensor, new: Tensor) -> str:
    """Copy what the two have in common into `new`; returns what that means for it."""
    common = [min(sizes) for sizes in zip(old.shape, new.shape, strict=True)]
    part = tuple(slice(size) for size in common)
    new[part] = old[part]
    if list(new.shape) == common:
        return "loaded" if new.shape == old.shape else "cut"
    return "grown"


def _summary(fates: dict[str, str]) -> dict[str, list[str]]:
    """Fate -> the largest modules all of whose parameters share it, neighbouring blocks as a range."""
    inside: dict[str, set[str]] = defaultdict(set)  # module -> the fates of its parameters
    for name, fate in fates.items():
        for module in _containing(name):
            inside[module].add(fate)
    summary: dict[str, dict[str, None]] = {fate: {} for fate in FATES}
    for name, fate in fates.items():
        largest = next(module for module in _containing(name) if inside[module] == {fate})
        summary[fate][largest or "everything"] = None
    return {fate: _with_ranges(modules) for fate, modules in summary.items() if modules}


def _containing(name: str) -> list[str]:
    """ "encoder.block.0.weight" -> "", "encoder", "encoder.block", "encoder.block.0", and itself"""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def _with_ranges(modules: Iterable[str]) -> list[str]:
    """encoder.block.0, encoder.block.1 -> encoder.block.0-1"""
    names: list[str] = []
    runs: dict[tuple[str, str], tuple[int, int, int]] = {}  # around the number -> place in names, first, last
    for module in modules:
        place, first = len(names), None
        if block := _BLOCK.fullmatch(module):
            around, number = (block["before"], block["after"]), int(block["number"])
            if around in runs and runs[around][2] == number - 1:
                place, first, _ = runs[around]
            runs[around] = place, number if first is None else first, number
        if first is None:
            names.append(module)
        else:
            names[place] = f"{around[0]}{first}-{number}{around[1]}"
    return names
