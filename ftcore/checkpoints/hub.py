"""Resolve a model's name: a local directory, or a snapshot from the Hugging Face hub (extra `hub`)."""

import os
import re
from pathlib import Path

# The files that are downloaded; pickled weights only where there are no safetensors.
TOKENIZER_FILES = (
    *("tokenizer.json", "spiece.model", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
SMALL_FILES = (*TOKENIZER_FILES, "config.json", "adapter_config.json", "generation_config.json", "task.json")
SAFETENSORS = (
    *("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    "adapter_model.safetensors",
)
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin", "adapter_model.bin")

_HUB_NAME = re.compile(r"\w[\w.-]{,95}(/\w[\w.-]{,95})?")


def resolve_directory(name: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """The directory of a model's files: `name` itself if it is a directory, else a snapshot from the hub.

    Args:
        name: a directory, or a hub name such as "gpt2" or "google-t5/t5-small", which needs the extra `hub`.
        weights: False downloads only the configuration and the tokenizer.

    Raises:
        FileNotFoundError: no such directory, and no snapshot from the hub.
        ValueError: `name` is a file.
    """
    path = Path(os.path.expanduser(name))  # the functions of os.path accept names that Path's methods do not
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise ValueError(f"{path}: a file, expected its directory")
    if not _HUB_NAME.fullmatch(os.fspath(name)):
        raise FileNotFoundError(f"{str(path)!r}: no such directory, and not a name on the Hugging Face hub")
    return _download(os.fspath(name), weights)


def _download(name: str, weights: bool) -> Path:
    """Download a snapshot from the hub."""
    by_hand = "put config.json, model.safetensors and the tokenizer's files into a directory and pass that"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{name}: no such directory; if it is a name on the Hugging Face hub, "
            f"`pip install huggingface_hub` to download it, or {by_hand}"
        ) from None
    wanted = SMALL_FILES + SAFETENSORS if weights else SMALL_FILES
    try:
        directory = Path(snapshot_download(name, allow_patterns=list(wanted)))
        if weights and not any(directory.glob("*model*.safetensors")):
            snapshot_download(name, allow_patterns=list(PICKLED))
    except Exception as error:  # huggingface_hub and its HTTP client raise many unrelated types
        reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        raise FileNotFoundError(
            f"{name}: no such directory, and the download from the Hugging Face hub failed ({reason}); "
            f"check the name and the connection, or {by_hand}"
        ) from error
    return directory
