"""Which settings are drawn, and the record of the trials: nothing of a killed trial is left in it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.tuning.journal import (
    COMPLETE,
    FAILED,
    PRUNED,
    begin_trial,
    draw,
    end_trial,
    ended_trials,
    open_study,
    require_optuna,
)
from ftcore.tuning.ranges import Choice, Range, read_search

pytest.importorskip("optuna")

SPACE = read_search(
    ["lr=1e-4..1e-2", "dropout=0..0.3", "batch_size=8,16,32", "num_layers=2..4", "relative_steps=true,false"]
)
RECORD = {
    "metric": "valid_loss",
    "metrics": {"valid_loss": 1.5},
    "best_step": 4,
    "steps": 4,
    "seconds": 0.5,
    "error": "",
}


@pytest.fixture(autouse=True)
def silent_optuna() -> None:
    require_optuna()


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), more=st.integers(0, 12))
def test_a_seed_draws_the_same_settings_and_more_trials_go_on_from_there(
    seed: int, count: int, more: int
) -> None:
    drawn = draw(SPACE, count, seed)
    assert len(drawn) == count
    assert draw(SPACE, count + more, seed)[:count] == drawn
    assert draw(SPACE, 1, 2**63 - 1)  # the largest that train takes
    assert seed == 0 or draw(SPACE, count, 0)[0] != drawn[0]


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_what_is_drawn_lies_in_its_range_and_has_its_type(seed: int) -> None:
    for drawn in draw(SPACE, 5, seed):
        assert drawn.keys() == SPACE.keys()
        assert 1e-4 <= drawn["lr"] <= 1e-2 and 0 <= drawn["dropout"] <= 0.3
        assert drawn["lr"] == float(f"{drawn['lr']:.3g}")
        assert drawn["batch_size"] in (8, 16, 32) and type(drawn["batch_size"]) is int
        assert drawn["num_layers"] in (2, 3, 4) and type(drawn["num_layers"]) is int
        assert type(drawn["relative_steps"]) is bool


def test_a_learning_rate_is_drawn_by_its_order_of_magnitude() -> None:
    logarithms = [math.log10(drawn["lr"]) for drawn in draw({"lr": SPACE["lr"]}, 400, 0)]
    below = sum(logarithm < -3 for logarithm in logarithms)
    assert 150 < below < 250  # of 400, half; more than 5 standard deviations off would be 150


def test_rounding_stays_inside_a_narrow_range() -> None:
    narrow = Range(0.123456, 0.123457, whole=False, logarithmic=True)
    assert {drawn["lr"] for drawn in draw({"lr": narrow}, 5, 0)} == {0.123456}


@pytest.mark.parametrize("trials", [6, 100])
def test_nothing_is_drawn_twice_of_a_few_possibilities(trials: int) -> None:
    space = {"batch_size": Choice((8, 16)), "num_layers": Range(1, 3, whole=True, logarithmic=False)}
    drawn = draw(space, trials, 0)
    assert len(drawn) == 6 and len({tuple(settings.values()) for settings in drawn}) == 6


# --- the record


def history(path: Path, count: int) -> Any:
    """A study with this many trials that have ended, of all kinds."""
    study = open_study(path, 2)
    states = [COMPLETE, PRUNED, FAILED]
    for number, drawn in enumerate(draw(SPACE, count, 0)):
        trial = begin_trial(study, drawn, SPACE)
        trial.report(-1.5, 1)
        trial.should_prune()
        end_trial(study, trial, states[number % 3], -1.5, RECORD)
    return study


def facts(study: Any) -> list[Any]:
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs, t.system_attrs)
        for t in ended_trials(study)
    ]


def test_what_has_ended_is_there_again_and_what_was_under_way_is_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    wanted = facts(history(path, 4))
    assert [len(wanted), wanted[0][2]] == [4, draw(SPACE, 1, 0)[0]]
    study = open_study(path, 2)
    assert facts(study) == wanted
    trial = begin_trial(study, draw(SPACE, 5, 0)[4], SPACE)
    trial.report(-0.1, 1)
    assert not trial.should_prune()  # and the pruner has noted its figure
    study = open_study(path, 2)  # as after a kill
    assert facts(study) == wanted and len(study.trials) == 4
    assert begin_trial(study, draw(SPACE, 5, 0)[4], SPACE).number == 4


def test_half_a_line_and_a_lock_are_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    wanted = facts(history(path, 3))
    with path.open("a") as file:
        file.write('{"op_code": 4, "wor')
    (tmp_path / "journal.log.lock").symlink_to(path)
    study = open_study(path, 2)
    assert facts(study) == wanted
    begin_trial(study, draw(SPACE, 4, 0)[3], SPACE)  # would wait for the lock
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    history(path, 2)
    path.write_bytes(path.read_bytes().replace(b'{"op_code":4', b'{"op_co', 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"^{path}: damaged, the search cannot be resumed"):
        open_study(path, 2)
    assert path.read_bytes() == before
