"""Successive halving ends what is hopeless, and never what would be the best; the order of the table."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.tuning.journal import (
    COMPLETE,
    FAILED,
    PRUNED,
    begin_trial,
    distributions,
    end_trial,
    open_study,
    require_optuna,
)
from ftcore.tuning.ranges import Choice
from ftcore.tuning.results import best, measure, results, table
from ftcore.tuning.watcher import PrunedError, Watcher

optuna = pytest.importorskip("optuna")

VALIDATIONS = 9
SPACE = {"batch_size": Choice(tuple(range(1, 13)))}


@pytest.fixture(autouse=True)
def silent_optuna() -> None:
    require_optuna()


def fake_run(step: int) -> Any:
    return SimpleNamespace(progress=SimpleNamespace(step=step), total_steps=10 * VALIDATIONS)


def losses_of(quality: int) -> list[float]:
    """A learning curve: the higher the quality, the lower, at every point."""
    return [(10 - quality / 2) / step for step in range(1, VALIDATIONS + 1)]


def halved(qualities: list[int], halving: int) -> dict[int, int]:
    """Trials of these qualities, one after the other; returns after how many validations each ended."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=halving)
    study = optuna.create_study(
        direction="maximize", pruner=pruner
    )  # in memory: a journal's fsyncs take time
    ended = {}
    for quality in qualities:
        watcher = Watcher(begin_trial(study, {"batch_size": quality}, SPACE), None)
        state = COMPLETE
        try:
            for number, loss in enumerate(losses_of(quality), start=1):
                watcher.look(fake_run(10 * number), {"valid_loss": loss})
        except PrunedError:
            state = PRUNED
        end_trial(study, watcher.trial, state, watcher.value, watcher.record(""))
        ended[quality] = watcher.validations
    winner = best(results(study))
    assert winner and winner.settings["batch_size"] == max(qualities)
    return ended


@settings(deadline=None, max_examples=15)
@given(qualities=st.permutations(range(1, 13)), halving=st.sampled_from([2, 3, 4]))
def test_the_best_is_never_pruned_and_work_is_saved(qualities: list[int], halving: int) -> None:
    ended = halved(qualities, halving)
    assert ended[12] == VALIDATIONS
    rungs = {halving**power for power in range(4)} | {VALIDATIONS}
    assert set(ended.values()) <= rungs
    assert ended[1] < VALIDATIONS or qualities[0] == 1  # only the first has nothing to be compared with


def test_a_bad_trial_after_good_ones_ends_at_its_first_validation() -> None:
    assert halved([12, 11, 10, 1], 3)[1] == 1


def test_a_trial_is_not_pruned_when_nothing_is_left_of_it(tmp_path: Path) -> None:
    study = open_study(tmp_path / "journal.log", 2)
    for number, loss in enumerate((1.0, 2.0), start=1):
        watcher = Watcher(begin_trial(study, {"batch_size": number}, SPACE), None)
        watcher.look(fake_run(10 * VALIDATIONS), {"valid_loss": loss})
        end_trial(study, watcher.trial, COMPLETE, watcher.value, watcher.record(""))
    assert [result.state for result in results(study)] == [COMPLETE, COMPLETE]


def test_the_best_validation_counts_and_not_the_last() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    watcher = Watcher(study.ask(distributions(SPACE)), "exact_match")
    for step, (match, loss) in enumerate([(0.2, 3.0), (0.5, 2.0), (0.5, 1.0), (0.4, 0.5)], start=1):
        watcher.look(fake_run(step), {"valid_loss": loss, "exact_match": match})
    record = watcher.record("")
    assert (record["best_step"], record["metrics"], record["steps"]) == (
        3,
        {"valid_loss": 1.0, "exact_match": 0.5},
        4,
    )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_fails(loss: float) -> None:
    study = optuna.create_study(direction="maximize")
    watcher = Watcher(study.ask(distributions(SPACE)), None)
    with pytest.raises(FloatingPointError, match=f"the validation loss is {loss} after step 7"):
        watcher.look(fake_run(7), {"valid_loss": loss})


scores = st.fixed_dictionaries(
    {"exact_match": st.integers(0, 200).map(lambda count: count / 200), "valid_loss": st.floats(0, 1e6)}
)


@settings(deadline=None)
@given(a=scores, b=scores)
def test_trials_are_judged_as_a_run_judges_its_best(a: dict[str, float], b: dict[str, float]) -> None:
    def rank(metrics: dict[str, float]) -> list[float]:
        return [metrics["exact_match"], -metrics["valid_loss"]]

    name, better = measure(a, None)
    assert name == "exact_match"
    if better > measure(b, None)[1]:
        assert rank(a) > rank(b)
    assert measure(a, "valid_loss") == ("valid_loss", -a["valid_loss"])
    assert measure({"valid_loss": 2.0}, None) == ("valid_loss", -2.0)


def test_the_table_has_the_best_first_then_the_pruned_then_the_failed(tmp_path: Path) -> None:
    study = open_study(tmp_path / "journal.log", None)
    ends = [(FAILED, None, 3), (PRUNED, 1.0, 10), (COMPLETE, 3.0, 90), (PRUNED, 5.0, 30), (COMPLETE, 2.0, 90)]
    for number, (state, loss, steps) in enumerate(ends, start=1):
        trial = begin_trial(study, {"batch_size": number}, SPACE)
        metrics = {} if loss is None else {"valid_loss": loss}
        record = {
            "metric": "valid_loss",
            "metrics": metrics,
            "best_step": steps,
            "steps": steps,
            "seconds": 1.0,
        }
        end_trial(study, trial, state, -(loss or 0.0), record | {"error": "" if loss else "no number"})
    found = results(study)
    assert [result.trial for result in found] == [5, 3, 4, 2, 1]
    head, *rows = table(found)
    assert head.split() == ["trial", "batch_size", "valid_loss", "at", "step", "steps", "seconds"]
    assert [row.split()[0] for row in rows] == ["5", "3", "4", "2", "1"]
    assert [row.split()[-1] for row in rows] == ["1.0", "1.0", "pruned", "pruned", "failed"]
    assert best(found) == found[0] and best(found[2:]) is None and best([]) is None
