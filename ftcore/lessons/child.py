"""The process that imports a student's files and checks them: one JSON line when a step starts and ends."""

import io
import json
import linecache
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from threading import Lock, Timer, get_ident
from types import FrameType

import torch

from ftcore.cli import one_line
from ftcore.lessons.runner import DONE, ERROR, STEP_FILES, TIME_LIMIT, TO_DO, WRONG, Result
from ftcore.lessons.step import Wrong
from ftcore.lessons.steps import STEPS

MOST_PRINTED = 4000  # characters kept of what a step prints


def main() -> None:
    """Check the steps named on the command line: FOLDER NUMBER ..."""
    folder, numbers = Path(sys.argv[1]).resolve(), map(int, sys.argv[2:])
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed past sys.stdout does not mix with the results
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent ends this process
    sys.dont_write_bytecode = True
    sys.path.append(str(folder))  # at the end: no file of the student hides a package
    for number in numbers:
        Check(folder, number, results).run()


class _Printed(io.StringIO):
    """Keeps the first MOST_PRINTED characters."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, MOST_PRINTED - self.tell())])
        return len(text)


class Check:
    """One step: its result is sent once, by the check itself or by the timer that ends an endless loop."""

    def __init__(self, folder: Path, number: int, results: io.TextIOBase):
        self.folder, self.results = folder, results
        self.step = STEPS[number - 1]
        self.file = STEP_FILES[number - 1]
        self.result = Result(number, self.step.title)
        self.printed = _Printed()
        self.thread = get_ident()
        self.lock = Lock()

    def run(self) -> None:
        self.send()
        timer = Timer(TIME_LIMIT, self.end_process)
        timer.daemon = True
        timer.start()
        with redirect_stdout(self.printed), redirect_stderr(self.printed):
            self.check()
        with self.lock:
            timer.cancel()
            self.send()

    def check(self) -> None:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        result = self.result
        try:
            module = import_module(self.file.removesuffix(".py"))
            with torch.random.fork_rng(devices=[]):
                result.note = self.step.check(module) or ""
            result.status = DONE
        except Wrong as wrong:
            result.status, result.what = WRONG, str(wrong)
            result.report, result.causes = wrong.report, list(wrong.causes)
        except BaseException as error:  # SystemExit too
            self.describe(error)

    def describe(self, error: BaseException) -> None:
        """Set the result to the error and the student's line that raised it."""
        result = self.result
        frames = traceback.walk_tb(error.__traceback__)
        place = self.place_of((frame, line) for frame, line in frames)
        if isinstance(error, SyntaxError) and error.filename:
            place = (error.filename, error.lineno or 0)
        elif place is None and (name := re.match(r"([\w.]+)\(\)", str(error))):
            place = self.definition(name[1])  # called with other arguments than it takes
        result.status = ERROR
        result.what = f"{type(error).__name__}: {one_line(error)}".removesuffix(f": {type(error).__name__}")
        if isinstance(error, NotImplementedError) and place is not None:
            result.status, result.what = TO_DO, ""
        elif isinstance(error, ModuleNotFoundError) and f"{error.name}.py" in STEP_FILES:
            result.what = (
                f"{error.name}.py is missing. `python -m ftcore.course --start NEW` writes all files."
            )
        elif isinstance(error, AttributeError) and error.obj is sys.modules.get(self.file[:-3]):
            result.what = f"{self.file} defines no {error.name}."
        elif isinstance(error, SystemExit):
            result.what = "It ends Python: sys.exit() or exit() was called."
        self.point_to(place)

    def end_process(self) -> None:
        """Report the line of the student's code that runs, and exit; called by the timer."""
        with self.lock:
            frame = sys._current_frames()[self.thread]
            stack = reversed([(frame, frame.f_lineno) for frame in _outwards(frame)])
            self.result.status = ERROR
            self.result.what = f"It still runs after {TIME_LIMIT:.0f} seconds. Is there an endless loop?"
            self.point_to(self.place_of(stack))
            self.send()
            os._exit(0)

    def place_of(self, stack: Iterable[tuple[FrameType, int]]) -> tuple[str, int] | None:
        """File and line of the innermost of these frames, outermost first, that is in the folder."""
        places = [(frame.f_code.co_filename, line) for frame, line in stack]
        return next((place for place in reversed(places) if self.is_own(place[0])), None)

    def definition(self, name: str) -> tuple[str, int] | None:
        """Where the student's module defines a function, such as "softmax" or "Block.forward"."""
        found: object = sys.modules.get(self.file.removesuffix(".py"))
        for part in name.split("."):
            found = getattr(found, part, None)
        code = getattr(found, "__code__", None)
        return (code.co_filename, code.co_firstlineno) if code and self.is_own(code.co_filename) else None

    def is_own(self, file: str) -> bool:
        return Path(file).parent == self.folder

    def point_to(self, place: tuple[str, int] | None) -> None:
        file, line = place or (str(self.folder / self.file), 0)
        self.result.file, self.result.line = Path(file).name, line
        self.result.source = linecache.getline(file, line).strip()

    def send(self) -> None:
        self.result.printed = self.printed.getvalue()
        self.results.write(json.dumps(asdict(self.result)) + "\n")
        self.results.flush()


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
