"""Saving a run so that it goes on as if nothing had happened.

Everything that a resumed run depends on is one file, so that whenever the process dies, the file is a
whole one of one moment. `last/` holds the same weights for people; resuming never reads it.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftcore.data.loader import DataLoader
from ftcore.models.atomic import write_atomically
from ftcore.training.options import TrainOptions

# Options that a resumed run may change: they move neither the weights nor what counts as the best of them.
FREE_OPTIONS = {"output", "overwrite", "resume", "save_every", "keep", "log_every", "workers"}
FREE_OPTIONS |= {"eval_every", "eval_batch_size", "gradient_checkpointing"}


def save_state(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    options: TrainOptions,
    train_sha256: str,
    progress: dict[str, Any],
) -> None:
    """Write all that `load_state` reads back. `progress` is the caller's: numbers, strings, lists, dicts."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "loader": loader.state_dict(),
        "random": random_state(),
        "options": asdict(options),
        "train_sha256": train_sha256,
        "progress": progress,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda beside: torch.save(state, beside))


def load_state(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    options: TrainOptions,
    train_sha256: str,
) -> dict[str, Any]:
    """Put everything back as it was saved and return the caller's `progress`.

    Raises:
        ValueError: the file is damaged, or this run has other options, training data or model sizes than the
            saved one, so that going on would not give what an uninterrupted run gives.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise ValueError(f"{path}: damaged, the run cannot be resumed ({error})") from None
    _require_same_run(state, options, train_sha256, path)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError:
        raise ValueError(
            f"{path}: its weights do not fit {options.model}, which is no longer the model of this run"
        ) from None
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    loader.load_state_dict(state["loader"])
    set_random_state(state["random"])
    return state["progress"]


def sha256(file: str) -> str:
    """A fingerprint of a file's content."""
    digest = hashlib.sha256()
    with Path(file).open("rb") as handle:  # a piece at a time: it may be larger than memory
        while piece := handle.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _require_same_run(state: dict[str, Any], options: TrainOptions, train_sha256: str, path: Path) -> None:
    started_with = asdict(TrainOptions()) | state["options"]  # an older version knew fewer options
    for name, saved in started_with.items():
        now = getattr(options, name)
        if name not in FREE_OPTIONS and now != saved:
            before, after = (_in_words(name, value) for value in (saved, now))
            raise ValueError(f"{path}: the run was started {before}, it cannot go on {after}")
    if state["train_sha256"] != train_sha256:
        raise ValueError(
            f"{options.train}: the training file has changed since the run in {path.parent.parent}"
        )


def _in_words(option: str, value: Any) -> str:
    flag = "--" + option.replace("_", "-")
    if value is None or value is False:
        return f"without {flag}"
    values = value if isinstance(value, list) else [] if value is True else [value]
    return " ".join(["with", flag, *map(str, values)])


def random_state() -> dict[str, Any]:
    """The generators that dropout draws from. The order of the data has its own, see loader.py."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
