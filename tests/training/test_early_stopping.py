"""--early-stopping: when a run ends, what it prints and leaves, and that resuming changes nothing.

The learning rate is so high that the validation loss soon rises: of 20 steps, the sixth is the best at first.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_runs
from tests.helpers.resumed_runs import Bench, assert_same, outcome, refusal, stop_at

OPTIONS = "--eval-every 1 --max-steps 20 --lr 0.3 --schedule constant --eval-answers 0 --early-stopping "


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("t5", tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def stopped(t5: Bench) -> Path:
    run = t5.new_directory()
    assert t5.train(run, OPTIONS + "3") == 0
    return run


def losses(run: Path) -> dict[int, float]:
    """The validation losses by step, without that of the untrained model."""
    lines = tiny_runs.metrics(run)
    return {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line and line["step"]}


def test_a_run_stops_after_that_many_validations_without_an_improvement(stopped: Path) -> None:
    found = losses(stopped)
    best = min(found, key=lambda step: found[step])
    assert [*found] == [*range(1, best + 4)] and 1 < best < 17


def test_what_a_stopped_run_prints(t5: Bench, stopped: Path, capsys: pytest.CaptureFixture) -> None:
    """When it stops, and again when it is resumed with the same options: it has nothing to do."""
    before, found = outcome(stopped), losses(stopped)
    best = min(found, key=lambda step: found[step])
    for act in (lambda: t5.train(t5.new_directory(), OPTIONS + "3"), lambda: t5.resume(stopped)):
        assert act() == 0
        *_, line, stop, command, report, weights, _, example = capsys.readouterr().out.splitlines()
        assert line.startswith(f"best/ is step {best}: valid_loss {found[best]:.4g}, token_accuracy ")
        assert stop == (
            f"stopped after step {best + 3} of 20 and saved: no improvement of best/ in the last 3 "
            "validations; resume with a larger --early-stopping, or 0 for all steps:"
        )
        assert command.startswith("  python -m ftcore.train --output ")
        assert command.endswith(" --resume --early-stopping 6")
        assert (
            report.startswith("report ") and weights.startswith("best ") and example.startswith("try them ")
        )
    assert (stopped / "report.html").exists()
    assert_same(outcome(stopped), before)


def test_a_resumed_run_stops_at_the_same_step(t5: Bench, stopped: Path) -> None:
    """The count of validations is part of its state."""
    run = t5.new_directory()
    stop_at(t5, run, len(losses(stopped)) - 1, OPTIONS + "3")
    assert t5.resume(run) == 0
    assert_same(outcome(run), outcome(stopped))


@pytest.mark.parametrize("patience", [5, 0])
def test_a_stopped_run_goes_on_as_if_started_so(t5: Bench, stopped: Path, patience: int) -> None:
    run, whole = t5.new_directory(), t5.new_directory()
    assert t5.train(whole, OPTIONS + str(patience)) == 0
    assert t5.train(run, OPTIONS + "3") == 0
    assert t5.resume(run, f"--early-stopping {patience}") == 0
    assert_same(outcome(run), outcome(whole))
    assert len(losses(run)) > len(losses(stopped)) and (patience or len(losses(run)) == 20)
    assert json.loads((run / "train_config.json").read_text())["early_stopping"] == patience


def test_a_run_whose_last_step_is_reached_has_not_stopped_early(
    t5: Bench, stopped: Path, capsys: pytest.CaptureFixture
) -> None:
    assert t5.train(t5.new_directory(), f"{OPTIONS} 3 --max-steps {len(losses(stopped))}") == 0
    output = capsys.readouterr().out
    assert "stopped after" not in output and "best weights" in output


def test_a_state_from_before_early_stopping_resumes_with_it(t5: Bench) -> None:
    run = t5.new_directory()
    stop_at(t5, run, 3)
    state, config = run / "state" / "training_state.pt", run / "train_config.json"
    saved, options = torch.load(state, weights_only=True), json.loads(config.read_text())
    del saved["options"]["early_stopping"], options["early_stopping"]
    del saved["progress"]["best_step"], saved["progress"]["validations_since_best"]
    torch.save(saved, state)
    config.write_text(json.dumps(options))
    assert t5.resume(run, "--early-stopping 2") == 0
    assert_same(outcome(run)["last"], t5.wanted["last"])
    assert_same(outcome(run)["progress"], t5.wanted["progress"])


def test_a_negative_count_is_refused(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    line = refusal(lambda: t5.train(t5.new_directory(), "--early-stopping -1"), capsys)
    assert "--early-stopping is -1, expected at least 0" in line
