"""The names in --metrics, and metrics that are a user's own functions."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftcore.metrics import MetricError, compute, metric_names


def test_names_of_metrics_are_separated_by_spaces_or_commas() -> None:
    assert metric_names(None) == ["exact_match", "f1"]
    assert metric_names(["rouge,f1", "bleu", "rouge", "my.pkg:score,"]) == [
        "rouge",
        "f1",
        "bleu",
        "my.pkg:score",
    ]


@pytest.mark.parametrize("name", ["roug", "my_module", "a:b:c", ":score", "my-module:score", "my_module:"])
def test_an_unknown_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`metrics` {name}: no such metric") as error:
        metric_names(["f1", name])
    assert "exact_match, f1, accuracy, rouge, bleu, chrf, and MODULE:FUNCTION" in str(error.value)


OWN = """
import sys
import numpy as np
import torch

number = 3

def length(predictions, references):
    return sum(map(len, predictions)) / len(predictions)

def several(predictions, references):
    predictions.clear(), references[0].clear()
    return {"recall@5": np.float32(0.5), "count": torch.tensor(2), "right": True}

def nan(predictions, references):
    return float("nan")

def infinite(predictions, references):
    return {"fine": 1, "speed": np.inf}

def none(predictions, references):
    pass

def vector(predictions, references):
    return torch.zeros(3)

def step(predictions, references):
    return 1.0

def slashed(predictions, references):
    return {"a/b": 1.0}

def colored(predictions, references):
    return {"\\x1b[31m": 1.0}

def nameless(predictions, references):
    return {"": 1.0}

def fails(predictions, references):
    return len(predictions) / 0

def exits(predictions, references):
    sys.exit("goodbye")

def alone(predictions):
    return 1.0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of a user in the working directory, and one that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_metrics.py").write_text(OWN)
    (tmp_path / "broken_metrics.py").write_text("def score(:\n")
    yield tmp_path
    for name in ("own_metrics", "broken_metrics"):
        sys.modules.pop(name, None)


def test_a_users_metric_returns_a_number_or_several(own: Path) -> None:
    predictions, references = ["abc", "a"], [["x"], ["y", "z"]]
    assert compute("own_metrics:length", predictions, references) == {"length": 2}
    several = compute("own_metrics:several", predictions, references)
    assert several == {"recall@5": 0.5, "count": 2, "right": 1}
    assert all(type(value) is float for value in several.values())
    assert (predictions, references) == (["abc", "a"], [["x"], ["y", "z"]])  # a metric has copies


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("own_metrics:nan", "nan is nan, expected a finite number"),
        ("own_metrics:infinite", "speed is inf, expected a finite number"),
        ("own_metrics:none", "none is None, expected a finite number"),
        ("own_metrics:vector", "vector is tensor([0., 0., 0.]), expected a finite number"),
        ("own_metrics:step", "'step' is no name for a metric of your own"),
        ("own_metrics:slashed", "'a/b' is no name for a metric of your own"),
        ("own_metrics:colored", r"'\x1b[31m' is no name for a metric of your own"),
        ("own_metrics:nameless", "'' is no name for a metric of your own"),
        ("own_metrics:fails", "ZeroDivisionError: division by zero ({}, line 40)"),
        ("own_metrics:exits", "SystemExit: goodbye ({}, line 43)"),
        ("own_metrics:alone", "TypeError: alone() takes 1 positional argument but 2 were given"),
        ("own_metrics:number", "TypeError: 'int' object is not callable"),
        (
            "own_metrics:missing",
            "cannot be imported: AttributeError: module 'own_metrics' has no attribute 'missing'",
        ),
        ("no_such_module:score", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "broken_metrics:score",
            "cannot be imported: SyntaxError: invalid syntax (broken_metrics.py, line 1)",
        ),
    ],
)
def test_a_wrong_metric_is_named_in_one_line(own: Path, name: str, complaint: str) -> None:
    complaint = complaint.format(own / "own_metrics.py")
    with pytest.raises(MetricError, match=f"^{re.escape(f'`metrics` {name}: {complaint}')}$"):
        compute(name, ["a"], [["a"]])
