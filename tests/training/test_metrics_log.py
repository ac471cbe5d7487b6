"""metrics.jsonl is valid JSON, and TensorBoard shows the same values where it is installed."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ftcore.training.metrics_log import MetricsLog
from ftcore.training.run_directory import RunDirectory

LINES: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0.0, "valid_loss": 3.0, "exact_match": 0.0},
    {"step": 10, "epoch": 0.5, "train_loss": 2.0, "learning_rate": 0.01},
    {"step": 20, "epoch": 1.0, "train_loss": 1.0, "valid_loss": 1.5, "exact_match": 0.25},
]


def new_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.open()
    return run


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard reads."""
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
    run = new_run(tmp_path / "run")
    for line in LINES:
        run.metrics_log.append(line)
        assert scalars(run.tensorboard).keys() <= curves(LINES).keys()  # readable at any time
    assert scalars(run.tensorboard) == curves(LINES)


def test_a_resumed_run_logs_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = new_run(tmp_path / "run")
    for line in LINES:
        first.metrics_log.append(line)
    time.sleep(1.1)  # event files are read in the order of their names, which count seconds
    resumed = RunDirectory(tmp_path / "run")
    resumed.metrics_log.truncate(10)
    again = {"step": 15, "epoch": 0.75, "train_loss": 1.25}
    resumed.metrics_log.append(again)
    assert scalars(resumed.tensorboard) == curves([*LINES[:2], again])
    assert resumed.metrics_log.read() == [*LINES[:2], again]


def test_non_finite_values_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = new_run(tmp_path / "run")
    run.metrics_log.append(
        {"step": 1, "perplexity": float("inf"), "grad_norm": float("nan"), "valid_loss": 2.0}
    )
    assert scalars(run.tensorboard) == {"valid_loss": [(1, 2.0)]}


def test_overwriting_a_run_removes_its_events(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.tensorboard.mkdir()
    run.config.touch()
    RunDirectory(tmp_path).open(overwrite=True)
    assert not run.tensorboard.exists()


def test_without_tensorboard_only_metrics_jsonl_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcore.training.metrics_log.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it would fail
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.append(LINES[0])
    log.truncate(0)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_every_line_is_valid_json(tmp_path: Path) -> None:
    """JSON has neither infinity nor NaN, which Python would write."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, tmp_path / "tensorboard")
    log.append({"step": 1, "perplexity": math.inf, "grad_norm": math.nan, "valid_loss": 2.5})
    log.append({"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3')  # killed within a line
    assert log.read() == [{"step": 1, "valid_loss": 2.5}, {"step": 2}]
    log.truncate(1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "valid_loss": 2.5}]
