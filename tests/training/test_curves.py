"""Curves of a run: drawn where matplotlib is installed, left out elsewhere."""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ftcore.training.curves import curves_svg, draw_curves, save_curves
from ftcore.training.scoring import named

pytestmark = pytest.mark.usefixtures("curves")

LINES: list[dict[str, Any]] = [
    {"step": 0, "valid_loss": 3.0, "exact_match": 0.0, "f1": 0.1},
    {"step": 10, "train_loss": 2.0, "grad_norm": 5.0},
    {"step": 20, "train_loss": 1.0, "valid_loss": 1.5, "exact_match": 0.4, "f1": 0.5},
]


def test_curves_of_answers_say_how_they_are_compared() -> None:
    for task, labels in (("qa", ["exact match (SQuAD)", "F1 (SQuAD)"]), ("text2text", ["exact match", "F1"])):
        panel = draw_curves([named(line, task) for line in LINES]).axes[1]
        assert [line.get_label() for line in panel.get_lines()] == labels


@pytest.mark.parametrize("keys", [("valid_loss", "train_loss"), ("valid_loss", "exact_match", "f1")])
def test_png(tmp_path: Path, keys: tuple[str, ...]) -> None:
    lines = [{key: line[key] for key in ("step", *keys) if key in line} for line in LINES]
    save_curves(lines, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_one_panel_per_metric() -> None:
    panels = draw_curves(LINES).axes
    titles = ["loss (nats per token)", "validation answers (share)", "gradient norm"]
    assert [axes.get_title() for axes in panels] == titles
    curves = [[line.get_xydata().tolist() for line in axes.get_lines()] for axes in panels]
    assert curves[0] == [[[10, 2.0], [20, 1.0]], [[0, 3.0], [20, 1.5]]]


def test_sets_differ_by_the_kind_of_line_and_metrics_by_color() -> None:
    pytest.importorskip("matplotlib")
    values = {"valid_loss": 2.0, "exact_match": 0.5, "f1": 0.6, "share$": 3.0, "token_accuracy": 0.5}
    validation = {f"{name}/{key}": value for name in ("dev", "test") for key, value in values.items()}
    lines = [{"step": 0} | validation, {"step": 10, "train_loss": 2.0}, {"step": 10} | validation]
    panels = {axes.get_title(): axes for axes in draw_curves([named(line, "qa") for line in lines]).axes}
    names = ["loss (nats per token)", "validation answers (share)", "token accuracy (share)", r"share\$"]
    assert list(panels) == names
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in panels.values()]
    assert legends[0] == ["training", "validation", "dev", "test"]
    assert legends[1] == ["exact match (SQuAD)", "F1 (SQuAD)", "dev", "test"]
    assert legends[2:] == [["dev", "test"]] * 2
    drawn = [line for line in panels[names[1]].get_lines() if len(line.get_xdata())]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"] * 2
    assert [line.get_color() for line in drawn] == ["C0", "C0", "C1", "C1"]
    assert all(line.get_xdata().tolist() == [0, 10] for line in drawn)
    assert [axes.get_ylim() == (0, 1) for axes in panels.values()] == [False, True, True, False]


def test_losses_far_apart_are_drawn_logarithmically() -> None:

    def scale(*losses: float) -> str:
        lines = [{"step": step, "train_loss": loss} for step, loss in enumerate(losses)]
        return draw_curves(lines).axes[0].get_yscale()

    assert scale(9.0, 0.1) == "log"
    assert scale(2.0, 1.0) == scale(9.0, 0.0) == "linear"


def test_svg_is_text_in_the_color_of_the_page() -> None:
    svg = curves_svg(LINES)
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and "gradient norm" in root.attrib["aria-label"]
    assert "step" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "#000000" not in svg and "currentColor" in svg
    assert svg == curves_svg(LINES)  # reproducible


def test_without_matplotlib_there_are_no_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcore.training.curves.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it would fail
    save_curves(LINES, tmp_path / "loss.png")
    assert not any(tmp_path.iterdir()) and curves_svg(LINES) == ""
