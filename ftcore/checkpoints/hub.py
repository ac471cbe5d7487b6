"""Where a model's files lie: in a directory, or on the Hugging Face hub (with the extra `hub`)."""

import os
import re
from pathlib import Path

# What is needed beside the weights.
SMALL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve_directory(name: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """Where the files of a model lie: `name` itself if it is a directory, else the hub's copy of that name.

    Args:
        name: a directory, or a hub name such as "gpt2" or "google-t5/t5-small", which needs the extra `hub`.
        weights: with False only the configuration and the tokenizer are downloaded.

    Raises:
        FileNotFoundError: no such directory, and nothing that the hub gives us; says what to do.
        ValueError: `name` is a file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path}: a file, expected the directory that it lies in")
    if not _HUB_NAME.fullmatch(os.fspath(name)):
        raise FileNotFoundError(f"{path}: no such directory, and no name on the Hugging Face hub either")
    return _download(os.fspath(name), weights)


def _download(name: str, weights: bool) -> Path:
    """A snapshot of a model on the hub. Pickled weights are fetched only where there are no safetensors."""
    by_hand = "put config.json, model.safetensors and the tokenizer's files into a directory and pass that"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{name}: no such directory; if it is a name on the Hugging Face hub, "
            f"`pip install ftcore[hub]` to download it, or {by_hand}"
        ) from None
    safetensors = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
    pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
    adapter = ["adapter_model.safetensors", "adapter_model.bin"]  # LoRA's, see adapter.py
    try:
        wanted = [*SMALL_FILES, *safetensors, adapter[0]] if weights else [*SMALL_FILES]
        directory = Path(snapshot_download(name, allow_patterns=wanted))
        if weights and not any(directory.glob("*model*.safetensors")):
            snapshot_download(name, allow_patterns=[*pickled, adapter[1]])
    except Exception as error:  # a network's and a library's dozen errors, which all mean: no files
        reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        raise FileNotFoundError(
            f"{name}: no such directory, and the Hugging Face hub does not give it ({reason}); "
            f"check the name and the connection, or {by_hand}"
        ) from error
    return directory
