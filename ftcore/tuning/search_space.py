"""What a search varies, as the command line says it: `lr=1e-4..1e-2`, `batch_size=8,16,32`."""

import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal

from ftcore.cli import did_you_mean, flag
from ftcore.training.options import TrainOptions

# The options of train that may be varied: not those that say what is learnt and how it is measured, for then
# trials could not be compared.
SEARCHABLE = tuple(field.name for field in fields(TrainOptions) if field.metadata["searchable"])
LOGARITHMIC = tuple(field.name for field in fields(TrainOptions) if field.metadata["searchable"] == "log")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool  # integers alone
    logarithmic: bool  # each factor is as likely as any other, not each difference

    @property
    def examples(self) -> tuple[float, float]:
        """Values with which all are right or wrong."""
        return self.low, self.high

    @property
    def size(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.logarithmic else "")


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        return self.values

    @property
    def size(self) -> float:
        return len(self.values)

    def __str__(self) -> str:
        return " ".join(map(str, self.values))


def read_search(texts: Iterable[str]) -> dict[str, Range | Choice]:
    """The words behind --search, by option.

    Raises:
        ValueError: no such option, one that is not to be varied, or values that it cannot have.
    """
    search: dict[str, Range | Choice] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        try:
            if name not in SEARCHABLE:
                raise ValueError(_not_searchable(name))
            if name in search:
                raise ValueError(f"{name} is there twice")
            search[name] = _range(name, values) if ".." in values else _choice(name, values)
        except ValueError as error:
            raise ValueError(f"--search {text}: {error}") from None
    return search


def _not_searchable(name: str) -> str:
    if name in typing.get_type_hints(TrainOptions):
        return f"{name} is not to be varied, only {', '.join(SEARCHABLE)}"
    return f"train has no option {name!r}{did_you_mean(name, SEARCHABLE)}"


def _range(name: str, text: str) -> Range:
    ends = text.split("..", maxsplit=1)
    if not {int, float} & set(_kinds(name)):
        raise ValueError("only numbers have a range, expected values with commas between them")
    low, high = (_value(name, end) for end in ends)
    if not low < high:
        raise ValueError("expected LOW..HIGH, the lower end first")
    if name in LOGARITHMIC and low <= 0:
        raise ValueError(
            f"a range of {name} is logarithmic and has no 0: begin above it, or list values, as in "
            f"{name}=0,{high / 10:g},{high:g}"
        )
    return Range(
        low, high, whole=isinstance(low, int) and isinstance(high, int), logarithmic=name in LOGARITHMIC
    )


def _choice(name: str, text: str) -> Choice:
    values = [_value(name, part) for part in text.split(",")]
    if len(values) == 1:
        raise ValueError(f"one value is nothing to search: pass {flag(name)}, or LOW..HIGH or A,B,C here")
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} is there twice")
    return Choice(tuple(values))


def _value(name: str, text: str) -> Any:
    """A text as the type of this option of train has it."""
    kinds = _kinds(name)
    if typing.get_origin(kinds[0]) is Literal:
        choices = typing.get_args(kinds[0])
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}{did_you_mean(text, choices)}")
        return text
    if kinds == [bool]:
        if text not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text == "true"
    if int in kinds and text.isdecimal():
        return int(text)
    if float not in kinds:
        raise ValueError(f"{text!r} is no whole number")
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no finite number")
    return number


def _kinds(name: str) -> list[Any]:
    """The types of an option of train: [int, float] for `int | float | None`."""
    hint = typing.get_type_hints(TrainOptions)[name]
    if typing.get_origin(hint) is Literal:
        return [hint]
    return [kind for kind in typing.get_args(hint) or (hint,) if kind is not NoneType]
