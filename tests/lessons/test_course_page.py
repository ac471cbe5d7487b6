"""The transcripts of docs/course.md."""

import re
import subprocess
import sys
from pathlib import Path

from ftcore.course import start
from tests.helpers.course_checks import edited_solutions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "course.md"
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def printed(folder: Path, *options: str) -> list[str]:
    """Lines that `python -m ftcore.course my-models` prints, without numbers that depend on the machine."""
    command = [sys.executable, "-m", "ftcore.course", "my-models", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    return without_numbers(done.stdout)


def without_numbers(text: str) -> list[str]:
    return [re.sub(r"\d\.\de[+-]\d\d", "#", line) for line in text.splitlines()]


def test_transcripts_are_what_the_command_prints(tmp_path: Path) -> None:
    found = BLOCKS.findall(PAGE.read_text(encoding="utf-8"))
    wrong_softmax, board, wrong_block = (text for language, text in found if language != "bash")
    start(tmp_path / "my-models")
    (tmp_path / "my-models" / "step01_softmax.py").write_text(wrong_softmax, encoding="utf-8")
    assert printed(tmp_path) == without_numbers(board)

    edited_solutions(tmp_path / "my-models", 5, "hidden + self.attn(", "self.attn(")
    assert printed(tmp_path, "--step", "5") == without_numbers(wrong_block)
