"""The last line of the board: both models against transformers'."""

import shutil
import sys
from pathlib import Path

import pytest

import ftcore.lessons.final
from ftcore.lessons.runner import DONE, FINAL, WRONG
from tests.helpers.course_checks import SOLUTIONS, check_step


def test_solutions_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    result = check_step(SOLUTIONS, FINAL)
    assert (result.status, result.what) == (DONE, "")
    assert f"equal those of transformers {transformers.__version__}" in result.note


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("step06_gpt2.py", "self.transformer.ln_f(hidden)", "hidden"),
        ("step08_t5_encoder.py", "* self.wi_1(hidden)", "+ self.wi_1(hidden)"),
    ],
)
def test_another_model_differs(file: str, old: str, new: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    shutil.copytree(SOLUTIONS, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")
    result = check_step(tmp_path, FINAL)
    assert result.status == WRONG and "against transformers', differs from the reference" in result.what


def test_without_transformers_or_weights_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "transformers, which is not installed" in check_step(SOLUTIONS, FINAL).note
    monkeypatch.setattr(ftcore.lessons.final, "shipped", lambda name: None)
    assert "the weights are in a clone" in check_step(SOLUTIONS, FINAL).note
