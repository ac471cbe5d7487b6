"""The picture of a run's curves: drawn where matplotlib is installed, left out elsewhere."""

import sys
from pathlib import Path
from typing import Any

import pytest
from ftcore.training.picture import save_picture

LINES: list[dict[str, Any]] = [
    {"step": 0, "valid_loss": 3.0, "exact_match": 0.0, "f1": 0.1},
    {"step": 10, "train_loss": 2.0},
    {"step": 20, "train_loss": 1.0, "valid_loss": 1.5, "exact_match": 0.4, "f1": 0.5},
]


@pytest.mark.parametrize("keys", [("valid_loss", "train_loss"), ("valid_loss", "exact_match", "f1")])
def test_png(tmp_path: Path, keys: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    lines = [{key: line[key] for key in ("step", *keys) if key in line} for line in LINES]
    assert save_picture(lines, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_without_matplotlib_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcore.training.picture.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it would fail
    assert not save_picture(LINES, tmp_path / "loss.png")
    assert not any(tmp_path.iterdir())
