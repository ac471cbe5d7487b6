"""Turns, medians and quartiles; and what a side's process says."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.benchmark import rounds
from ftcore.benchmark.cases import Case
from ftcore.benchmark.order import Order
from ftcore.benchmark.rounds import Measured, Spread, measure, ratios

seconds = st.floats(1e-6, 1e6)


def order(side: str, **changes: object) -> Order:
    values = {"case": Case("greedy", "generate"), "directory": "", "inputs": "", "dtype": "fp32"}
    return Order(side=side, **(values | {"device": "cpu", "threads": 1} | changes))


@settings(deadline=None, max_examples=60)
@given(st.lists(seconds, min_size=1, max_size=12))
def test_a_quarter_of_the_values_lies_on_either_side_of_the_quartiles(values):
    spread = Spread.of(values)
    assert spread.median == pytest.approx(statistics.median(values))
    below = [value for value in values if value <= spread.low * (1 + 1e-9)]
    above = [value for value in values if value >= spread.high * (1 - 1e-9)]
    assert min(len(below), len(above)) * 4 >= len(values)
    assert spread.low * (1 - 1e-9) <= spread.median <= spread.high * (1 + 1e-9)


def test_the_quartiles_of_five_are_the_second_and_the_fourth():
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_a_ratio_is_taken_round_by_round():
    """The pace of the machine halves in the last two rounds: the ratio does not see it."""
    ours, other = Measured(seconds=[1.0, 1.0, 1.0, 2.0, 2.0]), Measured(seconds=[3.0, 3.0, 3.0, 6.0, 6.0])
    assert ratios(other, ours) == Spread(3.0, 3.0, 3.0)


@settings(deadline=None, max_examples=30)
@given(st.text(), st.integers(0, 9), st.booleans())
def test_an_order_survives_json(text, number, plain):
    case = Case(text, "train", source=number, padded=("ftcore", "transformers"), plain=plain)
    given_order = order("transformers", case=case, directory=text)
    assert Order.from_json(given_order.to_json()) == given_order
    assert given_order.padded


class Actor:
    """A worker without a process: writes down when its turn comes."""

    turns: tuple[str, ...] = ()

    def __init__(self, given_order: Order):
        self.side = given_order.side

    def __enter__(self) -> "Actor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hear(self) -> dict[str, object]:
        return {"ready": True, "version": f"{self.side} 1"}

    def round(self) -> dict[str, object]:
        Actor.turns += (self.side,)
        count = Actor.turns.count(self.side)
        if self.side == "fails" and count == 2:
            return {"error": "MemoryError: too large"}
        return {"seconds": float(count), "result": [count]}

    def end(self) -> dict[str, object]:
        return {"peak_bytes": 7}


def test_sides_take_turns_and_the_first_round_warms_up(monkeypatch):
    monkeypatch.setattr(rounds, "Worker", Actor)
    monkeypatch.setattr(Actor, "turns", ())
    found = measure([order("one"), order("two")], 3)
    assert Actor.turns == ("one", "two") * 4
    assert found["one"] == Measured("one 1", [2.0, 3.0, 4.0], [1], 7, None)
    assert found["two"].seconds == [2.0, 3.0, 4.0]


def test_a_side_that_fails_is_left_out_of_the_next_rounds(monkeypatch):
    monkeypatch.setattr(rounds, "Worker", Actor)
    monkeypatch.setattr(Actor, "turns", ())
    found = measure([order("one"), order("fails")], 3)
    assert Actor.turns == ("one", "fails", "one", "fails", "one", "one")
    assert found["fails"].missing == "MemoryError: too large"
    assert found["one"].seconds == [2.0, 3.0, 4.0]


def test_what_a_process_fails_of_is_told(tmp_path):
    missing = order("ftcore", case=Case("load", "load"), directory=str(tmp_path / "missing"))
    found = measure([missing], 1)["ftcore"]
    assert found.missing is not None
    assert found.missing.startswith("FileNotFoundError: ")
    assert "missing" in found.missing
    assert found.seconds == []


def test_a_process_that_ends_without_a_word_is_an_error_too():
    found = measure([order("no_such_side")], 1)
    assert "no_such_side" in str(found["no_such_side"].missing)
