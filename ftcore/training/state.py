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
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftcore import __version__
from ftcore.checkpoints.files import write_atomically
from ftcore.checkpoints.tensors import load_pickle
from ftcore.cli import check_resumed
from ftcore.output import one_line, warn
from ftcore.training.distributed import all_gather, is_sharded, on_main, rank, sync_errors, world_size
from ftcore.training.options import GOAL, TrainOptions
from ftcore.training.run_files import data_files

if TYPE_CHECKING:
    from ftcore.training.run import Run

_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adafactor)  # those of make_optimizer


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


def load_state(run: "Run") -> tuple[dict[str, Any], dict[str, Any]]:
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
        _warn_of_other_versions(state, run)
        random = {"cpu": torch.get_rng_state()}
        here: dict[str, Any] = {
            "scaler": run.scaler.state_dict(),
            "loader": run.train_loader.state_dict(),
            "random": random,
            "random_of_others": [random] * len(state["random_of_others"]),
        }
        if "model" in state:
            here["model"] = model.state_dict()
            if type(optimizer) in _OPTIMIZERS:
                moments = _moments(optimizer)
                here["optimizer"] = {"state": {n: moments.get(n) for n in state["optimizer"]["state"]}}
        _require_kinds(state, here, path)
        run.scaler.load_state_dict(state["scaler"])
        try:
            run.train_loader.load_state_dict(state["loader"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if is_sharded(model) or "shards" in state:
        from ftcore.training.sharded import load_sharded

        load_sharded(path, state, model, optimizer)
    else:
        model.load_state_dict(state["model"])
        if type(optimizer) in _OPTIMIZERS:  # its groups follow from the options; torch may have added keys
            state["optimizer"] |= {"param_groups": optimizer.state_dict()["param_groups"]}
        try:
            optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # a user's optimizer, of other groups for example
            raise _damaged(path, error) from None
    of_ranks = [state["random"], *state["random_of_others"]]
    if len(of_ranks) == world_size():  # otherwise the model has no dropout, see _require_same_model
        with sync_errors():
            try:
                set_random_state(of_ranks[rank()])
            except Exception as error:
                raise _damaged(path, error) from None
    return state["progress"], asdict(TrainOptions()) | state["options"]


def saved_step(path: Path) -> int | None:
    """The step that the saved run would resume from; None before the first save."""
    return read_state(path)["progress"]["step"] if path.exists() else None


def read_state(path: Path) -> dict[str, Any]:
    """The state, as far as it can be checked without the run. Raises ValueError if it is damaged."""
    plain: dict[str, Any] = {"options": {}, "progress": {"step": 0}, "config": {}, "versions": {}}
    plain["fingerprints"] = {"train": ""}
    try:
        saved: Any = load_pickle(path)  # refuses compressed records, which the next line would decompress
        with zipfile.ZipFile(path) as archive:
            if record := archive.testzip():
                raise ValueError(f"wrong checksum of {record}")
        # Older versions did not save these.
        state = {"config": {}, "versions": {}, "random_of_others": []} | saved
        state.setdefault("fingerprints", {"train": state.get("train_sha256")})
        json.dumps([state[name] for name in plain])  # no tensors
    except Exception as error:  # of many types
        raise _damaged(path, error) from None
    weights: dict[str, Any] = {"shards": ""} if "shards" in state else {"model": {}}
    others = {"random_of_others": [], "optimizer": {"state": {}}}
    _require_kinds(state, plain | others | weights, path)
    return state


def _require_kinds(state: Mapping[str, Any], kinds: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError unless all parts of a state are of the same kind as those of another one."""
    for fault in _faults(state, kinds, ""):
        raise _damaged(path, fault)


def _faults(found: Any, expected: Any, name: str) -> Iterator[str]:
    """The parts of `found` that are missing or of another type, shape or length than in `expected`."""
    if isinstance(expected, Tensor):
        fits = isinstance(found, Tensor) and found.layout == torch.strided
        fits = fits and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    elif isinstance(expected, float | int):
        fits = isinstance(found, float | int)
    elif isinstance(expected, dict):
        fits = isinstance(found, dict)
        for key, value in expected.items() if fits else ():
            yield from _faults(found.get(key), value, f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        fits = type(found) is type(expected) and (not expected or len(found) == len(expected))
        for number, value in enumerate(expected if fits else ()):
            yield from _faults(found[number], value, f"{name}.{number}")
    else:
        fits = isinstance(found, str if isinstance(expected, str) else float | int | None)
    if not fits:
        yield f"{name.removeprefix('.')} is {shown(found)}"


def _moments(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """What the optimizer keeps of each parameter after a step, on the meta device."""
    all_parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in all_parameters]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    # In one group: a step makes the state of a group's parameters together.
    group = optimizer.param_groups[0] | {"params": parameters, "foreach": False, "fused": False}
    on_meta = type(optimizer)([group])  # type: ignore[call-arg]
    with suppress(RuntimeError):  # Adafactor's, which has made its state then: it reads the value of a tensor
        on_meta.step()
    return on_meta.state_dict()["state"]


def _damaged(path: Path, cause: object) -> ValueError:
    text = one_line(cause) if isinstance(cause, Exception) else cause
    return ValueError(f"{path}: damaged, the run cannot be resumed ({text})")


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
