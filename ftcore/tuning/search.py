"""A search: the settings that all trials are to have, and the record of those that have ended."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from ftcore.training.inputs import load_checkpoint
from ftcore.training.options import SIZES, TrainOptions, find_files
from ftcore.training.resize import config_changes, resize
from ftcore.tuning.journal import (
    Study,
    begin_trial,
    draw,
    end_trial,
    ended_trials,
    open_study,
    require_optuna,
)
from ftcore.tuning.options import TuneOptions
from ftcore.tuning.ranges import Choice, Range
from ftcore.tuning.results import Result, best, results, write_table
from ftcore.tuning.search_directory import SearchDirectory
from ftcore.tuning.watcher import Watcher


@dataclass
class Search:
    """Everything that the loop in tune.py works with."""

    options: TuneOptions
    directory: SearchDirectory
    lock: IO[str]  # whoever has it open is alone at work in the directory
    space: Mapping[str, Range | Choice]  # what is varied, by option
    plan: list[dict[str, Any]]  # the settings of each trial
    study: Study  # the trials so far

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return len(ended_trials(self.study))

    def begin_trial(self) -> tuple[Watcher, TrainOptions]:
        """The next of the plan, and the options of its run."""
        settings = self.plan[self.ended]
        directory = self.directory.trial(self.ended + 1)
        options = self.options.of_trial(settings, output=str(directory.path), overwrite=True)
        return Watcher(begin_trial(self.study, settings, self.space), self.options.metric), options

    def end_trial(self, watcher: Watcher, state: str, error: str = "") -> Result:
        """Write down how it went."""
        end_trial(self.study, watcher.trial, state, watcher.value, watcher.record(error))
        return next(result for result in self.sum_up() if result.trial == self.ended)

    def sum_up(self) -> list[Result]:
        """All results, which are the table; and weights stay on the disk of the best trial alone."""
        found = results(self.study)
        winner = best(found)
        self.directory.keep_weights_of(winner.trial if winner else None, trials=len(found))
        if found:
            write_table(found, self.directory.table)
        return found


def prepare_search(options: TuneOptions) -> Search:
    """Draw the settings, check them, and make (or take up) the search's directory, last.

    Raises:
        ValueError, OSError: an option or a checkpoint is wrong, or optuna is missing; says what to do.
    """
    require_optuna()
    space = options.space
    plan = draw(space, options.trials, options.seed)
    _require_possible(options.of_trial(settings) for settings in plan)

    assert options.output
    if options.resume:
        directory = SearchDirectory.existing(options.output)
    else:
        directory = SearchDirectory.create(options.output, overwrite=options.overwrite)
    lock = directory.lock()
    if not options.resume:
        directory.remove_files()
    directory.save_options(options)  # before anything else: they make the directory a search, to go on with
    study = open_study(directory.journal, options.halving)
    return Search(options, directory, lock, space, plan, study)


def _require_possible(trials: Iterable[TrainOptions]) -> None:
    """Build every model that the trials are about, without memory.

    Raises:
        ValueError: no model has such sizes.
    """
    changed = {tuple(getattr(options, name) for name in SIZES): options for options in trials}
    if all(size is None for sizes in changed for size in sizes):
        return
    some = next(iter(changed.values()))
    model, _ = load_checkpoint(find_files(some).model, from_scratch=some.from_scratch)
    with torch.device("meta"):
        for options in changed.values():
            resize(model, config_changes(options, model.config), keep_weights=False)
