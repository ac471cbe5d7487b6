"""The syntax of --search (lr=1e-4..1e-2 batch_size=8,16,32), and drawing settings at random."""

import math
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from ftcore.cli import did_you_mean, flag
from ftcore.training.options import TrainOptions

# Option of train -> True, or "log" if its ranges are logarithmic. Options that define the task or the metrics
# cannot be searched, since trials would not be comparable.
SEARCHABLE = {
    field.name: field.metadata["searchable"] for field in fields(TrainOptions) if field.metadata["searchable"]
}

Distribution = Any  # optuna.distributions.BaseDistribution


def import_optuna() -> Any:
    """Import Optuna, an optional dependency; its log shows warnings only.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError('a search needs optuna, which is not installed: pip install -e ".[tune]"') from None
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
            raise ValueError(f"--search {text}: {error}") from None
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
    raise ValueError(f"{text!r} is not a value of {flag(name)}{did_you_mean(text, literals)}")


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
