"""Trials of a fake training: successive halving, the validation that counts, and non-finite losses."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ftcore.tune
from ftcore.training.callbacks import Callback
from ftcore.training.tuning import best_trial, finished_trials, parse_search, study_in_memory
from ftcore.tune import Search, TuneOptions

optuna = pytest.importorskip("optuna")

VALIDATIONS = 9


def run_trials(curves: list[list[dict[str, float]]], **options: Any) -> list[Any]:
    """Run a search in which trial n has the validations curves[n], after 10, 20 ... steps."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tune_options = TuneOptions(search=["batch_size=1..100"], **options)
    remaining = iter(curves)

    def prepare(_: Any) -> Any:
        curve = next(remaining)
        steps = 10 * len(curve)
        valid_set = SimpleNamespace(records=[SimpleNamespace(references=["yes"])])
        valid_loader = SimpleNamespace(dataset=valid_set)
        run_options = SimpleNamespace(eval_answers=1)
        progress = SimpleNamespace(step=0)
        return SimpleNamespace(
            curve=curve,
            progress=progress,
            total_steps=steps,
            eval_every=10,
            options=run_options,
            valid_loaders={"": valid_loader},
            is_finished=True,
            close=lambda: None,
        )

    def train(run: Any, callbacks: Sequence[Callback]) -> None:
        [reporter] = callbacks
        reporter.on_validate(run, {"step": 0, "epoch": 0.0, "valid_loss": 9.0})
        for metrics in run.curve:
            run.progress.step += 10
            reporter.on_validate(run, {"step": run.progress.step, "epoch": 0.5, **metrics})

    journal = optuna.create_study(direction="maximize")  # in memory: a file is flushed to disk for each trial
    study = study_in_memory(journal, tune_options.halving)
    plan = [{"batch_size": number + 1} for number in range(len(curves))]
    search = Search(tune_options, Path("nowhere"), parse_search(tune_options.search), plan, study, journal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ftcore.tune, "prepare", prepare)
        patch.setattr(ftcore.tune, "train", train)
        patch.setattr(ftcore.tune, "save_results", lambda _: None)
        ftcore.tune.tune(search)
    assert finished_trials(journal) == finished_trials(study)
    return finished_trials(journal)


def halved(qualities: list[int], halving: int) -> dict[int, int]:
    """Trials with learning curves that never cross; returns quality -> number of validations."""
    curves = [
        [{"valid_loss": (10 - quality / 2) / step} for step in range(1, VALIDATIONS + 1)]
        for quality in qualities
    ]
    trials = run_trials(curves, halving=halving)
    best = best_trial(trials)
    assert best and qualities[best.number] == max(qualities)
    return {qualities[trial.number]: trial.user_attrs["steps"] // 10 for trial in trials}


@settings(deadline=None, max_examples=15)
@given(qualities=st.permutations(range(1, 13)), halving=st.sampled_from([2, 3, 4]))
def test_halving_never_prunes_the_best_and_saves_work(qualities: list[int], halving: int) -> None:
    ended = halved(qualities, halving)
    assert ended[12] == VALIDATIONS
    assert set(ended.values()) <= {halving**power for power in range(4)} | {VALIDATIONS}
    assert ended[1] < VALIDATIONS or qualities[0] == 1  # the first trial has no competitors


def test_a_bad_trial_after_good_ones_is_pruned_at_its_first_validation() -> None:
    assert halved([12, 11, 10, 1], 3)[1] == 1


def test_a_trial_is_not_pruned_at_its_last_step() -> None:
    good, bad = [{"valid_loss": 1.0}] * 4, [{"valid_loss": 0.5}] * 3 + [{"valid_loss": 2.0}]
    assert [trial.state.name for trial in run_trials([good, bad], halving=2)] == ["COMPLETE", "COMPLETE"]


def test_the_best_validation_counts_not_the_last() -> None:
    curve = [
        {"valid_loss": loss, "exact_match": match}
        for match, loss in [(0.2, 3.0), (0.5, 2.0), (0.5, 1.0), (0.4, 0.5)]
    ]
    [trial] = run_trials([curve])
    assert trial.user_attrs["best_step"] == 30 and trial.user_attrs["metrics"] == curve[2]
    assert trial.user_attrs["steps"] == 40 and trial.value == max(trial.intermediate_values.values())
    [trial] = run_trials([curve], metric="valid_loss")
    assert trial.user_attrs["best_step"] == 40 and trial.value == -0.5


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_non_finite_loss_fails_the_trial(loss: float) -> None:
    trials = run_trials([[{"valid_loss": 1.0}, {"valid_loss": loss}], [{"valid_loss": 2.0}]])
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[0].user_attrs["error"] == f"the validation loss is {loss} after step 20"
    assert trials[0].user_attrs["metrics"] == {"valid_loss": 1.0}
