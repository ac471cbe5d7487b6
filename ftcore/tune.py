"""Search for good settings of a training: `python -m ftcore.tune`. The search is `tune`, below."""

from ftcore.cli import FAILED_RUN, INTERRUPTED, cli_errors, parse, to_argv
from ftcore.tuning.options import TuneOptions

if __name__ == "__main__":
    parse(TuneOptions, command="ftcore.tune")  # --help and typing errors, before the slow import of torch

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch
from tqdm import tqdm

from ftcore.train import prepare, train
from ftcore.training.interrupt import Interrupt
from ftcore.training.options import TrainOptions
from ftcore.tuning.journal import COMPLETE, FAILED, PRUNED
from ftcore.tuning.picture import save_picture
from ftcore.tuning.results import best, table
from ftcore.tuning.search import Search, prepare_search
from ftcore.tuning.search_directory import SearchDirectory
from ftcore.tuning.watcher import PrunedError, Watcher, require_comparable


def tune(search: Search) -> None:
    """Train with the settings of each trial that has not ended yet, until the last one or an interrupt."""
    bar = tqdm(total=len(search.plan), initial=search.ended, desc="trials", unit="trial", file=sys.stdout)
    with bar, Interrupt() as interrupt:
        while search.ended < len(search.plan) and not interrupt.requested:
            watcher, options = search.begin_trial()
            try:
                if not run_trial(search, watcher, options, bar):
                    return
                result = search.end_trial(watcher, COMPLETE)
            except PrunedError:
                result = search.end_trial(watcher, PRUNED)
            except (FloatingPointError, MemoryError, RuntimeError) as error:
                if not fails_alone(error):
                    raise
                result = search.end_trial(watcher, FAILED, error=one_line(error))
            tell(str(result))
            bar.update()
            torch.cuda.empty_cache()  # what one trial has left free is in pieces; the next has other sizes


def run_trial(search: Search, watcher: Watcher, options: TrainOptions, bar: tqdm) -> bool:
    """One run of train, which the watcher may end by an exception; False if it was interrupted."""
    number = search.ended + 1

    def watch(metrics: dict[str, float]) -> None:
        bar.set_postfix_str(f"trial {number} at step {run.progress.step} of {run.total_steps}")
        watcher.look(run, metrics)

    warnings = number == 1  # those of the first trial hold for all
    with cli_errors("ftcore.tune"), quiet(warnings=warnings):
        run = prepare(options)
        require_comparable(run, metric=search.options.metric, halving=search.options.halving)
    with cli_errors("ftcore.tune", (OSError,), FAILED_RUN), quiet(warnings=warnings):
        try:
            train(run, watch)
        finally:
            watcher.steps = run.progress.step
    return run.progress.step == run.total_steps


def fails_alone(error: Exception) -> bool:
    """Whether other settings may do better: what has no finite loss, or no room in memory, is an answer."""
    if isinstance(error, FloatingPointError | MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)  # of the CPU


@contextmanager
def quiet(*, warnings: bool) -> Iterator[None]:
    """Without what a run says: its metrics.jsonl has it."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(nowhere))
        if not warnings:
            stack.enter_context(redirect_stderr(nowhere))
        yield


def tell(line: str) -> None:
    """Print without tearing the progress bar."""
    tqdm.write(line, file=sys.stdout)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def introduce(search: Search) -> None:
    """What will be tried."""
    for line, (name, varied) in enumerate(search.space.items()):
        tell(f"{'' if line else 'search':<10} {name}: {varied}")
    tell(f"trials     {len(search.plan)}" + (f", {search.ended} of them have ended" if search.ended else ""))
    if rate := search.options.halving:
        rungs = f"1, {rate}, {rate**2} ..."
        tell(f"halving    after {rungs} validations only the best of every {rate} trials go on")
    tell(f"directory  {search.directory.path}")


def conclude(search: Search) -> None:
    """The table, the picture, and how to go on."""
    found, directory = search.sum_up(), search.directory
    if found:
        tell("\n".join(["", *table(found), ""]))
        tell(f"table         {directory.table}")
        if save_picture(found, search.space, directory.picture):
            tell(f"picture       {directory.picture}")
    if winner := best(found):
        options = search.options.of_trial(winner.settings)
        tell(f"best weights  {directory.trial(winner.trial).best}")
        tell(f"the same run  {shlex.join(['python', '-m', 'ftcore.train', *to_argv(options)])}")
    if search.ended < len(search.plan):
        tell(f"stopped after {search.ended} of {len(search.plan)} trials; go on with:")
        tell(f"  python -m ftcore.tune --output {directory.path} --resume")


def options_of(argv: Sequence[str] | None) -> TuneOptions:
    """The command line's options; those of a search to resume come from its directory."""
    options = parse(TuneOptions, argv, command="ftcore.tune")
    if not options.resume:
        return options
    with cli_errors("ftcore.tune"):
        assert options.output
        config = ["--config", str(SearchDirectory.existing(options.output).config)]
        given = list(sys.argv[1:] if argv is None else argv)
        options = parse(TuneOptions, [*config, *given], command="ftcore.tune")
        options.require_same_search(parse(TuneOptions, config, command="ftcore.tune"))
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = options_of(argv)
    try:
        with cli_errors("ftcore.tune"):
            search = prepare_search(options)
        with search.lock:
            introduce(search)
            tune(search)
            conclude(search)
    except KeyboardInterrupt:  # while steps are taken, `Interrupt` answers it
        tell("interrupted; the trials that had ended are saved")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
