"""Turns and failures of the worker processes."""

import os
from concurrent.futures import Future
from functools import partial

import pytest

from ftcore.benchmark import worker
from ftcore.benchmark.cases import Case, Job
from ftcore.benchmark.worker import Measurement, measure


def make_job(backend: str, **changes: object) -> Job:
    values = {"case": Case("greedy", "generate"), "checkpoint": "", "vocab_size": 9, "dtype": "fp32"}
    return Job(backend=backend, **(values | {"device": "cpu", "threads": 1} | changes))


def test_a_job_pads_where_its_case_says():
    padded = {
        padding: [make_job(name, case=Case("", "train", padded=padding)).padded for name in worker.BACKENDS]
        for padding in ("", "transformers", "all")
    }
    assert list(worker.BACKENDS) == ["ftcore", "ftcore-fast", "transformers", "ctranslate2"]
    assert padded == {"": [False] * 4, "transformers": [False, False, True, False], "all": [True] * 4}


class FakeExecutor:
    """Records turns instead of starting a process."""

    turns: tuple[str, ...] = ()

    def __init__(self, *_: object, **__: object) -> None:
        self.backend = ""

    def __enter__(self) -> "FakeExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        if function is worker.start:
            self.backend = arguments[0].backend
            future.set_result(None)
        elif function is worker.run_round:
            FakeExecutor.turns += (self.backend,)
            count = FakeExecutor.turns.count(self.backend)
            if self.backend == "fails" and count == 3:
                future.set_exception(MemoryError("too large\nby far"))
            else:
                future.set_result((float(count), [count]))
        else:
            future.set_result(7)
        return future


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(worker, "ProcessPoolExecutor", FakeExecutor)
    monkeypatch.setattr(FakeExecutor, "turns", ())


def test_backends_take_turns_and_the_first_round_is_a_warm_up(fake):
    results = measure([make_job("one"), make_job("two")], 3)
    assert FakeExecutor.turns == ("one", "two") * 4
    assert results["one"] == Measurement([2.0, 3.0, 4.0], [1], 7, None)
    assert results["two"].seconds == [2.0, 3.0, 4.0]


def test_a_backend_that_fails_has_no_results_and_no_more_turns(fake):
    results = measure([make_job("one"), make_job("fails")], 3)
    assert FakeExecutor.turns == ("one", "fails") * 3 + ("one",)
    assert results["fails"] == Measurement(missing="MemoryError: too large")
    assert results["one"].seconds == [2.0, 3.0, 4.0]


def test_an_error_in_a_process_is_reported(tmp_path):
    missing = make_job("ftcore", case=Case("load", "load"), checkpoint=str(tmp_path / "missing"))
    result = measure([missing], 1)["ftcore"]
    assert result.missing is not None
    assert result.missing.startswith("FileNotFoundError: ")
    assert "missing" in result.missing
    assert result.seconds == []


def test_a_killed_worker_is_reported(monkeypatch):
    monkeypatch.setattr(worker, "initialize", partial(os._exit, 3))
    assert "BrokenProcessPool: " in str(measure([make_job("ftcore")], 1)["ftcore"].missing)
