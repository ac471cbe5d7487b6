"""LoRA layers <-> an adapter directory in the format of PEFT, Hugging Face's library.

    adapter_config.json          r, alpha, dropout, names of the layers
    adapter_model.safetensors    A and B of each layer

PEFT opens what is written here, and vice versa.
"""

import math
import os
from functools import partial
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from torch import Tensor

from ftcore.checkpoints.files import make_directory, read_json, write_json, write_together
from ftcore.checkpoints.hub import resolve_directory
from ftcore.checkpoints.tensors import describe_mismatch, misfit, read_weights, write_tensors
from ftcore.lora.lora import add_lora, features, linear_layers, lora_layers, require_plain
from ftcore.models import Model
from ftcore.models.config import convert
from ftcore.models.gpt2 import GPT2LMHeadModel
from ftcore.output import printable

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # in order of preference

_PREFIX = "base_model.model."  # from the two wrappers that PEFT puts around a model

# Keys that do not make an adapter more than plain LoRA: those read below, its origin, its initialization, and
# details of methods that are refused by another key.
_HARMLESS = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "peft_version", "auto_mapping"}
_HARMLESS |= {"base_model_name_or_path", "revision", "task_type", "inference_mode", "runtime_config"}
_HARMLESS |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
_HARMLESS |= {"megatron_core", "qalora_group_size", "ensure_weight_tying"}
# Known without these keys: the layers from the tensors' names, the storage order from the layer's class.
_HARMLESS |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}


def save_adapter(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    base_model: str | os.PathLike[str] | None = None,
) -> None:
    """Write the LoRA layers of a model, for `load_adapter` and PEFT. Atomic, see files.py.

    Args:
        model: with LoRA layers, see `add_lora`.
        directory: created if missing; other files in it stay.
        base_model: directory or hub name of the model without LoRA, so that the adapter can be opened alone.

    Raises:
        ValueError: the model has no LoRA layers, or `directory` is a file.
        OSError: the disk is full or the directory cannot be written.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no LoRA layers: add_lora makes them; save_model saves a whole model")
    directory = make_directory(directory, "the adapter")
    layer = next(iter(layers.values()))  # add_lora gives all the same settings
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": None if base_model is None else os.fspath(base_model),
        "r": layer.rank,
        "lora_alpha": layer.alpha,
        "lora_dropout": layer.lora_dropout.p,
        "target_modules": list(layers),
        "fan_in_fan_out": isinstance(model, GPT2LMHeadModel),  # Conv1D's weights are (in, out)
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {
        _PREFIX + name: (parameter.detach(), parameter.dtype)
        for name, parameter in model.named_parameters()
        if name.endswith((".lora_A.weight", ".lora_B.weight"))
    }
    write_together(
        {
            directory / WEIGHT_FILES[0]: partial(write_tensors, tensors=tensors),
            directory / CONFIG_FILE: partial(write_json, values=config),
        }
    )


def load_adapter(model: Model, directory: str | os.PathLike[str]) -> None:
    """Add the trainable LoRA layers of an adapter in PEFT's format to its base model.

    Args:
        model: the model that the adapter was trained on; changed in place, unchanged on failure.
        directory: holds adapter_config.json and adapter_model.safetensors (or .bin).

    Raises:
        FileNotFoundError: no such directory, or a file is missing in it.
        ValueError: a damaged file, a setting beyond plain LoRA, tensors that do not fit the model, or a model
            with LoRA layers.
    """
    require_plain(model)
    directory = resolve_directory(directory)
    settings = _read_settings(directory / CONFIG_FILE)
    tensors = _read_matrices(directory, model, settings["rank"])
    plain = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    names = [name.removesuffix(".lora_A.weight") for name in plain if name.endswith(".lora_A.weight")]
    try:
        add_lora(model, **settings, targets=names)
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG_FILE}: {error}") from None
    model.load_state_dict(plain, strict=False)


def adapter_chain(name: str | os.PathLike[str], *, weights: bool = True) -> list[Path]:
    """The directories of a model: its adapters, the last trained first, then the base model.

    A directory with a config.json is a base model, even if it holds an adapter too. A base model that is not
    found under its recorded path is also looked for next to the adapter, since both may have been moved
    together.

    Args:
        name, weights: see `resolve_directory`.

    Raises:
        FileNotFoundError: no such directory, or no such base model; the message names the adapter.
        ValueError: an adapter_config.json is damaged, names no base model, or leads back to itself.
    """
    chain = [resolve_directory(name, weights=weights)]
    while (path := chain[-1] / CONFIG_FILE).is_file() and not (chain[-1] / "config.json").is_file():
        base = read_json(path).get("base_model_name_or_path")
        where = f"{path}: base_model_name_or_path is {shown(base)}"
        if not isinstance(base, str) or not 0 < len(base) < 4096:
            raise ValueError(
                f"{where}, expected the directory or hub name of the model that the adapter was trained on; "
                "load that yourself, and call load_adapter"
            )
        sibling = path.parent.parent / Path(base).name
        try:
            is_moved = os.path.isfile(sibling / "config.json") and not os.path.exists(base)
            directory = resolve_directory(sibling if is_moved else base, weights=weights)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
        if not any((directory / name).is_file() for name in (CONFIG_FILE, "config.json")):
            raise FileNotFoundError(f"{where}, a directory without a model or an adapter")
        if any(directory.samefile(adapter) for adapter in chain):
            raise ValueError(f"{where}, which leads back to this adapter; expected its base model")
        chain.append(directory)
    return chain


def _read_settings(path: Path) -> dict[str, Any]:
    """The arguments of `add_lora` from adapter_config.json; refuses everything beyond plain LoRA."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: no {path.name}; expected an adapter in PEFT's format")
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise ValueError(f'{path}: peft_type is {shown(values.get("peft_type"))}, expected "LORA"')
    for key, value in values.items():
        if not _is_plain(key, value):
            raise ValueError(
                f"{path}: {printable(key)} is {shown(value)}, which is more than plain LoRA; merge this "
                "adapter with peft (merge_and_unload), save the whole model and load that"
            )
    try:
        rank = convert("r", values.get("r"), int)
        alpha = convert("lora_alpha", values.get("lora_alpha"), float)
        dropout = convert("lora_dropout", values.get("lora_dropout"), float)
        if convert("use_rslora", values.get("use_rslora"), bool | None) and rank > 0:
            alpha *= math.sqrt(rank)  # the update is scaled by alpha / sqrt(r) (Kalajdzievski 2023)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {"rank": rank, "alpha": alpha, "dropout": dropout}


def _is_plain(key: str, value: Any) -> bool:
    """Whether a setting, possibly of a newer PEFT, keeps the computation of lora.py."""
    match key:
        case "bias":
            return value == "none"
        case "init_lora_weights":  # PiSSA, LoftQ and others change the frozen matrices
            return value in (True, False, "gaussian", "eva", "orthogonal")
        case _:
            return key in _HARMLESS or not value


def _read_matrices(directory: Path, model: Model, rank: int) -> dict[str, Tensor]:
    """A and B of each layer under their names in the file; raises ValueError for any other tensor."""
    file, tensors = read_weights(directory, WEIGHT_FILES)
    expected: dict[str, tuple[int, int]] = {}
    for name, layer in linear_layers(model).items():
        in_features, out_features = features(layer)
        a, b = f"{_PREFIX}{name}.lora_A.weight", f"{_PREFIX}{name}.lora_B.weight"
        if a in tensors or b in tensors:
            expected |= {a: (rank, in_features), b: (out_features, rank)}
    report = describe_mismatch(
        wrong=[
            line
            for name, shape in expected.items()
            if name in tensors
            for line in misfit(name, tensors[name], shape)
        ],
        missing=[name for name in expected if name not in tensors],
        unexpected=[name for name in tensors if name not in expected],
    )
    if report or not expected:
        raise ValueError(
            f"{file} does not fit ({report or 'it is empty'}); expected A and B of layers of this "
            f"{type(model).__name__}, with r = {rank} as in {CONFIG_FILE}"
        )
    return tensors
