"""Search for good training settings: `python -m ftcore.tune`. The loop is `tune`, below."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ftcore.cli import check_resumed, option, parse, to_argv
from ftcore.metrics import DEFAULT_METRICS, MetricError, metric_names
from ftcore.output import FAILED_RUN, INTERRUPTED, cli_errors, guard_output, log, one_line, progress_bar
from ftcore.training.options import TrainOptions
from ftcore.training.tuning import Distribution, draw_settings, import_optuna, parse_search


@dataclass(kw_only=True)
class TuneOptions(TrainOptions):
    """Search for good training settings: train repeatedly with different settings and compare.

    Take a command line of ftcore.train, replace train by tune and add --search. All other options hold for
    every trial. The search's directory holds the results (trials.csv), their plot (trials.png, if matplotlib
    is installed) and trials/, the run of each trial; only the best one keeps its weights.
    """

    output: str | None = option("runs/tune", "directory of the search", metavar="DIR", resumable=True)
    overwrite: bool = option(False, "replace the search that --output already holds", resumable=True)
    resume: bool = option(
        False,
        "continue the search in --output, with the options it was started with. An interrupted trial starts "
        "again; with more --trials, a finished search continues as well",
        resumable=True,
    )
    seed: int = option(
        0,
        "random seed of the drawn settings and, the same in all trials, of dropout, data order and weights",
        at_least=0,
    )

    search: list[str] | None = option(
        None,
        "NAME=RANGE for each option that is searched: LOW..HIGH for numbers (lr and weight_decay on a "
        "logarithmic scale) or A,B,C for values, as in "
        "lr=1e-4..1e-2 batch_size=8,16,32 schedule=linear,cosine",
        group="Search",
        metavar="NAME=RANGE",
    )
    trials: int = option(20, "number of settings to try", at_least=1, below=10_000, resumable=True)
    halving: int | None = option(
        None,
        "successive halving: after 1, N, N*N ... validations, stop a trial unless it is among the best 1/N "
        "of the trials so far, for example 3",
        at_least=2,
    )
    metric: Literal["exact_match", "f1", "valid_loss"] | None = option(
        None,
        "metric that ranks trials, at their best validation; exact_match and f1 compare answers as in SQuAD "
        "for task qa, else exactly (default: exact_match if the task has answers, else valid_loss). Ties are "
        "broken by the loss",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.check or self.dry_run:
            given = "--check" if self.check else "--dry-run"
            raise ValueError(f"{given} is about one run: python -m ftcore.train {given}")
        if self.metric in DEFAULT_METRICS and self.metric not in metric_names(self.metrics):
            raise ValueError(f"--metric {self.metric} is not among --metrics {' '.join(self.metrics or [])}")
        if not self.search and not self.resume:
            raise ValueError("--search is missing, for example --search lr=1e-4..1e-2 batch_size=8,16,32")
        for name, distribution in parse_search(self.search or []).items():
            for value in getattr(distribution, "choices", None) or (distribution.low, distribution.high):
                try:
                    self.of_trial({name: value})
                except ValueError as error:
                    raise ValueError(f"--search {name}: {error}") from None

    def of_trial(self, settings: dict[str, Any], **others: Any) -> TrainOptions:
        """Options of train for a trial. Raises ValueError if its settings contradict other options."""
        shared = {field.name: getattr(self, field.name) for field in fields(TrainOptions)}
        new_run = {"output": None, "overwrite": False, "resume": False}
        return TrainOptions(**shared | new_run | settings | others)


if __name__ == "__main__":
    guard_output()
    parse(TuneOptions, command="ftcore.tune")  # --help and wrong options, before the slow import of torch

import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from operator import itemgetter
from pathlib import Path

import torch

from ftcore.checkpoints.files import write_atomically, write_json
from ftcore.train import prepare, train
from ftcore.training.callbacks import Callback
from ftcore.training.inputs import load_checkpoint
from ftcore.training.interrupt import Interrupt
from ftcore.training.options import SIZES
from ftcore.training.resize import config_changes, resize
from ftcore.training.run import Run
from ftcore.training.run_directory import RunDirectory, claim, require_free
from ftcore.training.run_files import find_files
from ftcore.training.scoring import count_answers
from ftcore.training.tuning import (
    FrozenTrial,
    Study,
    best_trial,
    default_metric,
    describe,
    finished_trials,
    of_first_set,
    open_journal,
    save_picture,
    score,
    study_in_memory,
    table,
    write_csv,
)

CONFIG = "tune_config.json"  # files in the search's directory, beside trials/
JOURNAL = "journal.log"
TABLE = "trials.csv"
PICTURE = "trials.png"


@dataclass
class Search:
    """State of a search."""

    options: TuneOptions
    directory: Path
    space: dict[str, Distribution]
    plan: list[dict[str, Any]]  # settings of each trial
    study: Study  # trials run here
    journal: Study  # the finished ones, on disk

    def run_directory(self, trial: FrozenTrial) -> RunDirectory:
        return RunDirectory(self.directory / "trials" / f"{trial.number + 1:03d}")


def tune(search: Search) -> None:
    """Train the remaining trials one after another, until the last one or an interrupt."""
    ended = len(finished_trials(search.study))
    bar = progress_bar(total=len(search.plan), initial=ended, desc="trials", unit="trial", file=sys.stdout)
    with bar, Interrupt() as interrupt:
        for settings in search.plan[ended:]:
            trial = run_trial(search, settings, bar)
            if trial is None:
                return
            save_results(search)
            log(describe(trial))
            bar.update()
            torch.cuda.empty_cache()  # fragmented by tensors of this trial's sizes
            if interrupt.requested:
                return


def run_trial(search: Search, settings: dict[str, Any], bar: Any) -> FrozenTrial | None:
    """Train with these settings and record the result. Returns None if the trial was interrupted."""
    optuna = import_optuna()
    search.study.enqueue_trial(settings)
    trial = search.study.ask(search.space)
    output = str(search.run_directory(trial).path)
    reporter = Reporter(trial, search.options.metric, bar)
    warnings = trial.number == 0  # the other trials would repeat them
    state, error, run, start = "COMPLETE", "", None, time.perf_counter()
    try:
        with cli_errors("ftcore.tune"), quiet(warnings=warnings):
            run = prepare(search.options.of_trial(settings, output=output, overwrite=True))
            require_comparable(run, search.options)
        with cli_errors("ftcore.tune", (OSError, MetricError), FAILED_RUN), quiet(warnings=warnings):
            train(run, [reporter])
        if not run.is_finished:
            return None
    except optuna.TrialPruned:
        state = "PRUNED"
    except (FloatingPointError, MemoryError, RuntimeError) as failure:
        if not is_trial_failure(failure):
            raise
        state, error = "FAIL", one_line(failure)
    finally:
        if run is not None:
            run.close()
    value, step, metrics = max(reporter.validations, key=itemgetter(0), default=(None, None, {}))
    trial.set_user_attr("metrics", {key: x for key, x in metrics.items() if math.isfinite(x)})
    trial.set_user_attr("best_step", step)
    trial.set_user_attr("steps", run.progress.step if run else 0)
    trial.set_user_attr("seconds", round(time.perf_counter() - start, 1))
    trial.set_user_attr("error", error)
    value = value if state == "COMPLETE" else None
    finished = search.study.tell(trial, value, optuna.trial.TrialState[state])
    search.journal.add_trial(finished)
    return finished


class Reporter(Callback):
    """Report validations to the pruner, by their number: steps per epoch depend on the batch size."""

    def __init__(self, trial: Any, metric: str | None, bar: Any) -> None:
        self.trial, self.metric, self.bar = trial, metric, bar
        self.validations: list[tuple[float, int, dict[str, float]]] = []  # (score, step, metrics)

    def on_validate(self, run: Run, metrics: dict[str, float]) -> None:
        step = run.progress.step
        if step == 0:  # the untrained model
            return
        metrics = of_first_set(metrics)
        value = score(metrics, self.metric or default_metric(metrics))
        self.bar.set_postfix_str(f"step {step}/{run.total_steps}")
        if not math.isfinite(value):
            raise FloatingPointError(f"the validation loss is {metrics['valid_loss']} after step {step}")
        self.validations.append((value, step, metrics))
        self.trial.report(value, len(self.validations))
        if step < run.total_steps and self.trial.should_prune():
            raise import_optuna().TrialPruned


def require_comparable(run: Run, options: TuneOptions) -> None:
    """Raise ValueError unless the validations of a run have what --metric and --halving need."""
    first = next(iter(run.valid_loaders.values()))
    has_answers = run.options.eval_answers and count_answers(first.dataset)
    if options.metric in ("exact_match", "f1") and not has_answers:
        raise ValueError(f"--metric {options.metric} needs validation examples with answers, found none")
    if options.halving and run.eval_every >= run.total_steps:
        raise ValueError(
            f"--halving compares intermediate validations, but these {run.total_steps} steps have only one, "
            f"at the end: pass --eval-every, for example {max(1, run.total_steps // 9)}"
        )


def is_trial_failure(error: Exception) -> bool:
    """Whether an error may be due to the settings: a non-finite loss, or too little memory."""
    if isinstance(error, FloatingPointError | MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)  # on the CPU


@contextmanager
def quiet(*, warnings: bool) -> Iterator[None]:
    """Discard the output of a run (metrics.jsonl has its figures), and its warnings unless `warnings`."""
    with (
        open(os.devnull, "w") as null,
        redirect_stdout(null),
        redirect_stderr(sys.stderr if warnings else null),
    ):
        yield


def save_results(search: Search) -> None:
    """Write the table, and remove the weights of all trials except the best one."""
    trials = finished_trials(search.study)
    best = best_trial(trials)
    for trial in trials:
        if trial is not best:
            search.run_directory(trial).remove_checkpoints()
    if trials:
        write_csv(trials, search.directory / TABLE)


@contextmanager
def open_search(options: TuneOptions) -> Iterator[Search]:
    """Check all trials, then create or resume the search's directory and lock it.

    Raises:
        ValueError, OSError: invalid options, checkpoint or directory.
    """
    space, directory = parse_search(options.search or []), Path(options.output or "")
    plan = draw_settings(space, options.trials, options.seed)
    trials = [options.of_trial(settings) for settings in plan]
    if space.keys() & set(SIZES):
        require_valid_models(trials)

    def may_use() -> None:
        if not options.resume:
            may_replace = options.overwrite or not (directory / TABLE).exists()  # an empty search is not kept
            require_free(directory, "search", (directory / CONFIG).exists(), may_replace=may_replace)

    with claim(directory, may_use):
        if not options.resume:
            shutil.rmtree(directory / "trials", ignore_errors=True)
            for name in (JOURNAL, TABLE, PICTURE, CONFIG):  # CONFIG last: it marks the directory as a search
                (directory / name).unlink(missing_ok=True)
        saved = asdict(options)
        del saved["resume"], saved["overwrite"]
        write_atomically(directory / CONFIG, lambda path: write_json(path, saved))
        if (directory / TABLE).exists() and not (directory / JOURNAL).exists():
            raise ValueError(f"{directory / JOURNAL} is missing, the search cannot be resumed")
        journal = open_journal(directory / JOURNAL)
        yield Search(options, directory, space, plan, study_in_memory(journal, options.halving), journal)


def require_valid_models(trials: Sequence[TrainOptions]) -> None:
    """Build the model of each trial on the meta device. Raises ValueError if no model has these sizes."""
    name = find_files(trials[0]).model
    model, _ = load_checkpoint(name, from_scratch=trials[0].from_scratch, check=False)
    with torch.device("meta"):
        for options in trials:
            resize(model, config_changes(options, model.config), keep_weights=False)


def print_results(search: Search) -> None:
    """Print the table and save the plot; print how to repeat the best run, and how to resume the search."""
    trials, directory = finished_trials(search.study), search.directory
    if trials:
        log("\n".join(["", *table(trials), ""]))
        log(f"table         {directory / TABLE}")
        if save_picture(trials, search.options.metric, directory / PICTURE):
            log(f"picture       {directory / PICTURE}")
    if best := best_trial(trials):
        options = search.options.of_trial(best.params)
        log(f"best weights  {search.run_directory(best).best}")
        log(f"the same run  {shlex.join(['python', '-m', 'ftcore.train', *to_argv(options)])}")
    if len(trials) < len(search.plan):
        log(f"stopped after {len(trials)} of {len(search.plan)} trials; resume with:")
        log(f"  {shlex.join(['python', '-m', 'ftcore.tune', '--output', str(directory), '--resume'])}")


def parse_options(argv: Sequence[str] | None) -> TuneOptions:
    """Parse the command line; --resume takes the options of the search as defaults.

    Exits where a resumed search is given another value of an option that it cannot change.
    """
    options = parse(TuneOptions, argv, command="ftcore.tune")
    if not options.resume:
        return options
    with cli_errors("ftcore.tune"):
        config = Path(options.output or "", CONFIG)
        if not config.exists():
            raise ValueError(f"{options.output} holds no search to resume (no {CONFIG})")
        given = sys.argv[1:] if argv is None else argv
        options = parse(TuneOptions, ["--config", str(config), *given], command="ftcore.tune")
        saved = parse(TuneOptions, ["--config", str(config)], command="ftcore.tune")
        check_resumed(TuneOptions, asdict(saved), options, f"{options.output}: the search")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    try:
        with ExitStack() as stack:
            with cli_errors("ftcore.tune"):
                search = stack.enter_context(open_search(options))
            log(f"search     {'  '.join(options.search or [])}")
            ended = len(finished_trials(search.study))
            log(f"trials     {len(search.plan)}" + (f", {ended} of them finished" if ended else ""))
            log(f"directory  {search.directory}")
            save_results(search)  # a killed process may not have written the last one
            tune(search)
            print_results(search)
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside of the training loop
        log("interrupted; the finished trials are saved")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
