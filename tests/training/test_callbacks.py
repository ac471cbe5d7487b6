"""Callbacks of the training loop: what they are told, how they stop a run, and what their errors leave."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ftcore import load_model
from ftcore.train import prepare, train
from ftcore.training.callbacks import Callback
from ftcore.training.options import TrainOptions
from ftcore.training.run import Run
from tests.helpers import tiny_runs

STEPS = 6  # of two epochs


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    folder = tmp_path_factory.mktemp("callbacks")
    return TrainOptions(
        model=str(tiny_runs.tiny_t5(folder / "t5", dropout_rate=0.2)),
        train=str(tiny_runs.questions(folder / "train.jsonl", 10)),
        valid=str(tiny_runs.questions(folder / "valid.jsonl", 4, start=20)),
        max_steps=STEPS,
        batch_size=2,
        grad_accum=2,
        eval_every=2,
        save_every=3,
        log_every=1,
        eval_answers=1,
        max_target_length=10,
        output=str(folder / "whole"),
    )


class Recorder(Callback):
    """Records the arguments of every call, in order."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.saves: list[tuple[int, str]] = []

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)

    def on_validate(self, run: Run, metrics: dict[str, float]) -> None:
        self.validations.append(metrics)

    def on_save(self, run: Run, directory: Path) -> None:
        load_model(directory)  # complete
        self.saves.append((run.progress.step, directory.relative_to(run.directory.path).as_posix()))


@pytest.fixture(scope="module")
def whole(options: TrainOptions) -> Recorder:
    """An uninterrupted run."""
    recorder = Recorder()
    with prepare(options) as run:
        train(run, [Callback(), recorder])
    return recorder


def weights(output: str) -> dict[str, torch.Tensor]:
    return load_model(Path(output) / "last").state_dict()


def assert_same_as_whole(output: Path, options: TrainOptions) -> None:
    """The run ended with the weights and the log of the uninterrupted one."""
    torch.testing.assert_close(weights(str(output)), weights(str(options.output)), rtol=0, atol=0)
    assert tiny_runs.metrics(output) == tiny_runs.metrics(Path(str(options.output)))


def test_metrics_are_the_lines_of_the_log(whole: Recorder, options: TrainOptions) -> None:
    log = tiny_runs.metrics(Path(str(options.output)))
    assert whole.steps == [line for line in log if "train_loss" in line]
    assert whole.validations == [line for line in log if "valid_loss" in line]
    assert [line["step"] for line in whole.steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in whole.validations] == [0, 0.6667, 1.3333, 2]


def test_the_loss_of_a_step_is_its_own(options: TrainOptions, whole: Recorder, tmp_path: Path) -> None:
    """The log has a mean of several steps."""
    recorder = Recorder()
    with prepare(replace(options, log_every=3, output=str(tmp_path / "run"))) as run:
        train(run, [recorder])
    assert recorder.steps == whole.steps
    logged = [line["train_loss"] for line in tiny_runs.metrics(tmp_path / "run") if "train_loss" in line]
    losses = [line["train_loss"] for line in whole.steps]
    assert logged == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_every_save_is_reported_once_it_is_complete(whole: Recorder) -> None:
    at_intervals = [save for save in whole.saves if save[1] != "best"]
    steps = [(3, "checkpoints/step-000003"), (3, "last"), (6, "checkpoints/step-000006"), (6, "last")]
    assert at_intervals == [*steps, (6, "last")]
    assert (2, "best") in whole.saves


class Stop(Callback):
    """Stop at one event of one step."""

    def __init__(self, event: str, step: int) -> None:
        setattr(self, event, lambda run, _: run.stop("enough") if run.progress.step == step else None)


STOPS = [("on_step", 1), ("on_step", 3), ("on_validate", 2), ("on_save", 3), ("on_step", STEPS)]


@pytest.mark.parametrize(("event", "step"), STOPS)
@pytest.mark.parametrize("in_a_new_process", [False, True])
def test_a_stopped_run_is_saved_and_continues_exactly(
    whole: Recorder, options: TrainOptions, tmp_path: Path, event: str, step: int, in_a_new_process: bool
) -> None:
    stopped = replace(options, output=str(tmp_path / "run"))
    with prepare(stopped) as run:
        train(run, [Stop(event, step)])
        assert (run.progress.step, run.stop_reason) == (step, "enough")
        assert (tmp_path / "run" / "state" / "training_state.pt").exists()
        if not in_a_new_process:
            train(run)
            assert run.stop_reason is None
    if in_a_new_process:
        torch.manual_seed(99)
        with prepare(replace(stopped, resume=True)) as run:
            train(run)
    assert_same_as_whole(tmp_path / "run", options)


def test_a_run_stopped_before_its_first_step_takes_one(options: TrainOptions, tmp_path: Path) -> None:
    with prepare(replace(options, output=str(tmp_path / "run"))) as run:
        train(run, [Stop("on_validate", 0)])
    assert run.progress.step == 1


class Broken(Callback):
    def __init__(self, event: str, step: int) -> None:
        setattr(self, event, lambda run, _: self.fail() if run.progress.step == step else None)

    def fail(self) -> None:
        raise RuntimeError("the tracker is away")


@pytest.mark.parametrize(("event", "step"), [("on_step", 5), ("on_validate", 4), ("on_save", 3)])
def test_an_error_is_raised_and_the_last_save_is_intact(
    whole: Recorder, options: TrainOptions, tmp_path: Path, event: str, step: int
) -> None:
    broken = replace(options, output=str(tmp_path / "run"), save_every=1 if event == "on_save" else 3)
    with pytest.raises(RuntimeError, match="the tracker is away"), prepare(broken) as run:
        train(run, [Broken(event, step)])
    with prepare(replace(broken, save_every=3, resume=True)) as run:
        assert run.progress.step == (2 if event == "on_save" else 3)
        train(run)
    assert_same_as_whole(tmp_path / "run", options)


def test_the_directory_is_locked_until_the_run_is_closed(options: TrainOptions, tmp_path: Path) -> None:
    locked = replace(options, output=str(tmp_path / "run"), max_steps=1)
    resumed = replace(locked, resume=True)

    def is_free() -> bool:
        try:
            prepare(resumed).close()
        except ValueError as error:
            assert "another process" in str(error)
            return False
        return True

    with prepare(locked) as run:
        train(run)
        assert not is_free()
    assert is_free()
    run = prepare(resumed)
    assert not is_free()
    run.close()
    assert is_free()
