"""A Hugging Face directory <-> a model: config.json, the weights, generation_config.json.

Reading copies nothing: the model is built without memory (on PyTorch's meta device) and its parameters become
views of the memory-mapped file. Writing never leaves half a file, see atomic.py.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ftcore.checkpoints.files import read_json, write_json, write_together
from ftcore.checkpoints.hub import resolve_directory
from ftcore.checkpoints.tensors import read_tensors, write_tensors
from ftcore.cli import few
from ftcore.lora.adapter import base_model, load_adapter
from ftcore.lora.lora import merge_lora, require_plain
from ftcore.models import Model
from ftcore.models.config import GPT2Config, MT5Config, T5Config, UMT5Config
from ftcore.models.gpt2 import GPT2LMHeadModel
from ftcore.models.t5 import T5ForConditionalGeneration

AnyModel = TypeVar("AnyModel")

# The files that hold weights, the preferred first: transformers looks for them in the same order.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# In published files, but weights of nothing: GPT-2's causal masks, and a table that T5's authors left behind.
_STRAY = re.compile(
    r"\.attn\.(masked_)?bias$|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


# ---------------------------------------------------------------------------------------------- reading


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> Model:
    """The model that a directory in Hugging Face's format holds, in eval mode.

    On the CPU, a tensor whose type is already `dtype` stays in the file: the parameter is a private
    (copy-on-write) view of the memory map, so loading takes no time, pages come in as they are used, and
    training writes to memory only. Replacing the file, as `save_model` does, is safe while the model lives;
    overwriting or cutting it in place is not.

    Args:
        name: a directory, or the name of a model on the hub (see `resolve_directory`). Where it holds nothing
            but a LoRA adapter, the base model that this names is loaded, and the adapter merged into it.
        dtype: the parameters' type; None keeps the file's. Under float16, T5's `wo` stays in float32,
            because its output overflows (as `_keep_in_fp32_modules` has it in transformers).
        device: where the parameters go.

    Raises:
        FileNotFoundError: no such directory, no config.json, no weights, or shards missing.
        ValueError: a file that is damaged or of another kind, an unknown model_type, or weights that do not
            fit config.json; the message names the tensors and their shapes.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, expected a floating-point type or None")
    directory = resolve_directory(name)
    if base := base_model(directory):
        model = load_model(base, dtype=dtype, device=device)
        load_adapter(model, directory)
        return merge_lora(model)
    with torch.device("meta"), _WithoutDrawing():
        model = _build(directory)
    where, tensors = _read_weights(directory)
    parameters = {
        key: tensor.to(device=device, dtype=_kept_dtype(key, dtype or tensor.dtype))
        for key, tensor in _fit(model, tensors, where).items()
    }
    # Of tied parameters only the first is there: it is assigned, and the others become the same object again.
    model.load_state_dict(parameters, strict=False, assign=True)
    model.tie_weights()
    if (directory / "generation_config.json").is_file():
        model.generation_config = read_json(directory / "generation_config.json")
    return model.eval()


def new_model(name: str | os.PathLike[str]) -> Model:
    """A model with random weights, in train mode, of the architecture in a directory's config.json.

    Raises:
        FileNotFoundError: no such directory, or no config.json in it.
        ValueError: config.json is damaged or names an unknown model_type.
    """
    return _build(resolve_directory(name, weights=False))


def load_as(cls: type[AnyModel], name: str | os.PathLike[str], **options: Any) -> AnyModel:
    """`load_model` for those who know which family they want: the `from_pretrained` of the two classes.

    Raises:
        ValueError: the directory holds a model of the other family; and whatever `load_model` raises.
    """
    model = load_model(name, **options)
    if not isinstance(model, cls):
        raise ValueError(
            f"{os.fspath(name)}: config.json describes a {type(model).__name__}, not a {cls.__name__}; "
            f"use {type(model).__name__}.from_pretrained or ftcore.load_model"
        )
    return model


class _WithoutDrawing(TorchFunctionMode):
    """Skips `normal_`: the file has the values, and on meta PyTorch would load its compiler for it (2 s)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) == "normal_":  # nn.init's, which names its tensor, or Tensor's
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def _build(directory: Path) -> Model:
    """The model that config.json describes, not yet loaded."""
    path = directory / "config.json"
    if not path.is_file():
        inside = " or ".join(str(found.parent) for found in sorted(directory.glob("*/config.json")))
        raise FileNotFoundError(
            f"{directory}: no config.json; expected a directory in Hugging Face's format"
            + (f", such as {inside}" if inside else "")
        )
    return model_from_config(read_json(path), where=str(path))


def model_from_config(values: dict[str, Any], where: str = "config.json") -> Model:
    """A model with random weights, in train mode, of the architecture that a config.json's keys describe.

    Raises:
        ValueError: an unknown model_type, or whatever `Config.from_dict` raises; the message names `where`.
    """
    match values.get("model_type"):
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config.from_dict(values, where))
        case "t5":
            return T5ForConditionalGeneration(T5Config.from_dict(values, where))
        case "mt5":
            return T5ForConditionalGeneration(MT5Config.from_dict(values, where))
        case "umt5":
            return T5ForConditionalGeneration(UMT5Config.from_dict(values, where))
        case other:
            found = "missing" if other is None else repr(other)
            raise ValueError(f'{where}: model_type is {found}, expected "t5", "mt5", "umt5" or "gpt2"')


def _read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file (or index) of the directory's weights, and its tensors under the names that it gives them."""
    for path in (directory / name for name in WEIGHT_FILES):
        if path.is_file():
            break
    else:
        raise FileNotFoundError(f"{directory}: no weights; expected one of {', '.join(WEIGHT_FILES)}")
    tensors: dict[str, Tensor] = {}
    for file in _shards(path) if path.suffix == ".json" else [path]:
        tensors.update(read_tensors(file))
    return path, tensors


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index}: weight_map is no table of tensor names and files")
    shards = [index.parent / file for file in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing beside it: {few(missing)}"
        )
    return shards


def _fit(model: Model, tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The file's tensors under the model's names, one for each group of tied names.

    A file may hold any of the tied names. A head that differs from the embedding is kept apart, whatever
    config.json says about tying: transformers' T5Config always says true, of the untied T5 v1.1 too.
    """
    expected = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _STRAY.search(name):  # GPT-2's first files were of its body, whose names have no prefix
            found[f"transformer.{name}" if f"transformer.{name}" in expected else name] = tensor

    wrong, missing, unexpected = [], [], []
    for name, tensor in found.items():
        if name not in expected:
            unexpected.append(f"{name} {tuple(tensor.shape)}")
        elif tensor.shape != expected[name].shape:
            wrong.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        elif not tensor.is_floating_point():
            wrong.append(f"{name} is {tensor.dtype}, expected a floating-point type")

    fitted: dict[str, Tensor] = {}
    for names in _tied_names(expected):
        present = [name for name in names if name in found]
        if not present:
            missing.append(f"{names[0]} {tuple(expected[names[0]].shape)}")
            continue
        fitted[names[0]] = found[present[0]]
        for name in present[1:]:
            if _equal(found[name], found[present[0]]):
                continue
            if name == "lm_head.weight":
                model.config.tie_word_embeddings = False
                fitted[name] = found[name]
            elif found[name].shape == expected[name].shape:
                wrong.append(f"{name} differs from {present[0]}, but the model has one parameter for both")

    kinds = {"wrong": wrong, "missing": missing, "unexpected": unexpected}
    if any(kinds.values()):
        report = "; ".join(f"{kind}: {few(names)}" for kind, names in kinds.items() if names)
        raise ValueError(
            f"{where} does not fit config.json ({report}); "
            f"both must be of the same {type(model).__name__}, with the sizes of config.json"
        )
    return fitted


def _tied_names(state: dict[str, Tensor]) -> Iterable[list[str]]:
    """The names of a `state_dict(keep_vars=True)`, those of the same parameter together."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in state.items():
        groups[id(parameter)].append(name)
    return groups.values()


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _kept_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """T5's feed-forward output overflows float16: its last matrix stays in float32, in memory and on disk."""
    return torch.float32 if dtype == torch.float16 and name.endswith(".wo.weight") else dtype


# ---------------------------------------------------------------------------------------------- writing


def save_model(
    model: Model,
    directory: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write a directory that `load_model` and transformers open: the same weights, tied or not.

    All files are written completely before the first of them replaces an older one. So a full disk or a
    killed process leaves the directory as it was, unless it strikes between two renames; and since weights
    in one file replace older ones in a single step, those are then whole, the old or the new.

    Args:
        model: a GPT-2 or T5.
        directory: made if it is not there. Files of an older model in it that would be read are replaced
            or removed; others, such as a tokenizer's, stay.
        dtype: the type in the file; None keeps each parameter's. T5's `wo` is never written in float16.
        max_shard_size: bytes; weights that are larger are split into several files with an index.

    Raises:
        ValueError: `directory` is a file, `dtype` is no floating-point type, or the model has LoRA layers.
        OSError: the disk is full or the directory cannot be written.
    """
    require_plain(model)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, expected a floating-point type or None")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: a file, expected a directory to save the model in")
    directory.mkdir(parents=True, exist_ok=True)

    state = model.state_dict(keep_vars=True)
    names = [tied[0] for tied in _tied_names(state)]  # tied parameters are written once, as transformers does
    dtypes = {name: _kept_dtype(name, dtype or state[name].dtype) for name in names}
    sizes = {name: state[name].numel() * dtypes[name].itemsize for name in names}
    shards = _split(sizes, max_shard_size)

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
    if len(shards) > 1:  # the index comes last: it is what makes the shards count
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


def _split(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """File names and the tensors in each: in order, a new file where the next tensor would pass the limit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    total = len(shards)
    return {f"model-{n:05d}-of-{total:05d}.safetensors": shard for n, shard in enumerate(shards, start=1)}
