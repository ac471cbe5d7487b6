"""The two kinds of files that checkpoints and adapters are made of: JSON objects and tables of tensors."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: broken JSON, or JSON of another kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file as views of its memory map.

    Raises:
        ValueError: a file that is damaged, or a pickle of more than tensors, which is never loaded.
    """
    with open(file, "rb") as opened:
        start = opened.read(32)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull` in {file.parent}")
    try:
        if file.suffix != ".bin":
            return load_file(file)
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file}: damaged, or a pickle of more than tensors, which is never loaded because it could run "
            "anything; get the model.safetensors of this model"
        ) from None
    except Exception as error:  # broken bytes make a reader fail in any way
        raise ValueError(
            f"{file}: cannot be read, {file.stat().st_size} bytes long ({_one_line(error)}); "
            "it is incomplete or damaged: copy or download it again"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file}: expected a state dict, which is a table of tensor names and tensors")
    return tensors


def write_tensors(path: Path, tensors: dict[str, tuple[Tensor, torch.dtype]]) -> None:
    """A .safetensors file of tensors, each in the type beside it.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    plain = {name: tensor.to("cpu", dtype).contiguous() for name, (tensor, dtype) in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from None


def few(names: list[str], limit: int = 4) -> str:
    """The first of many names, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
