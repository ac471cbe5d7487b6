"""The syntax of --search, and drawing settings from it."""

import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.training.options import TrainOptions
from ftcore.training.tuning import SEARCHABLE, draw_settings, parse_search
from ftcore.tune import TuneOptions

pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = [
    "lr=1e-4..1e-2",
    "dropout=0..0.3",
    "batch_size=8,16,32",
    "num_layers=2..4",
    "relative_steps=true,false",
]


# Syntax


def test_ranges_and_choices() -> None:
    words = "lr=1e-4..1e-2 batch-size=8,16,32 --dropout=0.0..0.3 schedule=linear,cosine num_layers=2..6"
    assert parse_search(words.split()) == {
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "batch_size": CategoricalDistribution((8, 16, 32)),
        "dropout": FloatDistribution(0.0, 0.3),
        "schedule": CategoricalDistribution(("linear", "cosine")),
        "num_layers": IntDistribution(2, 6),
    }


def test_values_have_the_types_of_the_options() -> None:
    space = parse_search(["relative_steps=true,false", "warmup=0,100,0.1", "clip_norm=0,1", "epochs=1,3"])
    values = [choice.choices for choice in space.values()]
    assert values == [(True, False), (0, 100, 0.1), (0.0, 1.0), (1, 3)]
    assert [type(value) for value in values[1]] == [int, int, float]
    assert [type(value) for value in values[2]] == [float, float]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["lr", "weight_decay", "clip_norm"]),
    ends=st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=2, unique=True),
)
def test_any_range_of_floats(name: str, ends: list[float]) -> None:
    low, high = sorted(ends)
    expected = FloatDistribution(low, high, log=name != "clip_norm")
    assert parse_search([f"{name}={low!r}..{high!r}"])[name] == expected
    with pytest.raises(ValueError, match="the lower end first"):
        parse_search([f"{name}={high!r}..{low!r}"])


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["batch_size", "num_layers", "d_ff"]),
    values=st.lists(st.integers(1, 10**6), min_size=2, max_size=5, unique=True),
)
def test_any_integers(name: str, values: list[int]) -> None:
    text = ",".join(map(str, values))
    assert parse_search([f"{name}={text}"])[name] == CategoricalDistribution(values)
    low, high = min(values), max(values)
    assert parse_search([f"{name}={low}..{high}"])[name] == IntDistribution(low, high)


def test_every_searchable_number_has_ranges() -> None:
    for name, hint in typing.get_type_hints(TrainOptions).items():
        if name in SEARCHABLE and {int, float} & set(typing.get_args(hint) or [hint]):
            assert parse_search([f"{name}=1..2"])[name].high == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate=1e-4..1e-2", "'learning_rate' cannot be searched"),
        ("bach_size=8,16", "'bach_size' cannot be searched, did you mean 'batch_size'?"),
        ("=1,2", "'' cannot be searched"),
        ("output=a,b", "'output' cannot be searched, only num_layers"),
        ("seed=1,2", "'seed' cannot be searched"),
        ("lr", "'' is not a value of `lr`"),
        ("lr=", "'' is not a value of `lr`"),
        ("lr=fast,slow", "'fast' is not a value of `lr`"),
        ("lr=1e-4..", "'' is not a value of `lr`"),
        ("lr=1e-4..nan", "expected LOW..HIGH, the lower end first"),
        ("lr=1e-3", "expected LOW..HIGH, or at least two different values"),
        (
            "lr=0..1e-2",
            "a range of lr is logarithmic and must begin above 0; a list may contain 0, as in lr=0,0.001",
        ),
        ("weight_decay=0..0.1", "weight_decay=0,0.01,0.1"),
        ("lr=1e-2..1e-4", "expected LOW..HIGH, the lower end first"),
        ("batch_size=8.5,16", "'8.5' is not a value of `batch_size`"),
        ("num_layers=1..2.5", "'2.5' is not a value of `num_layers`"),
        ("batch_size=8,16,8", "at least two different values"),
        ("schedule=linear,cosin", "'cosin' is not a value of `schedule`, did you mean 'cosine'?"),
        ("schedule=linear..cosine", "only numbers have a range, expected values separated by commas"),
        ("relative_steps=true,maybe", "'maybe' is not a value of `relative_steps`"),
        ("relative_steps=false..true", "only numbers have a range"),
    ],
)
def test_errors_take_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_search([text])
    line = str(error.value)
    assert line.startswith(f"`search` {text}: ") and message in line and "\n" not in line


def test_an_option_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"`search` lr=1,2: lr is given twice"):
        parse_search(["lr=1e-4..1e-2", "lr=1,2"])


@pytest.mark.parametrize(
    ("search", "others", "message"),
    [
        ("dropout=0..1", {}, "--search dropout: --dropout is 1.0, expected from 0 to below 1"),
        ("batch_size=0..8", {}, "--search batch_size: --batch-size is 0, expected at least 1"),
        ("lr=1,inf", {}, "--search lr: --lr is inf"),
        ("lora_alpha=1,2", {}, "--search lora_alpha: --lora-alpha needs --lora-rank"),
        ("lora_rank=2,4", {"freeze": ["encoder"]}, "--search lora_rank: --lora-rank contradicts --freeze"),
    ],
)
def test_values_are_checked_as_options_of_train(search: str, others: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        TuneOptions(search=[search], **others)
    assert message in str(error.value)


def test_options_of_a_trial() -> None:
    options = TuneOptions(search=["lr=1e-4..1e-2"], lr=3e-4, batch_size=4, output="runs/x", overwrite=True)
    assert options.of_trial({"lr": 0.005}) == TrainOptions(lr=0.005, batch_size=4)  # overrides --lr
    assert options.of_trial({"lr": 0.005}, output="here").output == "here"


# Drawing


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), more=st.integers(0, 12))
def test_a_seed_gives_the_same_settings_for_any_number_of_trials(seed: int, count: int, more: int) -> None:
    space = parse_search(SPACE)
    drawn = draw_settings(space, count, seed)
    assert len(drawn) == count
    assert draw_settings(space, count + more, seed)[:count] == drawn
    assert draw_settings(space, 1, 2**63 - 1)  # the largest seed of train
    assert seed == 0 or draw_settings(space, count, 0)[0] != drawn[0]


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_drawn_values_lie_in_their_ranges_and_have_their_types(seed: int) -> None:
    space = parse_search(SPACE)
    for drawn in draw_settings(space, 5, seed):
        assert drawn.keys() == space.keys()
        assert 1e-4 <= drawn["lr"] <= 1e-2 and 0 <= drawn["dropout"] <= 0.3
        assert drawn["lr"] == float(f"{drawn['lr']:.3g}")
        assert drawn["batch_size"] in (8, 16, 32) and type(drawn["batch_size"]) is int
        assert drawn["num_layers"] in (2, 3, 4) and type(drawn["num_layers"]) is int
        assert type(drawn["relative_steps"]) is bool


def test_learning_rates_are_log_uniform() -> None:
    drawn = draw_settings(parse_search(["lr=1e-4..1e-2"]), 400, 0)
    below = sum(math.log10(settings["lr"]) < -3 for settings in drawn)
    assert 150 < below < 250  # half of 400, within 5 standard deviations


def test_rounding_stays_inside_a_narrow_range() -> None:
    drawn = draw_settings({"lr": FloatDistribution(0.123456, 0.123457, log=True)}, 5, 0)
    assert {settings["lr"] for settings in drawn} == {0.123456}


@pytest.mark.parametrize("trials", [6, 100])
def test_settings_of_a_finite_space_are_distinct(trials: int) -> None:
    drawn = draw_settings(parse_search(["batch_size=8,16", "num_layers=1..3"]), trials, 0)
    assert len(drawn) == 6 and len({tuple(settings.values()) for settings in drawn}) == 6
