"""The files of a run: where they lie, and how none of them is ever lost or half written."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import write_atomically
from ftcore.training.options import TrainOptions
from ftcore.training.tensorboard import Events


class RunDirectory:
    """A run's directory.

    best/ and last/    checkpoints with tokenizer, as ftcore and transformers read them
    checkpoints/       the same, every --save-every steps: step-000500, step-001000 ...
    state/             what --resume needs
    train_config.json  the options of the run
    metrics.jsonl      one JSON object a line
    tensorboard/       the same for TensorBoard
    predictions.jsonl  what the weights at best/ answered in the validation, one JSON object a line
    report.html        the finished run as a page
    non_finite.json    the batch whose loss or gradient was not finite, if one ended the run
    """

    def __init__(self, path: Path):
        self.path = path
        self.best = path / "best"
        self.last = path / "last"
        self.checkpoints = path / "checkpoints"
        self.state = path / "state" / "training_state.pt"  # with fsdp, sharded-000500/ beside it
        self.config = path / "train_config.json"
        self.metrics = path / "metrics.jsonl"
        self.non_finite = path / "non_finite.json"
        self.predictions = path / "predictions.jsonl"
        self.picture = path / "loss.png"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self._events = Events(self.tensorboard)

    @classmethod
    def create(cls, path: str | None, *, overwrite: bool) -> "RunDirectory":
        """A new run's directory, below runs/ where no path is given. Hidden files in it do not matter.

        Raises:
            ValueError: the directory already holds a run, or is not empty and no run.
        """
        if path is None:
            return cls._create_fresh(Path("runs"))
        run = cls(Path(path))
        run.require_free(overwrite=overwrite)
        if run.config.exists():
            run._remove_files()
        run.path.mkdir(parents=True, exist_ok=True)
        return run

    def require_free(self, *, overwrite: bool) -> None:
        """Raise the ValueError of `create` where a new run has no place here."""
        if self.config.exists():
            if not overwrite:
                raise ValueError(
                    f"{self.path} already holds a run: --resume goes on with it, --overwrite replaces it"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.glob("[!.]*"))):
            raise ValueError(f"{self.path} exists and holds no run: choose another --output")

    @classmethod
    def _create_fresh(cls, parent: Path) -> "RunDirectory":
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in range(1000):
            path = parent / (f"{name}_{attempt}" if attempt else name)
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(path)
        raise ValueError(f"{parent} has no room for another run named {name}: pass --output")

    @classmethod
    def existing(cls, path: str) -> "RunDirectory":
        """The directory of a run to go on with.

        Raises:
            ValueError: there is no run, or it was stopped before its first save.
        """
        run = cls(Path(path))
        if not run.config.exists():
            raise ValueError(f"{path} holds no run to resume (no {run.config.name})")
        if not run.state.exists():
            raise ValueError(f"{path} was stopped before its first save: start it again with --overwrite")
        return run

    def step_checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def prune_checkpoints(self, keep: int | None) -> None:
        """Remove all but the newest `keep` of the step checkpoints. best/ and last/ are not among them."""
        if keep is None:
            return
        for old in sorted(self.checkpoints.glob("step-*"), key=_step)[:-keep]:
            old.rename(_hidden(old))  # first, so that a kill leaves no half checkpoint under its name
        for hidden in self.checkpoints.glob(".step-*"):
            shutil.rmtree(hidden)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, without what is infinite or no number: JSON has neither."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        self._events.add(finite)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a kill may have left half a line at the end."""
        return _read_lines(self.metrics)

    def forget_metrics_after(self, step: int) -> None:
        """Drop what was logged after the step that a resumed run starts from; it will be logged again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.metrics, lambda path: path.write_text(text, encoding="utf-8"))
        self._events.forget_after(step)

    def save_predictions(self, predictions: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        write_atomically(self.predictions, lambda path: path.write_text(text, encoding="utf-8"))

    def read_predictions(self) -> list[dict[str, Any]]:
        return _read_lines(self.predictions)

    def save_options(self, options: TrainOptions) -> None:
        """For --resume, and for --config of another run: how this one was started is left out."""
        how_started = ("resume", "overwrite", "parallel")
        values = {key: value for key, value in asdict(options).items() if key not in how_started}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self.config, lambda path: path.write_text(text, encoding="utf-8"))

    def remove_checkpoints(self) -> None:
        """Remove all weights and what --resume needs; the log and the options stay."""
        checkpoints = (self.best, self.last, self.checkpoints)
        for directory in (*checkpoints, *map(_hidden, checkpoints), self.state.parent):
            if directory.exists():
                shutil.rmtree(directory)

    def _remove_files(self) -> None:
        """Remove what a run writes, and nothing else that somebody may keep here."""
        self.remove_checkpoints()
        if self.tensorboard.exists():
            shutil.rmtree(self.tensorboard)
        # The last one is what makes it a run.
        files = (self.metrics, self.predictions, self.non_finite, self.picture, self.report)
        for file in (*files, self.config):
            file.unlink(missing_ok=True)


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Where to write a directory's files: a new one gets its name only when all of them are there."""
    if directory.exists():  # its files are replaced one by one, each at once
        yield directory
    else:
        yield _hidden(directory)
        _hidden(directory).rename(directory)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # Not splitlines, for which a line ends inside of JSON's strings too, at U+2028 for example.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _hidden(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.part")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
