"""The process that imports a student's files and checks them: one JSON line when a step starts and ends."""

import io
import json
import linecache
import os
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from threading import Event, Lock, Thread, get_ident
from time import monotonic, process_time
from types import CodeType, FrameType

import torch
from torch import Tensor

from ftcore.lessons.final import against_transformers
from ftcore.lessons.runner import DONE, ERROR, FINAL, STEP_FILES, TO_DO, WRONG, Result
from ftcore.lessons.step import Step, Wrong
from ftcore.lessons.steps import STEPS
from ftcore.output import one_line

MOST_PRINTED = 4000  # characters kept of what a step prints
FINAL_STEP = Step("final", "your models against transformers'", against_transformers)
WAITING = 5  # times the time limit may pass without computing


def main() -> None:
    """Check the steps named on the command line: FOLDER TIME_LIMIT NUMBER ..."""
    folder, time_limit, numbers = Path(sys.argv[1]), float(sys.argv[2]), map(int, sys.argv[3:])
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed past sys.stdout does not mix with the results
    torch.set_num_threads(1)  # the tensors are small
    sys.dont_write_bytecode = True
    sys.path.append(str(folder.resolve()))  # at the end: no file of the student hides a package
    for number in numbers:
        Check(folder, number, results).run(time_limit)


class _Printed(io.StringIO):
    """Keeps the first MOST_PRINTED characters."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, MOST_PRINTED - self.tell())])
        return len(text)


class Check:
    """One step: its result is sent once, by the check itself or by the thread that ends an endless loop."""

    def __init__(self, folder: Path, number: int, results: io.TextIOBase):
        self.folder, self.results = folder, results
        self.step = FINAL_STEP if number == FINAL else STEPS[number - 1]
        self.result = Result(number, self.step.title)
        self.file = self.result.step_file
        self.printed = _Printed()
        self.thread = get_ident()
        self.lock = Lock()

    def run(self, time_limit: float) -> None:
        """Send the result; end the process after `time_limit` seconds of computation."""
        self.send()
        finished = Event()
        Thread(target=self.watch, args=(finished, time_limit), daemon=True).start()
        with redirect_stdout(self.printed), redirect_stderr(self.printed):
            self.check()
        with self.lock:
            finished.set()
            self.send()

    def check(self) -> None:
        """Set the result."""
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
        kind, message = type(error).__name__, getattr(error, "msg", "") or one_line(error)
        result.status = ERROR
        result.what = kind if message == kind else f"{kind}: {message}"
        self.point_to_innermost(traceback.walk_tb(error.__traceback__))
        if isinstance(error, SyntaxError) and error.filename:
            self.point_to(error.filename, error.lineno or 0)
        elif not result.line and (name := re.match(r"([\w.]+)\(\)", str(error))):
            self.point_to_definition(name[1])  # called with other arguments than it takes

        if isinstance(error, NotImplementedError) and result.line:
            result.status, result.what, result.report = TO_DO, "", ""
        elif isinstance(error, ModuleNotFoundError) and f"{error.name}.py" in STEP_FILES:
            result.what = f"{error.name}.py is missing: ftcore.course --start writes it into a new folder."
        elif isinstance(error, AttributeError) and error.obj is sys.modules.get(self.file[:-3]):
            result.what = f"{self.file} defines no {error.name}."
        elif isinstance(error, SystemExit):
            result.what = "It ends Python: sys.exit() or exit() was called."

    def watch(self, finished: Event, time_limit: float) -> None:
        """Report the line that runs and exit, if the step is not finished in time; in its own thread.

        CPU time, which other programs do not use up; the limit of waiting is longer.
        """
        cpu, clock = process_time() + time_limit, monotonic() + WAITING * time_limit
        while process_time() < cpu and monotonic() < clock:
            if finished.wait(0.1):
                return
        with self.lock:
            if not finished.is_set():
                stack = traceback.walk_stack(sys._current_frames()[self.thread])
                self.result.status = ERROR
                self.result.what = f"It still runs after {time_limit:g} seconds. Is there an endless loop?"
                self.point_to_innermost(reversed([*stack]))
                self.send()
                os._exit(0)

    def point_to_innermost(self, stack: Iterable[tuple[FrameType, int]]) -> None:
        """Point to the innermost of these frames, outermost first, that runs the student's code."""
        own = [(frame, line) for frame, line in stack if self.is_own(frame.f_code)]
        if not own:
            self.point_to(self.file, 0)
            return
        frame, line = own[-1]
        self.point_to(frame.f_code.co_filename, line)
        shapes = [
            f"{name} {tuple(value.shape)}"
            for name, value in frame.f_locals.items()
            if isinstance(value, Tensor)
        ]
        self.result.report = f"There: {', '.join(shapes)}" if shapes else ""

    def point_to_definition(self, name: str) -> None:
        """Point to the step's function "softmax" or "Block.forward", if the student defines it."""
        found: object = sys.modules.get(self.file.removesuffix(".py"))
        for part in name.split("."):
            found = getattr(found, part, None)
        code = getattr(found, "__code__", None)
        if code is not None and self.is_own(code):
            self.point_to(code.co_filename, code.co_firstlineno)

    def is_own(self, code: CodeType) -> bool:
        """Whether code is in the student's folder."""
        return Path(code.co_filename).parent == self.folder.resolve()

    def point_to(self, file: str, line: int) -> None:
        """Note the student's line in the result."""
        self.result.file, self.result.line = str(self.folder / Path(file).name), line
        self.result.source = linecache.getline(file, line).strip()

    def send(self) -> None:
        """Write the result as a line of JSON."""
        self.result.printed = self.printed.getvalue()
        self.results.write(json.dumps(asdict(self.result)) + "\n")
        self.results.flush()
