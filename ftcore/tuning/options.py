"""The options of `python -m ftcore.tune`: those of train, and what to vary."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from ftcore.cli import flag, option
from ftcore.training.options import TrainOptions
from ftcore.tuning.ranges import Choice, Range, read_search


@dataclass
class TuneOptions(TrainOptions):
    """Search for good settings of a training: train again and again, each time with others, and compare.

    Take a command line of ftcore.train, write tune for train and add --search. The other options hold for
    all trials. In the search's directory are afterwards the table of the trials (trials.csv), a picture of it
    (trials.png, with matplotlib installed) and trials/, the run of each; only the best keeps its weights.
    """

    output: str | None = option(
        "runs/tune",
        "directory of the search",
        metavar="DIR",
        resumable=True,
    )
    overwrite: bool = option(False, "replace the search that --output already holds", resumable=True)
    resume: bool = option(
        False,
        "go on with the search in --output, with the options it was started with. A trial that was "
        "interrupted begins again; with more --trials, a finished search goes on as well",
        resumable=True,
    )

    seed: int = option(
        0,
        "of dropout, data order and random weights, the same in all trials, and of what is drawn from "
        "the ranges",
        at_least=0,
    )

    search: list[str] | None = option(
        None,
        "NAME=RANGE for each option that is varied, and overrides it: LOW..HIGH for numbers (those of "
        "lr and weight_decay are drawn on a logarithmic scale) or A,B,C for values, as in "
        "lr=1e-4..1e-2 batch_size=8,16,32 schedule=linear,cosine",
        group="Search",
        metavar="NAME=RANGE",
    )
    trials: int = option(20, "how many settings are tried", at_least=1, resumable=True)
    halving: int | None = option(
        None,
        "successive halving: when a trial has been validated once, N times, N*N times and so on, it "
        "is ended unless it is among the best 1/N of those that came so far. 3, say",
        at_least=2,
    )
    metric: Literal["exact_match", "f1", "valid_loss"] | None = option(
        None,
        "what makes a trial better: the best that a validation of it shows (default: exact_match "
        "where the task has answers, else valid_loss). Between equal exact matches the loss decides",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.check or self.dry_run:
            asked = "--check" if self.check else "--dry-run"
            raise ValueError(f"{asked} is about one run: python -m ftcore.train {asked}")
        if not self.search and not self.resume:
            raise ValueError(
                "--search is missing: say what to vary, as in --search lr=1e-4..1e-2 batch_size=8,16,32"
            )
        for name, varied in self.space.items():
            for value in varied.examples:
                try:
                    self.of_trial({name: value})
                except ValueError as error:
                    raise ValueError(f"--search {name}: {error}") from None

    @property
    def space(self) -> dict[str, Range | Choice]:
        """What is varied, by option."""
        return read_search(self.search or [])

    def of_trial(self, settings: dict[str, Any], **others: Any) -> TrainOptions:
        """The options of a run of train that has these settings.

        Raises:
            ValueError: they contradict each other or the options that hold for all trials.
        """
        shared = {field.name: getattr(self, field.name) for field in fields(TrainOptions)}
        of_search = {"output": None, "overwrite": False, "resume": False}
        return TrainOptions(**shared | of_search | settings | others)

    def require_same_search(self, saved: "TuneOptions") -> None:
        """Refuse to go on with a search that was started with other options.

        Raises:
            ValueError: names the first that differs.
        """
        for field in fields(self):
            name, before, now = field.name, getattr(saved, field.name), getattr(self, field.name)
            if not field.metadata["resumable"] and now != before:
                words = flag(name)
                raise ValueError(
                    f"{self.output}: the search was started with {words} {_in_words(before)}, it cannot "
                    f"go on with {words} {_in_words(now)}: choose another --output, or --overwrite"
                )


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
