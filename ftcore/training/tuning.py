"""Searches with Optuna: the search space, settings drawn from it, the study and its journal, the results.

User attributes of a finished trial: `metrics` of its best validation by name, `best_step` of that validation,
`steps` taken, `seconds`, and `error`, the message of a failed trial.
"""

import csv
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from ftcore.checkpoints.files import read_json_lines, write_atomically
from ftcore.figures import Figure, new_figure, save_figure
from ftcore.output import did_you_mean
from ftcore.training.options import TrainOptions

# Option of train -> True, or "log" if its ranges are logarithmic. Options that define the task or the metrics
# cannot be searched, since trials would not be comparable.
SEARCHABLE = {
    field.name: field.metadata["searchable"] for field in fields(TrainOptions) if field.metadata["searchable"]
}

Distribution = Any  # optuna.distributions.BaseDistribution


def import_optuna() -> Any:
    """Import Optuna; its log shows warnings only. Raises ValueError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("a search needs optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def parse_search(texts: Iterable[str]) -> dict[str, Distribution]:
    """Parse the values of --search into a distribution per option.

    Raises:
        ValueError: unknown option, option that cannot be searched, or invalid values.
    """
    import_optuna()
    space: dict[str, Distribution] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        try:
            if name not in SEARCHABLE:
                others = did_you_mean(name, SEARCHABLE) or f", only {', '.join(SEARCHABLE)}"
                raise ValueError(f"{name!r} cannot be searched{others}")
            if name in space:
                raise ValueError(f"{name} is given twice")
            space[name] = _parse_values(name, values)
        except ValueError as error:
            raise ValueError(f"`search` {text}: {error}") from None
    return space


def _parse_values(name: str, text: str) -> Distribution:
    distributions = import_optuna().distributions
    if ".." not in text:
        choices = [_parse_value(name, part) for part in text.split(",")]
        if len(choices) == 1 or len(set(choices)) < len(choices):
            raise ValueError("expected LOW..HIGH, or at least two different values separated by commas")
        return distributions.CategoricalDistribution(choices)
    low, high = (_parse_value(name, end) for end in text.split("..", maxsplit=1))
    if isinstance(low, bool | str):
        raise ValueError("only numbers have a range, expected values separated by commas")
    if not low < high:
        raise ValueError("expected LOW..HIGH, the lower end first")
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high)
    logarithmic = SEARCHABLE[name] == "log"
    if logarithmic and low <= 0:
        raise ValueError(
            f"a range of {name} is logarithmic and must begin above 0; a list may contain 0, as in "
            f"{name}=0,{high / 10:g},{high:g}"
        )
    return distributions.FloatDistribution(low, high, log=logarithmic)


def _parse_value(name: str, text: str) -> Any:
    hint = typing.get_type_hints(TrainOptions)[name]  # as int | float | None, or Literal["a", "b"] | None
    kinds = [part for kind in typing.get_args(hint) or [hint] for part in typing.get_args(kind) or [kind]]
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    if text in kinds:
        return text
    literals = [kind for kind in kinds if isinstance(kind, str)]
    raise ValueError(f"{text!r} is not a value of `{name}`{did_you_mean(text, literals)}")


def draw_settings(space: Mapping[str, Distribution], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw the settings of `count` trials at random; a smaller count gives the first ones.

    Floats are rounded to three significant digits. Settings of a finite space are distinct, since training is
    deterministic, so that there may be fewer than `count`.
    """
    optuna = import_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed % 2**32))  # NumPy's limit
    size = math.prod(_size(distribution) for distribution in space.values())
    drawn: list[dict[str, Any]] = []
    while len(drawn) < min(count, size):
        settings = study.ask(dict(space)).params
        for name, value in settings.items():
            if _size(space[name]) == math.inf:
                settings[name] = min(max(float(f"{value:.3g}"), space[name].low), space[name].high)
        if size == math.inf or settings not in drawn:
            drawn.append(settings)
    return drawn


def _size(distribution: Distribution) -> float:
    if hasattr(distribution, "choices"):
        return len(distribution.choices)
    return distribution.high - distribution.low + 1 if isinstance(distribution.low, int) else math.inf


# Study

Study = Any  # optuna.Study
FrozenTrial = Any  # optuna.trial.FrozenTrial

STUDY_NAME = "search"


def open_journal(path: Path) -> Study:
    """Open or create the study in a journal file, which the caller has locked.

    The file is only appended to, except that an incomplete last line, left by a killed process, is cut off.

    Raises:
        ValueError: the journal is damaged; it is left as it is.
    """
    optuna = import_optuna()

    def refuse(message: object) -> NoReturn:
        raise ValueError(f"{str(message).removesuffix('; skipped')}; the search cannot be resumed")

    read_json_lines(path, refuse)  # a broken line
    for lock in path.parent.glob(f"{path.name}.lock*"):  # left by a killed process
        lock.unlink()
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    journal = optuna.storages.journal
    backend = journal.JournalFileBackend(str(path), journal.JournalFileOpenLock(str(path)))  # also on Windows
    try:
        storage = optuna.storages.JournalStorage(backend)
        if path.stat().st_size == 0:
            return optuna.create_study(study_name=STUDY_NAME, storage=storage, direction="maximize")
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        if trials := study_in_memory(study, None).trials:
            table(trials)  # reads all of their results
    except Exception as error:  # of many types
        refuse(f"{path}: damaged ({error})")
    return study


def study_in_memory(journal: Study, halving: int | None) -> Study:
    """Create a study with the finished trials of the journal, for further trials to run in.

    Trials are added to the journal when they have finished. The journal then never holds intermediate values
    of a trial that was killed, which the pruner would compare other trials with.
    """
    pruners = import_optuna().pruners
    pruner = pruners.SuccessiveHalvingPruner(1, halving) if halving else pruners.NopPruner()
    study = import_optuna().create_study(direction="maximize", pruner=pruner)
    study.add_trials(finished_trials(journal))
    return study


def finished_trials(study: Study) -> list[FrozenTrial]:
    """The complete, pruned and failed trials, in their order."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def of_first_set(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the first validation set by their plain names, without step and epoch."""
    first = next(key for key in metrics if key.endswith("valid_loss")).removesuffix("valid_loss")
    metrics = {key: value for key, value in metrics.items() if key not in ("step", "epoch")}
    return {key.removeprefix(first): value for key, value in metrics.items() if key.startswith(first)}


def default_metric(metrics: Mapping[str, float]) -> str:
    """The metric that ranks trials unless --metric names one."""
    return "exact_match" if "exact_match" in metrics else "valid_loss"


def score(metrics: Mapping[str, float], metric: str) -> float:
    """Objective of a validation, higher is better.

    Ties in exact match or F1 are broken by the loss, as in the choice of a run's best/: for a while the loss
    falls and no answer is right.
    """
    loss = metrics["valid_loss"]
    if metric == "valid_loss":
        return -loss
    return metrics[metric] - 1e-6 * loss / (1 + loss)  # less than one answer in a million


# Results

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}  # in the order of the table
NOT_PRINTED = ("token_accuracy", "perplexity")  # in the CSV file only
NOT_IN_TABLE = ("best_step", "seconds", "error")  # in the line of the trial, too


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Sort trials: complete ones, best first; pruned ones, longest first; failed ones."""

    def key(trial: FrozenTrial) -> tuple[float, ...]:
        steps = trial.user_attrs["steps"] if trial.state.name == "PRUNED" else 0
        best = max(trial.intermediate_values.values(), default=-math.inf)
        return list(STATES).index(trial.state.name), -steps, -best, trial.number

    return sorted(trials, key=key)


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The best complete trial. A pruned one was worse than others at the same validation."""
    return next((trial for trial in ranked(trials) if trial.state.name == "COMPLETE"), None)


def row(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as a row of the results; metrics are missing if it was never validated."""
    attributes = {name: trial.user_attrs[name] for name in ("best_step", "steps", "seconds", "error")}
    head = {"trial": trial.number + 1, "state": STATES[trial.state.name]}
    return head | trial.params | trial.user_attrs["metrics"] | attributes


def printed(trial: FrozenTrial) -> dict[str, str]:
    """The printed cells of the row, with four significant digits."""
    return {
        name: f"{value:.4g}" if isinstance(value, float) and value < 10_000 else str(value)
        for name, value in row(trial).items()
        if name not in NOT_PRINTED and value not in (None, "")
    }


def describe(trial: FrozenTrial) -> str:
    """One line about a trial."""
    (_, number), (_, state), *cells = printed(trial).items()
    return f"trial {number} {state}: " + ", ".join(f"{name} {text}" for name, text in cells)


def table(trials: Sequence[FrozenTrial]) -> list[str]:
    """Lines of the printed table; with three settings and exact match they fit into 80 columns."""
    rows = [printed(trial) for trial in ranked(trials)]
    columns = [name for name in _columns(rows) if name not in NOT_IN_TABLE]
    lines = [columns, *([cells.get(name, "") for name in columns] for cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [" ".join(map(str.rjust, line, widths)) for line in lines]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in all rows, in the order of the longest one."""
    return list(dict.fromkeys([*max(rows, key=len), *(name for row in rows for name in row)]))


def write_csv(trials: Sequence[FrozenTrial], path: Path) -> None:
    """Write a table of all trials, best first."""
    rows = [row(trial) for trial in ranked(trials)]

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _columns(rows))
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def save_picture(trials: Sequence[FrozenTrial], metric: str | None, path: Path) -> bool:
    """Save the figure of `draw_trials`. Returns False without matplotlib or a validated trial."""
    trials = [trial for trial in trials if trial.state.name != "FAIL"]
    if find_spec("matplotlib") is None or not trials:
        return False
    save_figure(draw_trials(trials, metric or default_metric(trials[0].user_attrs["metrics"])), path)
    return True


def draw_trials(trials: Sequence[FrozenTrial], metric: str) -> Figure:
    """A panel for each setting with a point for each validated trial, of which the best one is a star."""
    best, space = best_trial(trials), trials[0].distributions
    figure = new_figure(0.8 + 2.5 * len(space), 3.4)
    panels = figure.subplots(1, len(space), sharey=True, squeeze=False)[0]
    points: dict[str, list[FrozenTrial]] = {kind: [] for kind in _MARKS}
    for trial in trials:
        points["best" if trial is best else STATES[trial.state.name]].append(trial)
    for axes, (name, distribution) in zip(panels, space.items(), strict=True):
        choices = getattr(distribution, "choices", None)
        for kind, chosen in points.items():
            values = [trial.params[name] for trial in chosen]
            x = [choices.index(value) for value in values] if choices else values
            y = [trial.user_attrs["metrics"][metric] for trial in chosen]
            axes.scatter(x, y, label=f"{kind} ({len(chosen)})" if chosen else None, **_MARKS[kind])
        if choices:
            axes.set_xticks(range(len(choices)), list(map(str, choices)))
            axes.margins(x=0.2)
        elif distribution.log:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_ylabel(metric)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return figure


_MARKS: dict[str, dict[str, Any]] = {
    "pruned": {"marker": "o", "facecolors": "none", "edgecolors": "0.5"},
    "complete": {"marker": "o", "color": "C0"},
    "best": {"marker": "*", "color": "C1", "s": 150},
}
