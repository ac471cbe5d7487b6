"""A Hugging Face directory <-> a model: config.json, the weights, generation_config.json.

Loading copies nothing: the model is built on the meta device, and its parameters become views of the
memory-mapped file. Saving is atomic, see files.py.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial, reduce
from pathlib import Path
from reprlib import repr as shown
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ftcore.checkpoints.files import make_directory, read_json, write_json, write_together
from ftcore.checkpoints.hub import resolve_directory
from ftcore.checkpoints.tensors import (
    describe_mismatch,
    is_computable,
    misfit,
    read_weights,
    split_into_shards,
    write_tensors,
)
from ftcore.lora.adapter import adapter_chain, load_adapter
from ftcore.lora.lora import merge_lora, require_plain
from ftcore.models import Model
from ftcore.models.config import GPT2Config, MT5Config, T5Config, UMT5Config, convert
from ftcore.models.gpt2 import GPT2LMHeadModel
from ftcore.models.t5 import T5ForConditionalGeneration

AnyModel = TypeVar("AnyModel")

T5_CONFIGS = {config.model_type: config for config in (T5Config, MT5Config, UMT5Config)}

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Put before every name by torch.compile, DistributedDataParallel, FSDP, PEFT and training frameworks.
_WRAPPERS = re.compile(r"((_orig_mod|module|_fsdp_wrapped_module|base_model\.model|model)\.)+")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

# Keys in published checkpoints that are not parameters: GPT-2's causal masks, an unused table of T5's.
_IGNORED_KEYS = re.compile(
    r"\.attn\.(masked_)?bias$|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> Model:
    """Load a model from a directory in Hugging Face's format, in eval mode.

    On the CPU, a tensor that already has `dtype` stays in the file: the parameter is a copy-on-write view of
    the memory map. So loading takes no time, pages are read when they are used, and training never writes to
    the file. Replacing the file, as `save_model` does, is safe while the model is in use; overwriting it in
    place is not.

    Args:
        name: a directory, or the name of a model on the hub (see `resolve_directory`). From a directory with
            nothing but a LoRA adapter, the adapter's base model is loaded and the adapter merged into it.
        dtype: of the parameters; None keeps the file's, or the widest of them if it has several. Under
            float16, T5's `wo` stays float32, because its output overflows (`_keep_in_fp32_modules` in
            transformers).
        device: of the parameters.

    Raises:
        FileNotFoundError: no such directory, no config.json, no weights, or missing shards.
        ValueError: a damaged or unknown file, an unknown model_type, or weights that do not fit config.json;
            the message names the tensors and their shapes.
    """
    _require_floating_point(dtype)
    *adapters, directory = adapter_chain(name)
    model = outline(directory)
    path, tensors = read_weights(directory, WEIGHT_FILES)
    fitted = _fit(model, tensors, path)
    dtypes = dict.fromkeys(fitted, dtype) if dtype else _common_dtypes(fitted)
    parameters = {
        key: tensor.to(device=device, dtype=_stored_dtype(key, dtypes[key])) for key, tensor in fitted.items()
    }
    # One tensor per group of tied parameters is assigned; tie_weights makes the others the same object again.
    model.load_state_dict(parameters, strict=False, assign=True)
    model.tie_weights()
    if os.path.lexists(directory / "generation_config.json"):
        model.generation_config = read_json(directory / "generation_config.json")
    for adapter in reversed(adapters):
        load_adapter(model, adapter)
        model = merge_lora(model)
    return model.eval()


def load_as(cls: type[AnyModel], name: str | os.PathLike[str], **options: Any) -> AnyModel:
    """`load_model` for one class; raises ValueError if the directory holds a model of the other class."""
    model = load_model(name, **options)
    if not isinstance(model, cls):
        raise ValueError(
            f"{os.fspath(name)}: config.json describes a {type(model).__name__}, not a {cls.__name__}; "
            f"use {type(model).__name__}.from_pretrained or ftcore.load_model"
        )
    return model


def outline(name: str | os.PathLike[str]) -> Model:
    """`new_model` on the meta device: names and shapes, without memory."""
    return _on_meta(_config(*_read_config(resolve_directory(name, weights=False))))


def new_model(name: str | os.PathLike[str]) -> Model:
    """A model with random weights, in train mode, as described by a directory's config.json.

    Raises:
        FileNotFoundError: no such directory, or no config.json in it.
        ValueError: config.json is damaged, or see `model_from_config`.
    """
    return model_from_config(*_read_config(resolve_directory(name, weights=False)))


def model_from_config(values: dict[str, Any], where: str = "config.json") -> Model:
    """A model with random weights, in train mode, as described by the keys of a config.json.

    Raises:
        ValueError: an unknown model_type, a model larger than the memory, or see `Config.from_dict`; the
            message names `where`.
    """
    config = _config(values, where)
    size = sum(parameter.nbytes for parameter in _on_meta(config).parameters())
    try:
        torch.empty(size, dtype=torch.uint8, device="cpu")  # not used: the system refuses more than it has
    except RuntimeError:
        raise ValueError(
            f"{where}: a model of {size / 1e9:,.0f} GB, more than the memory here can hold: {config}"
        ) from None
    return _build(config)


def _read_config(directory: Path) -> tuple[dict[str, Any], str]:
    """The keys of config.json, and its path."""
    path = directory / "config.json"
    if not path.is_file():
        inside = " or ".join(str(found.parent) for found in sorted(directory.glob("*/config.json")))
        raise FileNotFoundError(
            f"{directory}: no config.json; expected a directory in Hugging Face's format"
            + (f", such as {inside}" if inside else "")
        )
    return read_json(path), str(path)


def _config(values: dict[str, Any], where: str) -> GPT2Config | T5Config:
    kind = values.get("model_type")
    if kind == "gpt2":
        return GPT2Config.from_dict(values, where)
    if isinstance(kind, str) and kind in T5_CONFIGS:
        return T5_CONFIGS[kind].from_dict(values, where)
    found = "missing" if kind is None else shown(kind)
    raise ValueError(f'{where}: model_type is {found}, expected "t5", "mt5", "umt5" or "gpt2"')


def _build(config: GPT2Config | T5Config) -> Model:
    return GPT2LMHeadModel(config) if isinstance(config, GPT2Config) else T5ForConditionalGeneration(config)


def _on_meta(config: GPT2Config | T5Config) -> Model:
    with torch.device("meta"), _SkipInitialization():
        return _build(config)


class _SkipInitialization(TorchFunctionMode):
    """Skip `normal_`: on the meta device it would import PyTorch's compiler (2 s)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) == "normal_":  # nn.init.normal_(tensor=...) or Tensor.normal_
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def _fit(model: Model, tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The file's tensors under the model's names, one per group of tied names.

    A file may hold any of the tied names. A head that differs from the embedding is untied, whatever
    config.json says: transformers' T5Config always says tied, even for the untied T5 v1.1.
    """
    expected = model.state_dict(keep_vars=True)
    found, wrong = _rename(tensors, expected)
    missing, unexpected = [], []
    for name, tensor in found.items():
        if name not in expected:
            unexpected.append(f"{name} {tuple(tensor.shape)}")
        else:
            wrong += misfit(name, tensor, expected[name].shape)

    fitted: dict[str, Tensor] = {}
    for names in _tied_names(expected):
        present = [name for name in names if name in found]
        if not present:
            missing.append(f"{names[0]} {tuple(expected[names[0]].shape)}")
            continue
        first = fitted[names[0]] = found[present[0]]
        for name in present[1:]:
            if found[name].dtype == first.dtype and torch.equal(found[name], first):
                continue
            if name == "lm_head.weight":
                model.config.tie_word_embeddings = False
                fitted[name] = found[name]
            else:
                wrong.append(f"{name} differs from {present[0]}, but the model has one parameter for both")

    if report := describe_mismatch(wrong, missing, unexpected):
        raise ValueError(
            f"{where} does not fit config.json ({report}); "
            f"both must be of the same {type(model).__name__}, with the sizes of config.json"
        )
    return fitted


def _rename(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors under the model's prefixes, and a line for each name that is there twice."""
    found: dict[str, Tensor] = {}
    twice = []
    wrapper = _WRAPPERS.match(min(tensors, default=""))
    prefix = wrapper[0] if wrapper and all(name.startswith(wrapper[0]) for name in tensors) else ""
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix)
        if _IGNORED_KEYS.search(name):
            continue
        if f"transformer.{name}" in expected:  # the names in GPT-2's first files lack this prefix
            name = f"transformer.{name}"
        if name in found:
            twice.append(f"{name} is there twice, with and without its prefix")
        found[name] = tensor
    return found, twice


def _tied_names(state: dict[str, Tensor]) -> Iterable[list[str]]:
    """The names of a `state_dict(keep_vars=True)`, grouped by parameter."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in state.items():
        groups[id(parameter)].append(name)
    return groups.values()


def _common_dtypes(tensors: dict[str, Tensor]) -> dict[str, torch.dtype]:
    """The widest dtype of all tensors, in which a model can compute; T5's `wo` may be wider than the rest."""
    widest = reduce(
        torch.promote_types, (t.dtype for name, t in tensors.items() if not name.endswith(".wo.weight"))
    )
    return {name: torch.promote_types(tensor.dtype, widest) for name, tensor in tensors.items()}


def _stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """float32 instead of float16 for T5's `wo`, whose output overflows; otherwise `dtype`."""
    return torch.float32 if dtype == torch.float16 and name.endswith(".wo.weight") else dtype


def _require_floating_point(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and is_computable(dtype)):
        raise ValueError(f"dtype is {dtype!r}, expected a floating-point type of 16 bits or more, or None")


def save_model(
    model: Model,
    directory: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write a directory that `load_model` and transformers open.

    All files are written before the first of them replaces an older one, so a full disk or a killed process
    leaves the old checkpoint. Only a process killed between two renames leaves old and new files; weights in
    a single file are then complete, the old or the new.

    Args:
        model: a GPT-2 or T5.
        directory: created if missing. Weights and generation_config.json of an older model in it are replaced
            or removed; other files, such as a tokenizer's, stay.
        dtype: in the file; None keeps each parameter's. T5's `wo` is never written in float16.
        max_shard_size: in bytes; larger weights are split into several files with an index.

    Raises:
        ValueError: `directory` is a file, an argument of the wrong type, or the model has LoRA layers.
        OSError: the disk is full or the directory cannot be written.
    """
    require_plain(model)
    _require_floating_point(dtype)
    directory = make_directory(directory, "the model")
    state = model.state_dict(keep_vars=True)
    names = [tied[0] for tied in _tied_names(state)]  # tied parameters are written once, as in transformers
    dtypes = {name: _stored_dtype(name, dtype or state[name].dtype) for name in names}
    sizes = {name: state[name].numel() * dtypes[name].itemsize for name in names}
    shards = split_into_shards(sizes, convert("max_shard_size", max_shard_size, float))

    writes: dict[Path, Callable[[Path], object]] = {}
    for file, shard in shards.items():
        tensors = {name: (state[name].detach(), dtypes[name]) for name in shard}
        writes[directory / file] = partial(write_tensors, tensors=tensors)
    config = model.config.to_dict()
    config["dtype"] = str(dtypes[names[0]]).removeprefix("torch.")
    config["tie_word_embeddings"] = "lm_head.weight" not in names
    writes[directory / "config.json"] = partial(write_json, values=config)
    if model.generation_config is not None:
        writes[directory / "generation_config.json"] = partial(write_json, values=model.generation_config)
    if len(shards) > 1:  # the index comes last: without it the shards are not read
        parameters = sum(state[name].numel() for name in names)
        index = {
            "metadata": {"total_parameters": parameters, "total_size": sum(sizes.values())},
            "weight_map": {name: file for file, shard in shards.items() for name in shard},
        }
        writes[directory / "model.safetensors.index.json"] = partial(write_json, values=index)
    write_together(writes)

    for path in directory.iterdir():
        ours = path.name in ("generation_config.json", *WEIGHT_FILES[:2]) or _SHARD.fullmatch(path.name)
        if ours and path not in writes:
            path.unlink()
