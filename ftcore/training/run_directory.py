"""The files of a run."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import directory_lock, read_json_lines, write_text
from ftcore.output import warn
from ftcore.training.metrics_log import MetricsLog
from ftcore.training.options import TrainOptions


class RunDirectory:
    """The paths of a run's files."""

    def __init__(self, path: Path):
        self.path = path
        # Checkpoints with tokenizer, readable by ftcore and transformers.
        self.best = path / "best"
        self.last = path / "last"
        self.checkpoints = path / "checkpoints"  # every --save-every steps: step-000500, step-001000 ...
        # For --resume; with fsdp, sharded-000500/ beside it.
        self.state = path / "state" / "training_state.pt"
        self.config = path / "train_config.json"  # the options of the run
        self.metrics = path / "metrics.jsonl"
        self.predictions = path / "predictions.jsonl"  # answers of the weights at best/ in the validation
        self.non_finite = path / "non_finite.json"  # the batch whose loss or gradient was not finite
        self.report = path / "report.html"
        self.picture = path / "loss.png"
        self.tensorboard = path / "tensorboard"
        self.metrics_log = MetricsLog(self.metrics, self.tensorboard)
        self._lock = ExitStack()

    def open(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Create the directory of a new run, or take that of a run to resume.

        It is locked until `close` or the end of the process.

        Raises:
            ValueError: the directory already holds a run, or holds something else; there is no run to resume;
                another process is at work on it.
        """
        may_use = self.require_resumable if resume else partial(self.require_free, overwrite=overwrite)
        self._lock.enter_context(claim(self.path, may_use))
        if not resume and self.config.exists():
            self._remove_files()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def require_free(self, *, overwrite: bool) -> None:
        """Raise the ValueError of `open` if a new run cannot be created here."""
        require_free(self.path, "run", self.config.exists(), may_replace=overwrite)

    def require_resumable(self) -> None:
        """Raise ValueError if there is no run, or if it was stopped before its first save."""
        if not self.config.exists():
            raise ValueError(f"{self.path} holds no run to resume (no {self.config.name})")
        if not self.state.exists():
            raise ValueError(
                f"{self.path} was stopped before its first save: start it again with `overwrite`"
            )

    def step_checkpoint(self, step: int) -> Path:
        """The checkpoint that --save-every makes at a step."""
        return self.checkpoints / f"step-{step:06d}"

    def prune_checkpoints(self, keep: int | None) -> None:
        """Remove all but the newest `keep` step checkpoints; None keeps all. best/ and last/ always stay."""
        if keep is None:
            return
        steps = sorted(self.checkpoints.glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))
        for old in steps[:-keep]:
            old.rename(_hidden(old))  # first, so that a kill leaves no partial checkpoint under its name
        for hidden in self.checkpoints.glob(".step-*"):
            shutil.rmtree(hidden)

    def save_predictions(self, predictions: Sequence[dict[str, Any]]) -> None:
        """Write predictions.jsonl, a line for each answer."""
        write_text(
            self.predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        )

    def read_predictions(self) -> list[dict[str, Any]]:
        """The lines; other ones, which `save_predictions` has not written, are skipped with a warning."""
        return read_json_lines(self.predictions, warn, _is_prediction)

    def save_options(self, options: TrainOptions) -> None:
        """Save the options for --resume, and for --config of another run."""
        per_start = ("resume", "overwrite", "parallel")  # of this start of the command, not of the run
        values = {key: value for key, value in asdict(options).items() if key not in per_start}
        write_text(self.config, json.dumps(values, indent=2) + "\n")

    def remove_checkpoints(self) -> None:
        """Remove all weights and the resume state; the log and the options stay."""
        checkpoints = (self.best, self.last, self.checkpoints)
        for directory in (*checkpoints, *map(_hidden, checkpoints), self.state.parent):
            if directory.exists():
                shutil.rmtree(directory)

    def _remove_files(self) -> None:
        """Remove what a run writes and nothing else."""
        self.remove_checkpoints()
        if self.tensorboard.exists():
            shutil.rmtree(self.tensorboard)
        # train_config.json last: it marks the directory as a run.
        files = (self.metrics, self.predictions, self.non_finite, self.picture, self.report)
        for file in (*files, self.config):
            file.unlink(missing_ok=True)


def new_path(parent: Path) -> Path:
    """Create a directory named after the current time."""
    path = parent / (name := datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    for attempt in count(1):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = parent / f"{name}_{attempt}"
    return path


@contextmanager
def claim(directory: Path, may_use: Callable[[], object]) -> Iterator[None]:
    """Create a directory if it is missing, and hold its lock.

    Args:
        may_use: raises if the directory may not be used. Called before anything is changed, and again under
            the lock, since another process may have used it in between.
    """
    may_use()
    directory.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory, warn):
        may_use()
        yield


def require_free(directory: Path, kind: str, is_held: bool, *, may_replace: bool) -> None:
    """Raise ValueError unless a new run, or another `kind`, may be created here. Hidden files do not matter.

    Args:
        is_held: one is here already.
    """
    if is_held:
        if not may_replace:
            raise ValueError(
                f"{directory} already holds a {kind}: `resume` continues it, `overwrite` replaces it"
            )
    elif directory.exists() and (not directory.is_dir() or any(directory.glob("[!.]*"))):
        raise ValueError(f"{directory} exists and holds no {kind}: choose another `output`")


def _is_prediction(row: dict[str, Any]) -> bool:
    gold, scores = row.get("references"), [row.get("exact_match"), row.get("f1")]
    texts = [row.get("source"), row.get("prediction"), *(gold if isinstance(gold, list) else [None])]
    return (
        type(row.get("step")) is int
        and all(isinstance(text, str) for text in texts)
        and all(type(score) in (int, float) for score in scores)
    )


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yield the path to write a directory's files to; a new directory is renamed into place at the end.

    An existing directory is yielded itself: its files are replaced one by one, each atomically.
    """
    if directory.exists():
        yield directory
    else:
        yield _hidden(directory)
        _hidden(directory).rename(directory)


def _hidden(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.part")
