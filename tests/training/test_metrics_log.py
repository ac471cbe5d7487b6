"""TensorBoard reads what metrics.jsonl has; without tensorboard there is nothing, and nobody minds."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ftcore.training.tensorboard import Events

from ftcore.training.run_directory import RunDirectory

LINES: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0.0, "valid_loss": 3.0, "exact_match": 0.0},
    {"step": 10, "epoch": 0.5, "train_loss": 2.0, "learning_rate": 0.01},
    {"step": 20, "epoch": 1.0, "train_loss": 1.0, "valid_loss": 1.5, "exact_match": 0.25},
]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a directory."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(directory))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in tags}


def curves(lines: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    names = {name for line in lines for name in line} - {"step", "epoch"}
    return {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}


def test_every_curve_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDirectory.create(str(tmp_path / "run"), overwrite=False)
    for line in LINES:
        run.log(line)
        assert scalars(run.tensorboard).keys() <= curves(LINES).keys()  # readable at any time
    assert scalars(run.tensorboard) == curves(LINES)


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = RunDirectory.create(str(tmp_path / "run"), overwrite=False)
    for line in LINES:
        first.log(line)
    time.sleep(1.1)  # the names of event files, which are read in their order, count seconds
    resumed = RunDirectory(tmp_path / "run")
    resumed.forget_metrics_after(10)
    again = {"step": 15, "epoch": 0.75, "train_loss": 1.25}
    resumed.log(again)
    assert scalars(resumed.tensorboard) == curves([*LINES[:2], again])
    assert resumed.read_metrics() == [*LINES[:2], again]


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDirectory.create(str(tmp_path / "run"), overwrite=False)
    run.log({"step": 1, "perplexity": float("inf"), "grad_norm": float("nan"), "valid_loss": 2.0})
    assert scalars(run.tensorboard) == {"valid_loss": [(1, 2.0)]}


def test_overwriting_a_run_removes_its_events(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.tensorboard.mkdir()
    run.config.touch()
    RunDirectory.create(str(tmp_path), overwrite=True)
    assert not run.tensorboard.exists()


def test_without_tensorboard_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcore.training.tensorboard.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it would fail
    events = Events(tmp_path / "tensorboard")
    events.add(LINES[0])
    events.forget_after(0)
    assert not any(tmp_path.iterdir())
