"""docs/test_your_own_layer.md, from its failing to its passing test, and its example."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "test_your_own_layer.md"
FILES = re.compile(r"^`(?P<name>[\w.]+)`:\n\n```python\n(?P<text>.*?)^```$", re.M | re.S)
REPORT = re.compile(r"^```\n(?P<text>module .*?)^```$", re.M | re.S)


def run_test(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test as `python -m pytest test_my_attention.py` would."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "my_attention", raising=False)
        runpy.run_path(str(folder / "test_my_attention.py"))["test_my_attention"]()


def without_numbers(report: str) -> list[str]:
    """The lines of a report; its numbers depend on random inputs."""
    return [re.sub(r"\d\.\de[+-]\d\d", "#", line).strip() for line in report.strip().splitlines()]


def test_page_first_fails_and_then_passes(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    (wrong, test, right), (report,) = FILES.findall(text), REPORT.findall(text)
    assert (wrong[0], test[0], right[0]) == ("my_attention.py", "test_my_attention.py", "my_attention.py")

    for version, layer in (("wrong", wrong), ("right", right)):
        (tmp_path / version).mkdir()
        for name, content in (layer, test):
            (tmp_path / version / name).write_text(content, encoding="utf-8")
    with pytest.raises(AssertionError) as failed:
        run_test(tmp_path / "wrong", monkeypatch)
    assert without_numbers(str(failed.value))[1:] == without_numbers(report)
    run_test(tmp_path / "right", monkeypatch)


def test_example_names_and_fixes_the_mistake(capsys):
    runpy.run_path(str(ROOT / "examples" / "study" / "wrong_attention.py"), run_name="__main__")
    wrong, right = capsys.readouterr().out.split("With the scores divided by sqrt(d):")
    assert "Likely cause: missing 1/sqrt(d)" in wrong
    assert "Equal" not in wrong
    assert "Equal: no difference" in right
