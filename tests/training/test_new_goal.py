"""--resume with other --epochs or --max-steps: a run goes on to a new goal.

The data are of 16 examples for training, so that an epoch has three steps of six examples, the last one
shorter.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.training.optim import learning_rate
from tests.helpers import tiny_runs
from tests.helpers.resumed_runs import STEPS, Bench, assert_same, outcome, refusal, stop_at

CONSTANT = "--schedule constant --warmup 2 --log-every 1 "


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def finished(gpt2: Bench) -> Path:
    """A run of 8 steps; its rate falls linearly to 0. Do not change it."""
    run = gpt2.new_directory()
    assert gpt2.train(run, "--log-every 1 --warmup 2") == 0
    return run


@pytest.mark.parametrize("goals", [(9, 12), (8, 10, 12)])
def test_a_finished_run_equals_one_planned_for_the_new_goal(gpt2: Bench, goals: tuple[int, ...]) -> None:
    """Where the rate does not depend on the goal; nine steps end an epoch."""
    whole, run = gpt2.new_directory(), gpt2.new_directory()
    assert gpt2.train(whole, f"{CONSTANT} --eval-every 1 --max-steps {goals[-1]}") == 0
    assert gpt2.train(run, f"{CONSTANT} --eval-every 1 --max-steps {goals[0]}") == 0
    for goal in goals[1:]:
        assert gpt2.resume(run, f"--max-steps {goal}") == 0
    assert_same(outcome(run), outcome(whole))
    assert json.loads((run / "train_config.json").read_text())["max_steps"] == goals[-1]
    assert gpt2.resume(run) == 0
    assert_same(outcome(run), outcome(whole))


@pytest.mark.parametrize("goal", [5, 12])
def test_a_stopped_run_equals_one_planned_for_the_new_goal(gpt2: Bench, goal: int) -> None:
    whole, run = gpt2.new_directory(), gpt2.new_directory()
    assert gpt2.train(whole, f"{CONSTANT} --max-steps {goal}") == 0
    stop_at(gpt2, run, 4, CONSTANT)
    assert gpt2.resume(run, f"--max-steps {goal}") == 0
    assert_same(outcome(run), outcome(whole))


def test_a_goal_in_epochs(gpt2: Bench) -> None:
    """It replaces one in steps."""
    whole, run = gpt2.new_directory(), gpt2.new_directory()
    assert gpt2.train(whole, CONSTANT + "--max-steps 12") == 0
    stop_at(gpt2, run, 2, CONSTANT)
    assert gpt2.resume(run, "--epochs 4") == 0
    assert_same(outcome(run), outcome(whole))
    options = json.loads((run / "train_config.json").read_text())
    assert (options["epochs"], options["max_steps"]) == (4, None)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_are_those_of_a_run_planned_for_the_new_goal(
    gpt2: Bench, capsys: pytest.CaptureFixture, schedule: str
) -> None:
    run = gpt2.new_directory()
    assert gpt2.train(run, f"--log-every 1 --schedule {schedule} --warmup 2") == 0
    capsys.readouterr()
    assert gpt2.resume(run, "--max-steps 12") == 0
    plan: dict[str, Any] = {"peak": 0.01, "schedule": schedule, "warmup_steps": 2}
    rates = [learning_rate(step, **plan, total_steps=STEPS if step < STEPS else 12) for step in range(12)]
    assert [line["learning_rate"] for line in tiny_runs.metrics(run) if "learning_rate" in line] == rates
    assert (
        "goal       8 -> 12 steps. From here on the learning rate is that of a run planned for 12 steps: "
        f"{rates[7]:.3g} in step 8, {rates[8]:.3g} in step 9\n"
    ) in capsys.readouterr().out
    assert gpt2.resume(run) == 0
    assert "goal" not in capsys.readouterr().out


def test_a_share_of_warm_up_is_one_of_the_new_goal(gpt2: Bench) -> None:
    run = gpt2.new_directory()
    stop_at(gpt2, run, 2, "--schedule constant --warmup 0.5 --log-every 1")
    assert gpt2.resume(run, "--max-steps 16") == 0
    rates = [line["learning_rate"] for line in tiny_runs.metrics(run) if "learning_rate" in line]
    shares = [1 / 4, 2 / 4, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1]
    assert rates[:9] == pytest.approx([0.01 * share for share in shares])


@pytest.mark.parametrize("options", ["--max-steps 7", "--epochs 2", "--epochs 1"])
def test_a_goal_that_is_reached_is_refused(
    gpt2: Bench, finished: Path, capsys: pytest.CaptureFixture, options: str
) -> None:
    before = outcome(finished), (finished / "train_config.json").read_bytes()
    line = refusal(lambda: gpt2.resume(finished, options), capsys)
    goal = {"--max-steps 7": 7, "--epochs 2": 6, "--epochs 1": 3}[options]
    assert (
        f"{finished} has already taken 8 steps, not less than the goal of {goal}: pass larger --epochs"
        in line
    )
    assert f"or use the weights at {finished / 'last'}" in line
    assert_same(outcome(finished), before[0])
    assert (finished / "train_config.json").read_bytes() == before[1]


def test_the_present_step_as_a_goal_is_refused(gpt2: Bench, capsys: pytest.CaptureFixture) -> None:
    run = gpt2.new_directory()
    stop_at(gpt2, run, 4)
    line = refusal(lambda: gpt2.resume(run, "--max-steps 4"), capsys)
    assert "has already taken 4 steps, not less than the goal of 4" in line
    assert gpt2.resume(run) == 0
    assert_same(outcome(run), gpt2.wanted)


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", "x"), ("epochs", None), ("epochs", 2**70), ("max_steps", [8])]
)
def test_a_damaged_goal_of_a_state_is_refused(
    gpt2: Bench, capsys: pytest.CaptureFixture, name: str, value: Any
) -> None:
    run = gpt2.new_directory()
    stop_at(gpt2, run, 1)
    state = run / "state" / "training_state.pt"
    saved = torch.load(state, weights_only=True)
    saved["options"][name] = value
    torch.save(saved, state)
    line = refusal(lambda: gpt2.resume(run), capsys)
    assert f"--{name.replace('_', '-')} is " in line and ", expected " in line
