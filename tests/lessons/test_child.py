"""Broken files of a student: each is reported at the student's file and line, never as a traceback."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftcore.lessons.board import WIDTH, details
from ftcore.lessons.runner import DONE, ERROR, TO_DO, WRONG, Result, run_steps
from tests.helpers.course_checks import SOLUTIONS, check_step

HEAD = "import torch\n"
SOFTMAX = "def softmax(scores):\n    "


@dataclass(frozen=True)
class Broken:
    """The text of step 1's file, and its result.

    Args:
        line: text of the line that the result points to; empty for none.
        what: part of the message.
    """

    text: str
    status: str
    line: str
    what: str


BROKEN = {
    "syntax error": Broken(SOFTMAX + "return (scores", ERROR, "return (scores", "was never closed"),
    "indentation": Broken("def softmax(scores):\nreturn 1", ERROR, "return 1", "expected an indented block"),
    "null byte": Broken("x = 1\0", ERROR, "", "null bytes"),
    "exception on import": Broken("import torhc", ERROR, "import torhc", "No module named 'torhc'"),
    "exception": Broken(
        SOFTMAX + "return 1 / 0", ERROR, "return 1 / 0", "ZeroDivisionError: division by zero"
    ),
    "exception in torch": Broken(
        SOFTMAX + "return scores @ scores.new_zeros(9, 9)",
        ERROR,
        "return scores @",
        "RuntimeError: mat1 and mat2 shapes",
    ),
    "exception without a message": Broken(SOFTMAX + "raise KeyError", ERROR, "raise KeyError", "KeyError"),
    "exception of many lines": Broken(
        SOFTMAX + "raise ValueError('a\\nb' * 5000)", ERROR, "raise ValueError", "ValueError: a b"
    ),
    "failed assertion": Broken(SOFTMAX + "assert scores is None", ERROR, "assert scores", "AssertionError"),
    "recursion without end": Broken(
        SOFTMAX + "return softmax(scores)", ERROR, "return softmax(scores)", "RecursionError"
    ),
    "exit": Broken(SOFTMAX + "exit()", ERROR, "exit()", "It ends Python"),
    "exit on import": Broken("import sys\nsys.exit(0)", ERROR, "sys.exit(0)", "It ends Python"),
    "interrupt": Broken(SOFTMAX + "raise KeyboardInterrupt", ERROR, "raise Keyboard", "KeyboardInterrupt"),
    "empty file": Broken("", ERROR, "", "defines no softmax"),
    "other arguments": Broken(
        "def softmax():\n    pass", ERROR, "def softmax():", "takes 0 positional arguments"
    ),
    "not a function": Broken("softmax = 3", ERROR, "", "'int' object is not callable"),
    "to do": Broken(SOFTMAX + "raise NotImplementedError", TO_DO, "raise NotImplementedError", ""),
    "nothing returned": Broken(SOFTMAX + "scores.exp()", WRONG, "", "returns None"),
    "a list": Broken(SOFTMAX + "return scores.tolist()", WRONG, "", "returns a list, expected a tensor (5,)"),
    "another shape": Broken(SOFTMAX + "return scores.sum()", WRONG, "", "has shape (), expected (5,)"),
    "another dtype": Broken(SOFTMAX + "return scores.long()", WRONG, "", "dtype int64, expected float32"),
    "NaN": Broken(SOFTMAX + "return scores * float('nan')", WRONG, "", "contains NaN"),
    "infinity": Broken(SOFTMAX + "return scores / 0", WRONG, "", "differs from the reference"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_file(broken: Broken, tmp_path: Path) -> None:
    file = tmp_path / "step01_softmax.py"
    file.write_text(HEAD + broken.text + "\n", encoding="utf-8")
    result = check_step(tmp_path, 1)
    assert (result.status, result.file) == (broken.status, str(file) if broken.status != WRONG else "")
    assert broken.what in result.what
    assert result.source.startswith(broken.line) and bool(result.source) == bool(broken.line)
    if broken.line:
        assert file.read_text(encoding="utf-8").splitlines()[result.line - 1].strip() == result.source
    text = "\n".join(details(result))
    assert "Traceback" not in text and max(map(len, text.splitlines()[2:]), default=0) <= WIDTH


def test_an_error_in_an_earlier_file_is_reported_there(tmp_path: Path) -> None:
    shutil.copytree(SOLUTIONS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "step01_softmax.py").write_text(SOFTMAX + "return scores.foo\n", encoding="utf-8")
    result = check_step(tmp_path, 4)
    assert (result.status, result.file) == (ERROR, str(tmp_path / "step01_softmax.py"))
    assert (result.line, result.source) == (2, "return scores.foo")


def test_shapes_of_the_tensors_at_the_line_are_shown(tmp_path: Path) -> None:
    text = "def softmax(scores):\n    two = scores.new_zeros(3, 9)\n    return two + scores\n"
    (tmp_path / "step01_softmax.py").write_text(text, encoding="utf-8")
    assert check_step(tmp_path, 1).report == "There: scores (5,), two (3, 9)"


def test_missing_file(tmp_path: Path) -> None:
    result = check_step(tmp_path, 3)
    assert (result.status, result.line) == (ERROR, 0)
    assert "step03_masks.py is missing" in result.what and "--start" in result.what


def test_steps_that_end_the_process_are_reported_and_the_next_ones_are_checked(tmp_path: Path) -> None:
    """In the child process; a file torch.py in the folder changes nothing."""
    shutil.copytree(SOLUTIONS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "torch.py").write_text("raise SystemExit", encoding="utf-8")
    (tmp_path / "step02_attention.py").write_text(
        "def attention(query, key, value):\n    while True:\n        query = query + 0\n", encoding="utf-8"
    )
    (tmp_path / "step04_heads.py").write_text("import os\nos._exit(7)\n", encoding="utf-8")
    loud = 'import os\nos.write(1, b\'{"number": 5, "status": "done"}\\n\')\nprint("word " * 1000000)\n'
    file = tmp_path / "step03_masks.py"
    file.write_text(loud + file.read_text(encoding="utf-8"), encoding="utf-8")

    one, two, three, four = run_steps(tmp_path, [1, 2, 3, 4], time_limit=2.0)
    assert one == Result(1, one.title, DONE)
    assert (two.status, two.source) == (ERROR, "query = query + 0")
    assert two.line == 3 and "after 2 seconds" in two.what
    assert (three.status, three.printed) == (DONE, ("word " * 1000)[:4000])
    assert (four.status, four.file) == (ERROR, str(tmp_path / "step04_heads.py"))
    assert "exit status 7" in four.what
