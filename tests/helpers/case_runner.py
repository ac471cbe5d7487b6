"""Read mutated files in forked processes, which may crash, hang or run out of memory."""

import faulthandler
import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcore.output import one_line
from tests.helpers.mutator import EXECUTED, mutate, zip_bomb

MAX_CPU_SECONDS, MAX_SECONDS = 5, 300  # processor time, which a busy machine does not change; and any time
MAX_MEMORY = 2**30  # bytes beyond what the process has before it reads
LONGEST_MESSAGE = 2_000  # characters

RESULTS = ("read", "refused")  # of a case without a fault


@dataclass(frozen=True)
class Reader:
    """A file among others, and a function that reads it as a user would."""

    make: Callable[[Path], object]  # writes valid files into a directory
    file: str  # the one that is mutated
    read: Callable[[Path], object]  # is called with its path


@dataclass
class Outcome:
    seed: int
    mutation: str
    result: str  # one of RESULTS, or the fault
    detail: str = ""  # message and place
    seconds: float = 0.0  # of processor time


def run_cases(reader: Reader, valid: Path, seeds: Sequence[int], scratch: Path) -> list[Outcome]:
    """Read a mutated copy of the directory `valid` for each seed. Two runs at once need two `scratch`."""
    zip_bomb()  # is cached: once, instead of in each child
    outcomes: list[Outcome] = []
    notes = scratch / "notes"
    while rest := seeds[len(outcomes) :]:
        status, lines = in_child(lambda rest=rest: map(asdict, cases(reader, valid, rest, scratch)))
        outcomes += [Outcome(**json.loads(line)) for line in lines]
        if os.WIFSIGNALED(status):  # in the case that has no outcome yet
            name = signal.Signals(os.WTERMSIG(status)).name
            mutation, _, stack = notes.read_text(errors="replace").partition("\n")
            too_long = name in ("SIGPROF", "SIGALRM")
            result = f"more than {MAX_CPU_SECONDS} s" if too_long else f"killed by {name}"
            where = next(iter(re.findall(r'ftcore/[^"]*", line \d+ in \w+', stack)), "outside of ftcore")
            outcomes.append(Outcome(rest[len(lines)], mutation, result, where))
        else:
            assert status == 0, "the process that reads the files failed; its traceback is above"
    return outcomes


def in_child(work: Callable[[], Any]) -> tuple[int, list[str]]:
    """Run `work` in a forked child: its wait status, and each value that it returned as a line of JSON."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(sender, "w") as output:
                for value in work():
                    output.write(json.dumps(value) + "\n")
                    output.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(sender)
    with os.fdopen(receiver) as lines:
        received = lines.readlines()
    return os.waitpid(child, 0)[1], received


def cases(reader: Reader, valid: Path, seeds: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    """Outcomes up to the first case that took too much memory; in a process of its own."""
    directory = scratch / "case"
    before = memory()
    limit_address_space()
    gc.freeze()  # a collection would copy the memory shared with the parent
    os.fsync = lambda handle: None  # slow, and no concern of readers
    with (scratch / "notes").open("w") as notes:
        faulthandler.enable(notes, all_threads=False)
        for kind in (signal.SIGPROF, signal.SIGALRM):  # write the stack, then die
            signal.signal(kind, signal.SIG_DFL)
            faulthandler.register(kind, notes, all_threads=False, chain=True)
        for seed in seeds:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(valid, directory)
            os.chdir(directory)
            path = next(directory.glob(reader.file))
            outcome = Outcome(seed, mutate(path, seed), "read")
            notes.seek(0)
            notes.truncate()
            print(outcome.mutation.encode("unicode_escape").decode(), file=notes, flush=True)
            start = time.process_time()
            outcome.result, outcome.detail = read(reader, path, directory)
            outcome.seconds = time.process_time() - start
            if memory() - before > MAX_MEMORY:
                outcome.result = f"more than {MAX_MEMORY // 2**20} MiB"
            yield outcome
            if memory() - before > MAX_MEMORY:
                return  # `memory` is a maximum
    shutil.rmtree(directory, ignore_errors=True)


def read(reader: Reader, path: Path, directory: Path) -> tuple[str, str]:
    """Read one file: the result, and the message with the place of the error."""
    printed = io.StringIO()
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            reader.read(path)
        result, detail = "read", ""
    except BaseException as error:  # panics of Rust are no Exceptions
        result = fault(error, directory) or "refused"
        detail = f"{one_line(error)[:300]!r} at {place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if has_control_characters(printed.getvalue().replace("\n", "").replace("\r", "")):
        result = "a control character is printed"
    if (directory / EXECUTED).exists():
        result = "the file was executed"
    return result, detail


def fault(error: BaseException | None, directory: Path) -> str | None:
    """What is wrong with an error; None for one line that names a file."""
    message = one_line(error)
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        return type(error).__name__
    missing = re.search("no such (file|directory)", message, re.I)  # a file that this file names
    named = str(directory) in message or missing
    if not named and not isinstance(error, FloatingPointError):
        return f"{type(error).__name__} without a file"
    if has_control_characters(message):
        return "a control character in the message"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of more than {LONGEST_MESSAGE} characters"
    while error := error.__cause__ or error.__context__:  # one that was made from running out of memory
        if "malloc of size" in str(error):
            continue  # pyarrow asks for as much as a compressed buffer claims to hold
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return "refused after running out of memory"
    return None


def place(error: BaseException) -> str:
    """The innermost line of ftcore in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/ftcore/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno} {frames[-1].name}" if frames else ""


def has_control_characters(text: str) -> bool:
    """Escape sequences among them, and lone surrogates, which cannot be printed."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_address_space() -> None:
    """Fail to allocate four times MAX_MEMORY, for the other programs of this machine."""
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 4 * MAX_MEMORY, resource.RLIM_INFINITY))
