"""Weight files: .safetensors, and the .bin files of older checkpoints."""

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from reprlib import repr as shown
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftcore.checkpoints.files import describe_format, read_json
from ftcore.output import few, one_line, printable

# Of what describes the tensors of a file: enough for 10,000 tensors, and read in a second.
MAX_HEADER = 2**21  # bytes
MAX_OPCODES = 500_000  # of a pickle

# All that the pickle of a state dict refers to. Not sparse, quantized, nested or meta tensors and subclasses.
_PLAIN = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor(_v2)?|parameter)"
)


def read_weights(directory: Path, names: Sequence[str]) -> tuple[Path, dict[str, Tensor]]:
    """The first of these files that exists, and its tensors; an index (.json) stands for its shards.

    Raises:
        FileNotFoundError: none of the files exists, or shards are missing.
        ValueError: see `read_tensors`.
    """
    # A link to a file that is gone is an error: the next name could be another version of the weights.
    path = next((directory / name for name in names if os.path.lexists(directory / name)), None)
    if path is None:
        raise FileNotFoundError(f"{directory}: no weights; expected one of {', '.join(names)}")
    tensors: dict[str, Tensor] = {}
    for file in _shards(path) if path.suffix == ".json" else [path]:
        shard = read_tensors(file)
        if twice := sorted(tensors.keys() & shard):
            raise ValueError(f"{file}: {printable(few(twice))} is in another shard too")
        tensors |= shard
    return path, tensors


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index}: weight_map does not map tensor names to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if os.path.basename(name) != name:
            raise ValueError(
                f"{index}: {shown(name)} is a path, expected the name of a file beside the index"
            )
    present = set(os.listdir(index.parent))
    missing = [name for name in names if name not in present]
    if missing:
        raise FileNotFoundError(
            f"{index}: {len(missing)} of {len(names)} shards are missing: {printable(few(missing))}"
        )
    return [index.parent / name for name in names]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file, as views of its memory map.

    Raises:
        ValueError: a damaged file, or a pickle of anything but tensors, which is never loaded.
    """
    with open(file, "rb") as opened:
        start = opened.read(64)
    try:
        if file.suffix == ".bin":
            tensors = load_pickle(file, is_zip=start.startswith(b"PK"))
        elif (header := int.from_bytes(start[:8], "little")) > MAX_HEADER:
            raise ValueError(f"a header of {header} bytes, expected at most {MAX_HEADER}")
        else:
            tensors = load_file(file)
    except Exception as error:  # damaged files raise many unrelated types
        if (description := describe_format(start)) and not start.startswith(b"PK"):
            raise ValueError(f"{file}: {description}") from None
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{file}: damaged, or a pickle of more than plain tensors, which is never loaded because it "
                "could run arbitrary code; use the model.safetensors of this model"
            ) from None
        raise ValueError(
            f"{file}: cannot be read, {file.stat().st_size} bytes long "
            f"({type(error).__name__}: {one_line(error)}); "
            "it is incomplete or damaged: copy or download it again"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise ValueError(f"{file}: expected a state dict: tensors by name")
    for name, tensor in tensors.items():  # a few bytes, repeated, could be a tensor of any size
        if tensor.nbytes > min(tensor.untyped_storage().nbytes(), file.stat().st_size):
            raise ValueError(f"{file}: {printable(name)} has elements that share memory; save a copy of it")
    return tensors


def load_pickle(file: Path, *, is_zip: bool = True) -> Any:
    """`torch.load` of plain tensors, in containers, after a look at the pickles.

    A pickle of a few bytes can take any time and memory, which `weights_only` does not prevent. Zip archives,
    all files since PyTorch 1.6, are memory-mapped.

    Raises:
        ValueError: what it holds is no such pickle; torch and Python raise many other types.
    """
    if is_zip:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{record.filename} is compressed, which torch.save never does")
                if record.filename.endswith(".pkl"):
                    with archive.open(record) as opened:
                        _check_pickle(BytesIO(opened.read(MAX_HEADER)))
    else:
        with open(file, "rb") as opened:
            pickles = BytesIO(opened.read(MAX_HEADER))
        for _ in ("magic number", "protocol", "byte order", "tensors", "names of the storages"):
            _check_pickle(pickles)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_pickle(file: IO[bytes]) -> None:
    """Raise pickle.UnpicklingError for a pickle of more than plain tensors."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        is_plain = opcode.name != "GLOBAL" or _PLAIN.fullmatch(str(argument))
        if not is_plain or opcode.name == "STACK_GLOBAL" or count == MAX_OPCODES:
            raise pickle.UnpicklingError("a pickle of more than plain tensors")


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


def is_computable(dtype: torch.dtype) -> bool:
    """Whether a model can compute in a type: the floating-point types of 16 bits or more."""
    return dtype.is_floating_point and dtype.itemsize >= 2


def misfit(name: str, tensor: Tensor, shape: Sequence[int]) -> list[str]:
    """A line if a tensor is not one of floating-point numbers in this shape, else none."""
    if tuple(tensor.shape) != tuple(shape):
        return [f"{name} is {tuple(tensor.shape)}, expected {tuple(shape)}"]
    if not is_computable(tensor.dtype):
        return [f"{name} is {tensor.dtype}, expected a floating-point type of 16 bits or more"]
    return []


def describe_mismatch(wrong: list[str], missing: list[str], unexpected: list[str]) -> str:
    """Tensors that do not fit a model, in one line; empty if all fit."""
    kinds = {"wrong": wrong, "missing": missing, "unexpected": unexpected}
    return printable("; ".join(f"{kind}: {few(names)}" for kind, names in kinds.items() if names))
