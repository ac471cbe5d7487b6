"""The data sets of the project, cut to a few records."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data"


def use_small_data(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stand-in for the clone in `directory` have the weights, but only a few hundred records."""
    clone = directory / "clone"
    small_data(clone, paragraphs=80, lines=400)
    (clone / "weights").symlink_to(ROOT / "weights")
    monkeypatch.setattr("ftcore.training.run_files.CLONE", clone)


def small_data(clone: Path, *, paragraphs: int, lines: int) -> None:
    """Write examples/data of a stand-in for the clone: passages of qa and lines of emotion, per split."""
    for split in ("train", "valid", "test"):
        document = json.loads((DATA / "qa" / f"{split}.json").read_text(encoding="utf-8"))
        kept = [part for article in document["data"] for part in article["paragraphs"]][:paragraphs]
        write(clone / f"examples/data/qa/{split}.json", json.dumps({"data": [{"paragraphs": kept}]}))
        texts = (DATA / "emotion" / f"{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        write(clone / f"examples/data/emotion/{split}.txt", "".join(texts[:lines]))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
