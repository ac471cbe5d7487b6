"""Turns and failures of the worker processes."""

import sys

import pytest

from ftcore.benchmark import worker
from ftcore.benchmark.cases import Case, Job
from ftcore.benchmark.worker import Measurement, measure, measure_in_new_processes


def make_job(backend: str, **changes: object) -> Job:
    values = {"case": Case("greedy", "generate"), "checkpoint": "", "vocab_size": 9, "dtype": "fp32"}
    return Job(backend=backend, **(values | {"device": "cpu", "threads": 1} | changes))


def test_a_job_pads_where_its_case_says():
    padded = {
        padding: [make_job(name, case=Case("", "train", padded=padding)).padded for name in worker.BACKENDS]
        for padding in ("", "transformers", "all")
    }
    ways = ["ftcore", "ftcore-fast", "ftcore-compiled"]
    names = [*ways, "transformers", "transformers-static", "ctranslate2"]
    assert list(worker.BACKENDS) == names
    assert padded == {
        "": [False] * 6,
        "transformers": [n == "transformers" for n in names],
        "all": [True] * 6,
    }


class FakeProcess:
    """Records turns instead of starting a process."""

    turns: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ()

    def __init__(self, python: str) -> None:
        FakeProcess.pythons += (python,)

    def __enter__(self) -> "FakeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, function, *arguments):
        if function is worker.start:
            self.backend = arguments[0].backend
            return "1.0"
        if function is worker.run_round:
            FakeProcess.turns += (self.backend,)
            count = FakeProcess.turns.count(self.backend)
            if self.backend == "fails" and count == 3:
                raise RuntimeError("MemoryError: too large")
            return float(count), [count]
        return 7


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(worker, "WorkerProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "turns", ())
    monkeypatch.setattr(FakeProcess, "pythons", ())


def test_backends_take_turns_and_the_first_round_is_a_warm_up(fake):
    results = measure([make_job("one"), make_job("two", python="other")], 3)
    assert FakeProcess.turns == ("one", "two") * 4
    assert FakeProcess.pythons == ("", "other")
    assert results["one"] == Measurement([2.0, 3.0, 4.0], [1], 7, None, "1.0")
    assert results["two"].seconds == [2.0, 3.0, 4.0]


def test_a_backend_that_fails_has_no_results_and_no_more_turns(fake):
    results = measure([make_job("one"), make_job("fails")], 3)
    assert FakeProcess.turns == ("one", "fails") * 3 + ("one",)
    assert results["fails"] == Measurement(missing="MemoryError: too large")
    assert results["one"].seconds == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(("name", "turns", "seconds"), [("ready-first", 1, [1.0]), ("ready", 3, [2.0, 3.0])])
def test_rounds_in_new_processes_alternate_too(fake, name, turns, seconds):
    jobs = [make_job(backend, case=Case(name, "ready")) for backend in ("one", "two")]
    results = measure_in_new_processes(jobs, 2)
    assert FakeProcess.turns == ("one", "two") * turns
    assert len(FakeProcess.pythons) == 2 * turns
    assert {backend: result.seconds for backend, result in results.items()} == {
        "one": seconds,
        "two": seconds,
    }
    assert results["one"].output is not None


def test_an_error_in_a_process_is_reported(tmp_path):
    missing = make_job("ftcore", case=Case("load", "load"), checkpoint=str(tmp_path / "missing"))
    result = measure([missing], 1)["ftcore"]
    assert result.missing is not None
    assert result.missing.startswith("FileNotFoundError: ")
    assert "missing" in result.missing
    assert result.seconds == []


def test_a_library_that_an_environment_lacks_is_reported(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    job = make_job("onnxruntime", case=Case("load", "load"), checkpoint=str(tmp_path), python=sys.executable)
    assert measure([job], 1)["onnxruntime"].missing == "ModuleNotFoundError: No module named 'optimum'"
