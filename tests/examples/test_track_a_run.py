"""The trackers of examples/track_a_run.py, with stand-ins that record what they are told."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftcore.training import TrainOptions
from tests.helpers import tiny_runs

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "track_a_run.py"

Metrics = dict[str, float]


class Recorder:
    """What both trackers are told in the end."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.metrics: list[tuple[int, Metrics]] = []
        self.paths: dict[str, str] = {}
        self.is_closed = False

    def log(self, metrics: Metrics, *, step: int) -> None:
        assert not self.is_closed
        self.metrics.append((step, metrics))

    def close(self) -> None:
        self.is_closed = True


def stand_in_for_wandb(recorder: Recorder) -> Any:
    def init(*, project: str, config: dict[str, Any]) -> Any:
        recorder.options = config
        return SimpleNamespace(log=recorder.log, summary=recorder.paths, finish=recorder.close)

    return SimpleNamespace(init=init)


def stand_in_for_mlflow(recorder: Recorder) -> Any:
    return SimpleNamespace(
        start_run=lambda: None,
        log_params=recorder.options.update,
        log_metrics=recorder.log,
        set_tag=recorder.paths.__setitem__,
        end_run=recorder.close,
    )


STAND_INS = {"wandb": stand_in_for_wandb, "mlflow": stand_in_for_mlflow}


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        model=str(tiny_runs.tiny_t5(tmp_path / "t5")),
        train=str(tiny_runs.questions(tmp_path / "train.jsonl", 12)),
        output=str(tmp_path / "run"),
        max_steps=3,
        log_every=1,
        eval_every=2,
        batch_size=2,
        eval_answers=1,
        max_target_length=24,
    )


@pytest.mark.parametrize("name", STAND_INS)
def test_a_tracker_gets_options_metrics_and_paths(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, STAND_INS[name](recorder))
    runpy.run_path(str(SCRIPT))["track"](options, name)
    assert recorder.options["batch_size"] == 2 and recorder.options["lr"] == 3e-4
    log = tiny_runs.metrics(tmp_path / "run")
    assert recorder.metrics == [(line["step"], line) for line in log]
    assert [step for step, _ in recorder.metrics] == [0, 1, 2, 2, 3, 3]
    run = tmp_path / "run"
    assert recorder.paths == {"best": str(run / "best"), "last": str(run / "last")}
    assert recorder.is_closed


def test_a_failed_run_is_closed(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", stand_in_for_mlflow(recorder))
    monkeypatch.setattr("ftcore.train.take_step", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        runpy.run_path(str(SCRIPT))["track"](options, "mlflow")
    assert recorder.is_closed


def test_a_missing_tracker_is_one_line(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(SCRIPT))["track"](options, "wandb")
    assert ending.value.code == "wandb is not installed: pip install wandb"
