"""The state of a run, from which it resumes bit for bit.

Everything that a resumed run depends on is one file, written atomically, so that a kill at any time leaves a
consistent state. `last/` has the same weights for users; resuming never reads it.

Under FSDP weights and moments are in a directory that the file names (sharded.py). It is written before the
file, and removed once a later file names another.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftcore import __version__
from ftcore.checkpoints.files import write_atomically
from ftcore.checkpoints.tensors import load_pickle
from ftcore.cli import check_options, check_resumed
from ftcore.output import one_line, warn
from ftcore.training.distributed import all_gather, is_sharded, on_main, rank, sync_errors, world_size
from ftcore.training.options import GOAL, TrainOptions
from ftcore.training.run_files import data_files

if TYPE_CHECKING:
    from ftcore.training.run import Progress, Run

_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adafactor)  # those of make_optimizer
_PLAIN = ("options", "progress", "loader", "config", "fingerprints", "versions")  # dicts without tensors
_TYPES = dict.fromkeys((*_PLAIN, "optimizer"), dict) | {"random_of_others": list}  # of a state's parts


def save_state(run: "Run") -> None:
    """Write everything that `load_state` reads. A collective."""
    path, model, optimizer = run.directory.state, run.model, run.optimizer
    random, *random_of_others = all_gather(random_state())
    state = {
        "scaler": run.scaler.state_dict(),
        "loader": run.train_loader.state_dict(),
        "random": random,
        "random_of_others": random_of_others,  # ranks 1, 2, ...
        "options": asdict(run.options),
        "config": model.config.to_dict(),
        "fingerprints": run.fingerprints,
        "versions": versions(),
        "optimizer_class": type(optimizer).__name__,
        "progress": asdict(run.progress),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    directory: str | None = None
    if is_sharded(model):
        from ftcore.training.sharded import save_sharded  # this part of torch takes a second to import

        directory = save_sharded(path, state, model, optimizer)
    else:
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        on_main(lambda: write_atomically(path, lambda temporary: torch.save(state, temporary)))
    on_main(lambda: _remove_shards(path.parent, keep=directory))


def load_state(run: "Run") -> tuple["Progress", dict[str, Any]]:
    """Restore a run; returns its saved progress and the options of the saved run. A collective.

    Raises:
        ValueError: the file is damaged, or options, data, model or number of processes differ from the saved
            run's in a way that would change its results.
    """
    path, model, optimizer = run.directory.state, run.model, run.optimizer
    with sync_errors():
        state = read_state(path)
        _require_same_options(state, run)
        _require_same_data(state, run)
        _require_same_model(state, run)
        _require_same_optimizer(state, run)
        _resume_in_data(state, run)
        _warn_of_other_versions(state, run)
    is_one_file = "shards" not in state and not is_sharded(model)
    if not is_one_file:
        from ftcore.training.sharded import load_sharded

        load_sharded(path, state, model, optimizer)
    with sync_errors(), _refuse_damage(path):
        if is_one_file:
            model.load_state_dict(state["model"])
            if type(optimizer) in _OPTIMIZERS:  # groups follow from the options; torch may have added keys
                state["optimizer"]["param_groups"] = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(state["optimizer"])
            _require_moments(optimizer)
        run.scaler.load_state_dict(state["scaler"])
        of_ranks = [state["random"], *state["random_of_others"]]
        if len(of_ranks) == world_size():  # otherwise the model has no dropout, see _require_same_model
            set_random_state(of_ranks[rank()])
        progress = replace(run.progress, **state["progress"])
        check_options(progress)
    return progress, asdict(TrainOptions()) | state["options"]


def saved_step(path: Path) -> int | None:
    """The step that the saved run would resume from; None before the first save."""
    return read_state(path)["progress"]["step"] if path.exists() else None


def read_state(path: Path) -> dict[str, Any]:
    """The state, as far as it can be checked without the run. Raises ValueError if it is damaged."""
    with _refuse_damage(path):
        saved: Any = load_pickle(path)  # refuses compressed records, which the next line would decompress
        with zipfile.ZipFile(path) as archive:
            if record := archive.testzip():
                raise ValueError(f"wrong checksum of {record}")
        # Older versions did not save these.
        state = {"config": {}, "versions": {}, "random_of_others": []} | saved
        state.setdefault("fingerprints", {"train": state.get("train_sha256")})
        weights = {"shards": str} if "shards" in state else {"model": dict}
        for name, kind in (_TYPES | weights).items():
            if not isinstance(state.get(name), kind):
                raise ValueError(f"{name} is {shown(state.get(name))}")
        json.dumps([state[name] for name in _PLAIN])  # no tensors
    return state


@contextmanager
def _refuse_damage(path: Path) -> Iterator[None]:
    """Raise any error of the block as a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # of many types
        raise ValueError(f"{path}: damaged, the run cannot be resumed ({one_line(error)})") from None


def _require_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for moments of other shapes, which AdamW's fused step would read out of bounds."""
    for weight, moments in optimizer.state.items() if isinstance(optimizer, torch.optim.AdamW) else ():
        shapes = {moments["exp_avg"].shape, moments["exp_avg_sq"].shape, weight.shape}
        if len(shapes) > 1 or moments["step"].numel() != 1:
            raise ValueError("a moment has another shape than its weight")


def _remove_shards(parent: Path, *, keep: str | None) -> None:
    """Remove the directories of older states and of saves that were killed."""
    for directory in parent.glob("sharded-*"):
        if directory.name != keep:
            shutil.rmtree(directory)


def sha256(file: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(file).open("rb") as handle:
        while chunk := handle.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# What must be the same. Fields that an older version did not save are not checked.


def _require_same_options(state: Mapping[str, Any], run: "Run") -> None:
    # States from before --fast existed were trained with these layers, unless they were compiled.
    before_fast = {"fast": not state["options"].get("compile", False)}
    saved = asdict(TrainOptions()) | before_fast | state["options"]
    one_file = {name: [saved[name]] for name in ("train", "valid") if isinstance(saved[name], str)}
    saved |= one_file | {name: getattr(run.options, name) for name in GOAL}  # one file: older states
    check_resumed(TrainOptions, saved, run.options, f"{run.directory.state}: the run", _from_weights(run))


def _from_weights(run: "Run") -> str:
    return f"; start a new run from its weights: --model {run.directory.last}"


def _require_same_data(state: Mapping[str, Any], run: "Run") -> None:
    complaints = {
        "train": f"the training file has changed since the run in {run.directory.path}{_from_weights(run)}",
        "valid": f"the validation file, which selected {run.directory.best}, has changed since",
    }
    now = run.fingerprints
    for name, files in data_files(run.options).items():
        saved = state["fingerprints"].get(name, now.get(name))
        if saved != now.get(name):
            pairs = zip(str(saved).split(), str(now.get(name)).split(), strict=False)
            changed = [file for file, (then, here) in zip(files, pairs, strict=False) if then != here]
            raise ValueError(f"{(changed or files)[0]}: {complaints[name]}")


def _require_same_model(state: Mapping[str, Any], run: "Run") -> None:
    model, directory = run.model, run.directory.path
    complaint = f"{run.options.model} is no longer the model of the run in {directory}"
    now = model.config.to_dict()
    for key in now:  # the same shapes do not mean the same computation
        saved = state["config"].get(key, now[key])
        if saved != now[key] and key not in model.config.extra:
            raise ValueError(f"{complaint}: {key} was {saved!r} in its config.json and is {now[key]!r}")
    weights = model.state_dict()
    saved_weights = state.get("model", weights)
    saved_shapes = {name: getattr(weight, "shape", None) for name, weight in saved_weights.items()}
    if saved_shapes != {name: weight.shape for name, weight in weights.items()}:
        raise ValueError(f"{complaint}: its weights have other shapes")

    has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    processes = 1 + len(state["random_of_others"])
    if has_dropout and processes != world_size():  # every rank has its own random state
        raise ValueError(
            f"{directory} was trained by {_processes(processes)}, it cannot continue with "
            f"{_processes(world_size())}: its dropout would draw other numbers (without dropout it could)"
        )


def _require_same_optimizer(state: Mapping[str, Any], run: "Run") -> None:
    now = type(run.optimizer).__name__
    saved = state.get("optimizer_class", now)
    if saved != now:
        raise ValueError(f"{run.directory.path} was trained with {saved}, it cannot continue with {now}")


def _resume_in_data(state: Mapping[str, Any], run: "Run") -> None:
    try:
        run.train_loader.load_state_dict(state["loader"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{run.directory.state}: {one_line(error)}") from None


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _warn_of_other_versions(state: Mapping[str, Any], run: "Run") -> None:
    directory = run.directory.path
    for package, now in versions().items():
        saved = state["versions"].get(package, now)
        if saved != now:  # an upgrade during a long run should not lose it
            warn(f"{directory} was saved by {package} {saved}, this is {now}: results may differ by rounding")


def versions() -> dict[str, str]:
    """Versions that rounding depends on."""
    return {"ftcore": __version__, "torch": str(torch.__version__)}


def random_state() -> dict[str, Any]:
    """State of the generators that dropout uses. The data order has its own, see loader.py."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
