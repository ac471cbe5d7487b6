"""Saving a run so that it goes on as if nothing had happened.

Everything that a resumed run depends on is one file, so that whenever the process dies, the file is a
whole one of one moment. `last/` holds the same weights for people; resuming never reads it.

Where weights and optimizer are sharded over processes (sharded.py), their parts lie beside that file in a
directory, which it names: written before it, and removed when the next file has another.
"""

import hashlib
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftcore import __version__
from ftcore.checkpoints.files import write_atomically
from ftcore.cli import warn
from ftcore.data.loader import DataLoader
from ftcore.models import Model
from ftcore.training.distributed import OneProcess
from ftcore.training.options import TrainOptions


def save_state(
    path: Path,
    *,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    options: TrainOptions,
    fingerprints: dict[str, str],
    parallel: OneProcess,
    progress: dict[str, Any],
) -> None:
    """Write all that `load_state` reads back; all processes call it.

    Args:
        fingerprints: SHA-256 of the data's files, by the option that names them.
        progress: the caller's: numbers, strings, lists, dicts, and among them the `step`.
    """
    random, *random_of_others = parallel.gather(random_state())
    state = {
        "scaler": scaler.state_dict(),
        "loader": loader.state_dict(),
        "random": random,
        "random_of_others": random_of_others,  # processes; the first has the one above
        "options": asdict(options),
        "config": model.config.to_dict(),
        "fingerprints": fingerprints,
        "versions": versions(),
        "progress": progress,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if parallel.mode == "fsdp":
        from ftcore.training.sharded import save_beside  # its part of torch takes a second to import

        directory: str | None = save_beside(path, state, model, optimizer, parallel)
    else:
        directory = None
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        parallel.on_first(lambda: write_atomically(path, lambda beside: torch.save(state, beside)))
    parallel.on_first(lambda: _remove_shards(path.parent, but=directory))


def load_state(
    path: Path,
    *,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    options: TrainOptions,
    fingerprints: dict[str, str],
    parallel: OneProcess,
) -> dict[str, Any]:
    """Put everything back as it was saved and return the caller's `progress`; all processes call it.

    Raises:
        ValueError: the file is damaged, or this run has other options, data, model or processes than the
            saved one, so that going on would not give what an uninterrupted run gives.
    """
    with parallel.agreed():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            raise ValueError(f"{path}: damaged, the run cannot be resumed ({error})") from None
        _require_same_run(state, model, options, fingerprints, parallel, path)
        scaler.load_state_dict(state["scaler"])
        loader.load_state_dict(state["loader"])
    if parallel.mode == "fsdp" or "shards" in state:
        from ftcore.training.sharded import load_beside

        load_beside(path, state, model, optimizer)
    else:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    randoms = [state["random"], *state.get("random_of_others", [])]
    if parallel.count == len(randoms):  # else there is no dropout to draw for
        set_random_state(randoms[parallel.rank])
    return state["progress"]


def saved_step(path: Path) -> int | None:
    """The step that a run on this disk would go on from; None before its first save."""
    return torch.load(path, weights_only=True, mmap=True)["progress"]["step"] if path.exists() else None


def _remove_shards(parent: Path, *, but: str | None) -> None:
    """Remove the directories beside a state that it does not name: older ones, and what a kill has left."""
    for directory in parent.glob("sharded-*"):
        if directory.name != but:
            shutil.rmtree(directory)


def sha256(file: str) -> str:
    """The SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with Path(file).open("rb") as handle:  # a piece at a time: it may be larger than memory
        while piece := handle.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _require_same_run(
    state: dict[str, Any],
    model: Model,
    options: TrainOptions,
    fingerprints: dict[str, str],
    parallel: OneProcess,
    path: Path,
) -> None:
    """Of what an older version did not save nothing is known, and nothing required."""
    started_with = asdict(TrainOptions()) | state["options"]
    may_change = {field.name for field in fields(TrainOptions) if field.metadata["resumable"]}
    for name, saved in started_with.items():
        now = getattr(options, name)
        if name not in may_change and now != saved:
            with_that, with_this = (_in_words(name, value) for value in (saved, now))
            raise ValueError(f"{path}: the run was started {with_that}, it cannot go on {with_this}")
    run = path.parent.parent
    before = state.get("fingerprints") or {"train": state["train_sha256"]}
    if before["train"] != fingerprints["train"]:
        raise ValueError(f"{options.train}: the training file has changed since the run in {run}")
    if before.get("valid", fingerprints.get("valid")) != fingerprints.get("valid"):
        raise ValueError(
            f"{options.valid}: the validation file, on which {run / 'best'} was chosen, has changed since"
        )
    _require_same_model(state, model, f"{options.model} is no longer the model of the run in {run}")
    _require_same_dropout(1 + len(state.get("random_of_others", [])), model, parallel.count, run)
    for package, now in versions().items():
        saved = state.get("versions", {}).get(package, now)
        if saved != now:  # an upgrade in the middle of a long run is no reason to lose it
            warn(f"{run} was saved by {package} {saved}, this is {now}: the last digits may be others")


def _require_same_model(state: dict[str, Any], model: Model, complaint: str) -> None:
    """What is computed with the saved weights must be the same too, so that their shapes are not enough."""
    now = model.config.to_dict()
    for key in now:
        saved = state.get("config", now).get(key, now[key])
        if saved != now[key] and key not in model.config.extra:  # what is in there nothing computes with
            raise ValueError(f"{complaint}: {key} was {saved!r} in its config.json and is {now[key]!r}")
    weights = model.state_dict()
    shapes = {name: weight.shape for name, weight in weights.items()}
    if shapes != {name: weight.shape for name, weight in state.get("model", weights).items()}:
        raise ValueError(f"{complaint}: its weights have other shapes")


def _require_same_dropout(saved: int, model: Model, now: int, run: Path) -> None:
    """Each process draws numbers of its own for the rows that it has."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if drops and saved != now:
        raise ValueError(
            f"{run} was trained by {_processes(saved)}, it cannot go on with {_processes(now)}: its dropout "
            "would draw other numbers (without dropout it could)"
        )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def versions() -> dict[str, str]:
    """What the last digits depend on besides the machine."""
    return {"ftcore": __version__, "torch": str(torch.__version__)}


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
