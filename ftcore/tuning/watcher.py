"""Looks on while a trial trains: the best of its validations, and whether it is worth going on."""

import math
import time
from typing import Any

from ftcore.training.setup import Run
from ftcore.tuning.results import measure


class PrunedError(Exception):
    """A trial is ended because others were better at this point."""


class Watcher:
    """Shown each validation of a trial, it remembers the best, and asks optuna's pruner whether to go on."""

    def __init__(self, trial: Any, metric: str | None):
        self.trial = trial  # optuna.Trial
        self.metric = metric
        self.validations = 0
        self.value = -math.inf  # of `measure`, at the best validation so far
        self.metrics: dict[str, float] = {}  # of that validation
        self.best_step: int | None = None  # at which it was
        self.steps = 0  # taken
        self.start = time.perf_counter()

    def look(self, run: Run, metrics: dict[str, float]) -> None:
        """
        Raises:
            PrunedError: it is not worth going on.
            FloatingPointError: the loss is no number.
        """
        self.steps = run.progress.step
        self.metric, value = measure(metrics, self.metric)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the validation loss is {metrics['valid_loss']} after step {self.steps}"
            )
        if value > self.value:
            self.value, self.metrics, self.best_step = value, metrics, self.steps
        # Counted in validations, trials are at the same point of their epochs whatever their batch size.
        self.validations += 1
        self.trial.report(value, self.validations)
        if self.steps < run.total_steps and self.trial.should_prune():
            raise PrunedError

    def record(self, error: str) -> dict[str, Any]:
        """What is kept of the trial, as `Result` has it."""
        return {
            "metric": self.metric if self.metrics else None,
            "metrics": self.metrics,
            "best_step": self.best_step,
            "steps": self.steps,
            "seconds": round(time.perf_counter() - self.start, 1),
            "error": error,
        }


def require_comparable(run: Run, *, metric: str | None, halving: int | None) -> None:
    """
    Raises:
        ValueError: the runs of this search cannot be judged as its options want it.
    """
    has_answers = run.options.eval_answers and any(record.references for record in run.valid_set.records)
    if metric in ("exact_match", "f1") and not has_answers:
        raise ValueError(f"--metric {metric} needs validation examples with answers, and there are none")
    if halving and run.eval_every >= run.total_steps:
        raise ValueError(
            f"--halving looks at validations on the way, but these {run.total_steps} steps have one alone, "
            f"at the end: pass --eval-every, {max(1, run.total_steps // 9)} say"
        )
