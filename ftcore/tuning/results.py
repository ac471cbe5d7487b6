"""What came out of a search: how good each trial is, and the table of all of them."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import write_atomically
from ftcore.tuning.journal import COMPLETE, FAILED, PRUNED, STATES, Study, ended_trials

METRICS = ("exact_match", "f1", "valid_loss")  # that people are shown; the CSV file has all


def measure(metrics: dict[str, float], metric: str | None) -> tuple[str, float]:
    """The metric that a validation is judged by, and a number that is the higher the better it is.

    It is chosen as a run chooses its best/: between equal exact matches the loss decides. It needs to, for
    answers begin to be right only when the loss has long been falling.
    """
    metric = metric or ("exact_match" if "exact_match" in metrics else "valid_loss")
    loss = metrics["valid_loss"]
    if metric == "valid_loss":
        return metric, -loss
    return metric, metrics[metric] - 1e-6 * loss / (1 + loss)  # less than one answer in a million


@dataclass(frozen=True)
class Result:
    """A trial that has ended."""

    trial: int  # from 1
    state: str  # complete, pruned by successive halving, or failed
    settings: dict[str, Any]
    value: float  # of `measure`, the best one; -inf if it has none
    metric: str | None  # what it is judged by; None if it has no validation
    metrics: dict[str, float]  # of its best validation
    best_step: int | None  # of that
    steps: int  # taken
    seconds: float
    error: str

    def __str__(self) -> str:
        """One line for the screen."""
        settings = ", ".join(f"{name} {in_words(value)}" for name, value in self.settings.items())
        figures = ", ".join(f"{name} {self.metrics[name]:.4g}" for name in METRICS if name in self.metrics)
        ending = {
            COMPLETE: f"{figures} at step {self.best_step}",
            PRUNED: f"{figures}, pruned at step {self.steps}",
            FAILED: f"failed, {self.error}",
        }
        return f"trial {self.trial}: {settings}: {ending[self.state]}"


def in_words(setting: Any) -> str:
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def results(study: Study) -> list[Result]:
    """All trials that have ended: those that were completed, best first, then the pruned and the failed ones.

    A pruned trial is never the best: others were better when it was ended.
    """

    def place(result: Result) -> tuple[float, ...]:
        how_far = result.steps if result.state == PRUNED else 0
        return list(STATES).index(result.state), -how_far, -result.value, result.trial

    return sorted(map(_result, ended_trials(study)), key=place)


def _result(trial: Any) -> Result:
    [state] = [state for state, name in STATES.items() if name == trial.state.name]
    record = trial.user_attrs
    value = measure(record["metrics"], record["metric"])[1] if record["metrics"] else -math.inf
    return Result(trial.number + 1, state, trial.params, value, **record)


def best(found: Sequence[Result]) -> Result | None:
    """The best of the completed trials, if there is one."""
    return found[0] if found and found[0].state == COMPLETE else None


def table(found: Sequence[Result]) -> Iterator[str]:
    """The lines of the table, for people."""
    names = [*found[0].settings]
    metrics = [name for name in METRICS if any(name in result.metrics for result in found)]
    rows = [["trial", *names, *metrics, "at step", "steps", "seconds", ""]]
    for result in found:
        rows.append(
            [
                str(result.trial),
                *map(in_words, result.settings.values()),
                *(f"{result.metrics[name]:.4g}" if name in result.metrics else "" for name in metrics),
                "" if result.best_step is None else str(result.best_step),
                str(result.steps),
                f"{result.seconds:.1f}",
                "" if result.state == COMPLETE else result.state,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def write_table(found: Sequence[Result], path: Path) -> None:
    """The table as CSV, with every figure in full."""
    names = list(dict.fromkeys(name for result in found for name in result.settings))
    metrics = list(dict.fromkeys(name for result in found for name in result.metrics))
    columns = ["trial", "state", *names, *metrics, "best_step", "steps", "seconds", "error"]

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for result in found:
                row = {name: getattr(result, name) for name in columns if hasattr(result, name)}
                writer.writerow(row | result.settings | result.metrics)

    write_atomically(path, write)
