"""Weight files: .safetensors, and the .bin files of older checkpoints."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftcore.checkpoints.files import read_json
from ftcore.cli import few, one_line


def read_weights(directory: Path, names: Sequence[str]) -> tuple[Path, dict[str, Tensor]]:
    """The first of these files that exists, and its tensors; an index (.json) stands for its shards.

    Raises:
        FileNotFoundError: none of the files exists, or shards are missing.
        ValueError: see `read_tensors`.
    """
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{directory}: no weights; expected one of {', '.join(names)}")
    tensors: dict[str, Tensor] = {}
    for file in _shards(path) if path.suffix == ".json" else [path]:
        tensors.update(read_tensors(file))
    return path, tensors


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index}: weight_map does not map tensor names to files")
    shards = [index.parent / file for file in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {few(missing)}"
        )
    return shards


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file, as views of its memory map.

    Raises:
        ValueError: a damaged file, or a pickle of anything but tensors, which is never loaded.
    """
    with open(file, "rb") as opened:
        start = opened.read(32)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull` in {file.parent}")
    try:
        if file.suffix != ".bin":
            return load_file(file)
        # Files from before PyTorch 1.6 are not zip archives and cannot be memory-mapped.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file}: damaged, or a pickle of more than tensors, which is never loaded because it could run "
            "arbitrary code; use the model.safetensors of this model"
        ) from None
    except Exception as error:  # damaged files raise many unrelated types
        raise ValueError(
            f"{file}: cannot be read, {file.stat().st_size} bytes long "
            f"({type(error).__name__}: {one_line(error)}); "
            "it is incomplete or damaged: copy or download it again"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file}: expected a state dict: tensors by name")
    return tensors


def write_tensors(path: Path, tensors: dict[str, tuple[Tensor, torch.dtype]]) -> None:
    """Write tensors to a .safetensors file, each in the given dtype; inside `write_atomically`."""
    plain = {name: tensor.to("cpu", dtype).contiguous() for name, (tensor, dtype) in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def split_into_shards(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """File names and the tensors in each: in order, with a new file wherever the limit would be exceeded."""
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


def describe_mismatch(wrong: list[str], missing: list[str], unexpected: list[str]) -> str:
    """Tensors that do not fit a model, in one line; empty if all fit."""
    kinds = {"wrong": wrong, "missing": missing, "unexpected": unexpected}
    return "; ".join(f"{kind}: {few(names)}" for kind, names in kinds.items() if names)
