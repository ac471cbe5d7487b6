"""Check a student's files in a child process, which an endless loop or a crash may end."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parents[2]  # what `import ftcore` needs in sys.path
TEMPLATES = Path(__file__).parent / "templates"
STEP_FILES = sorted(path.name for path in TEMPLATES.glob("step*.py"))
FINAL = len(STEP_FILES) + 1  # number of the comparison with transformers
GPT2, T5 = 6, 10  # numbers of the steps whose models it compares

DONE, WRONG, TO_DO, ERROR, RUNNING = "done", "wrong", "to do", "error", "running"

TIME_LIMIT = 10.0  # seconds of computation for one step
FINAL_LIMIT = 60.0  # importing transformers takes long
NO_ANSWER = 90.0  # seconds without a result until the child is killed; it also imports torch

# On Ctrl-C, the parent ends the child. The current directory is taken out of sys.path, since a file of the
# student there could hide a package of the same name.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path = [sys.argv.pop(1), *filter(None, sys.path)]
from ftcore.lessons.child import main
main()
"""


@dataclass
class Result:
    """Outcome of one step."""

    number: int
    title: str = ""
    status: str = RUNNING
    what: str = ""  # what is wrong, or what to do
    report: str = ""  # numbers or a table
    causes: list[str] = field(default_factory=list)
    file: str = ""  # place of an error in the student's files: path, line, text of the line
    line: int = 0
    source: str = ""
    printed: str = ""  # by the student's code
    note: str = ""  # of a step that is done: what the student's model writes

    @property
    def step_file(self) -> str:
        """File of the step, such as "step01_softmax.py"."""
        return STEP_FILES[(T5 if self.number == FINAL else self.number) - 1]

    @property
    def name(self) -> str:
        """Name of the step, such as "softmax"."""
        return self.step_file.removesuffix(".py").partition("_")[2]


def run_steps(folder: Path, numbers: Sequence[int], time_limit: float = TIME_LIMIT) -> Iterator[Result]:
    """Check these steps, one result each; after a step that ended the process, a new one continues."""
    waiting = list(numbers)
    while waiting:
        for result in _run_child(folder, waiting, time_limit):
            waiting.remove(result.number)
            yield result


def _run_child(folder: Path, numbers: Sequence[int], time_limit: float) -> Iterator[Result]:
    """The results of one process; if it ends early, an error of the step that it was in is the last."""
    command = [sys.executable, "-c", START, str(ROOT), str(folder), str(time_limit), *map(str, numbers)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    running = Result(numbers[0])
    try:
        while line := _read_line(process):
            result = Result(**json.loads(line))
            if result.status != RUNNING:
                yield result
            running = result
    finally:
        process.kill()
        process.stdout.close()
        status = process.wait()
    if running.status == RUNNING:
        running.status = ERROR
        running.file = str(folder / running.step_file)
        running.what = f"Python ended while it was checked (exit status {status})."
        yield running


def _read_line(process: "subprocess.Popen[str]") -> str:
    """The next line of the process; empty once it has ended or was killed for not answering."""
    timer = Timer(NO_ANSWER, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        return process.stdout.readline()
    finally:
        timer.cancel()
