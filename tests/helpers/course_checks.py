"""Check the reference solutions of the course, right or with a planted mistake, in this process."""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from ftcore.lessons.child import Check
from ftcore.lessons.runner import STEP_FILES, Result

SOLUTIONS = Path(__file__).resolve().parents[1] / "lessons" / "solutions"


@dataclass(frozen=True)
class Planted:
    """An edit of a reference solution, and what the course says about it.

    Args:
        step: number of the step whose file is edited and checked.
        old, new: text that stands once in the file, and what replaces it.
        found: part of the message or table, such as the name of the first bad module.
        cause: part of the likely mistake; empty if it has no name.
    """

    step: int
    old: str
    new: str
    found: str
    cause: str = ""


def edited_solutions(folder: Path, step: int, old: str, new: str) -> Path:
    """A copy of the solutions in `folder`, with one edit."""
    shutil.copytree(SOLUTIONS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / STEP_FILES[step - 1]
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file.name}: {old!r} occurs {text.count(old)} times"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def check_step(folder: Path, step: int) -> Result:
    """The result of one step, without the child process and its time limit."""
    with student_folder(folder):
        check = Check(folder, step, io.StringIO())
        with redirect_stdout(check.printed), redirect_stderr(check.printed):
            check.check()
        check.send()
        return check.result


@contextmanager
def student_folder(folder: Path) -> Iterator[None]:
    """Make a folder's files importable, and forget them afterwards."""
    sys.path.append(str(folder.resolve()))
    before = set(sys.modules)
    writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
        sys.dont_write_bytecode = writes_no_bytecode
        for name in set(sys.modules) - before:
            if name.startswith("step"):
                del sys.modules[name]
