"""What --search may say: ranges and values of the type of train's option, and one line for what is wrong."""

import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.training.options import TrainOptions
from ftcore.tuning.options import TuneOptions
from ftcore.tuning.ranges import SEARCHABLE, Choice, Range, read_search

rates = st.floats(1e-9, 1e9)


def test_the_words_of_a_command_line() -> None:
    words = "lr=1e-4..1e-2 batch-size=8,16,32 --dropout=0.0..0.3 schedule=linear,cosine num_layers=2..6"
    assert read_search(words.split()) == {
        "lr": Range(1e-4, 1e-2, whole=False, logarithmic=True),
        "batch_size": Choice((8, 16, 32)),
        "dropout": Range(0.0, 0.3, whole=False, logarithmic=False),
        "schedule": Choice(("linear", "cosine")),
        "num_layers": Range(2, 6, whole=True, logarithmic=False),
    }


def test_types_are_those_of_trains_options() -> None:
    read = read_search(["relative_steps=true,false", "warmup=0,100,0.1", "clip_norm=0,1", "epochs=1,3"])
    assert [choice.values for choice in read.values()] == [(True, False), (0, 100, 0.1), (0.0, 1.0), (1, 3)]
    assert [type(value) for value in read["warmup"].values] == [int, int, float]
    assert [type(value) for value in read["clip_norm"].values] == [float, float]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["lr", "weight_decay", "clip_norm"]),
    ends=st.lists(rates, min_size=2, max_size=2, unique=True),
)
def test_any_range_of_numbers_comes_back(name: str, ends: list[float]) -> None:
    low, high = sorted(ends)
    read = read_search([f"{name}={low!r}..{high!r}"])[name]
    assert read == Range(low, high, whole=False, logarithmic=name != "clip_norm")
    with pytest.raises(ValueError, match="the lower end first"):
        read_search([f"{name}={high!r}..{low!r}"])


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["batch_size", "num_layers", "d_ff"]),
    values=st.lists(st.integers(1, 10**6), min_size=2, max_size=5, unique=True),
)
def test_whole_numbers_stay_whole(name: str, values: list[int]) -> None:
    read = read_search([f"{name}={','.join(map(str, values))}"])[name]
    assert read == Choice(tuple(values)) and read.size == len(values)
    low, high = min(values), max(values)
    read = read_search([f"{name}={low}..{high}"])[name]
    assert read == Range(low, high, whole=True, logarithmic=False) and read.size == high - low + 1
    assert type(read.low) is type(read.high) is int


def test_all_that_is_searchable_is_an_option_of_train_with_values_to_choose_from() -> None:
    kinds = typing.get_type_hints(TrainOptions)
    assert set(SEARCHABLE) <= kinds.keys() and len(set(SEARCHABLE)) == len(SEARCHABLE)
    assert read_search(["lr=1e-4..1e-2"])["lr"].size == math.inf


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("learning_rate=1e-4..1e-2", "train has no option 'learning_rate'"),
        ("bach_size=8,16", "train has no option 'bach_size', did you mean 'batch_size'?"),
        ("=1,2", "train has no option ''"),
        ("output=a,b", "output is not to be varied, only num_layers"),
        ("seed=1,2", "seed is not to be varied"),
        ("lr", "'' is no number"),
        ("lr=", "'' is no number"),
        ("lr=fast,slow", "'fast' is no number"),
        ("lr=1e-4..", "'' is no number"),
        ("lr=1e-4..nan", "'nan' is no finite number"),
        ("lr=1e-3", "one value is nothing to search: pass --lr"),
        (
            "lr=0..1e-2",
            "a range of lr is logarithmic and has no 0: begin above it, or list values, as in lr=0,0.001",
        ),
        ("weight_decay=0..0.1", "weight_decay=0,0.01,0.1"),
        ("lr=1e-2..1e-4", "expected LOW..HIGH, the lower end first"),
        ("batch_size=8.5,16", "'8.5' is no whole number"),
        ("num_layers=1..2.5", "'2.5' is no whole number"),
        ("batch_size=8,16,8", "8 is there twice"),
        ("schedule=linear,cosin", "'cosin' is none of linear, cosine, constant, did you mean 'cosine'?"),
        ("schedule=linear..cosine", "only numbers have a range, expected values with commas between them"),
        ("relative_steps=true,maybe", "'maybe' is neither true nor false"),
        ("relative_steps=false..true", "only numbers have a range"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        read_search([text])
    message = str(error.value)
    assert message.startswith(f"--search {text}: ") and complaint in message and "\n" not in message


def test_an_option_can_be_varied_in_one_way_only() -> None:
    with pytest.raises(ValueError, match=r"--search lr=1,2: lr is there twice"):
        read_search(["lr=1e-4..1e-2", "lr=1,2"])


@pytest.mark.parametrize(
    ("search", "others", "complaint"),
    [
        ("dropout=0..1", {}, "--search dropout: --dropout is 1.0, expected from 0 to below 1"),
        ("batch_size=0..8", {}, "--search batch_size: --batch-size is 0, expected at least 1"),
        ("lora_alpha=1,2", {}, "--search lora_alpha: --lora-alpha needs --lora-rank"),
        ("lora_rank=2,4", {"freeze": ["encoder"]}, "--search lora_rank: --lora-rank contradicts --freeze"),
    ],
)
def test_values_are_checked_as_those_of_train_are(search: str, others: dict, complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        TuneOptions(search=[search], **others)
    assert complaint in str(error.value)


def test_the_options_of_a_trial() -> None:
    options = TuneOptions(search=["lr=1e-4..1e-2"], lr=3e-4, batch_size=4, output="runs/x", overwrite=True)
    assert options.of_trial({"lr": 0.005}) == TrainOptions(lr=0.005, batch_size=4)  # what is varied overrides
    assert options.of_trial({"lr": 0.005}, output="here").output == "here"
