"""What is tried, and the record of it: optuna's sampler, pruner and journal. Optuna is the extra `tune`."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import write_atomically
from ftcore.tuning.ranges import Choice, Range

Study = Any  # optuna.Study

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
STATES = {
    COMPLETE: "COMPLETE",
    PRUNED: "PRUNED",
    FAILED: "FAIL",
}  # how a trial can end, and optuna's names for it

_NAME = "search"


def require_optuna() -> None:
    """
    Raises:
        ValueError: it is not installed; says what to do.
    """
    if find_spec("optuna") is None:
        raise ValueError('optuna is not installed, and is what searches: pip install -e ".[tune]"')
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def distributions(space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """The space in optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(varied: Range | Choice) -> Any:
        if isinstance(varied, Choice):
            return CategoricalDistribution(varied.values)
        if varied.whole:
            return IntDistribution(int(varied.low), int(varied.high), log=varied.logarithmic)
        return FloatDistribution(varied.low, varied.high, log=varied.logarithmic)

    return {name: of(varied) for name, varied in space.items()}


def draw(space: Mapping[str, Range | Choice], trials: int, seed: int) -> list[dict[str, Any]]:
    """The settings of all trials: random search, repeatable, and the same ones first if more are asked for.

    Numbers have three digits, as people write them. Where the space is finite, nothing is drawn twice, since
    it would give the same figures again; so there may be fewer settings than `trials`.
    """
    import optuna

    sampler = optuna.samplers.RandomSampler(seed=seed % 2**32)  # numpy takes no larger one
    study = optuna.create_study(sampler=sampler)
    possible = math.prod(varied.size for varied in space.values())
    drawn: list[dict[str, Any]] = []
    while len(drawn) < min(trials, possible):
        values = study.ask(distributions(space)).params
        settings = {name: _rounded(values[name], varied) for name, varied in space.items()}
        if possible == math.inf or settings not in drawn:
            drawn.append(settings)
    return drawn


def _rounded(value: Any, varied: Range | Choice) -> Any:
    if isinstance(varied, Choice) or varied.whole:
        return value
    return min(max(float(f"{value:.3g}"), varied.low), varied.high)


def open_study(path: Path, halving: int | None) -> Study:
    """The study of this journal as it was after its last finished trial; a new one if there is no journal.

    What a kill left goes: half a line, a lock, and above all the trial that was under way, whose first
    figures the others would be compared with.

    Raises:
        ValueError: the journal is damaged.
    """
    import optuna

    finished = []
    if path.exists():
        try:
            finished = ended_trials(optuna.load_study(study_name=_NAME, storage=_storage(path)))
        except Exception as error:  # a line that is no JSON, a key that is missing ...
            raise ValueError(f"{path}: damaged, the search cannot be resumed ({error})") from None
    for lock in path.parent.glob(f"*{path.name}*.lock"):  # a search is locked as a whole
        lock.unlink()

    def write(beside: Path) -> None:
        study = optuna.create_study(study_name=_NAME, storage=_storage(beside), direction="maximize")
        study.add_trials(finished)

    write_atomically(path, write)
    pruner = (
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=halving)
        if halving
        else optuna.pruners.NopPruner()
    )
    return optuna.load_study(study_name=_NAME, storage=_storage(path), pruner=pruner)


def _storage(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def begin_trial(study: Study, settings: dict[str, Any], space: Mapping[str, Range | Choice]) -> Any:
    """The next trial, an optuna.Trial, with these settings."""
    study.enqueue_trial(settings)
    return study.ask(distributions(space))


def end_trial(study: Study, trial: Any, state: str, value: float, record: Mapping[str, Any]) -> None:
    """`state` is one of `STATES`; `record` is what `results` reads back."""
    from optuna.trial import TrialState

    for name, entry in record.items():
        trial.set_user_attr(name, entry)
    if state == COMPLETE:
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState[STATES[state]])


def ended_trials(study: Study) -> list[Any]:
    """As optuna.FrozenTrial, in the order in which they came."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
