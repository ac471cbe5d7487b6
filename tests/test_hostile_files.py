"""Every file that ftcore reads, mutated: it is read, or refused in one line that names a file.

Whatever a file holds: no other exception than ValueError, OSError and, for weights that are not finite,
FloatingPointError; no message with control characters; at most 5 s and 1 GiB; no crash; nothing is executed.
A failing case prints file, seed and mutation. The study is not part of the suite:

    python -m pytest tests/test_hostile_files.py -n 0 -m study -s
"""

import ast
import json
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import ftcore
from tests.helpers import case_runner
from tests.helpers.case_runner import RESULTS, Outcome, Reader, in_child, run_cases
from tests.helpers.file_readers import READERS
from tests.helpers.mutator import EXECUTED, REPLACEMENTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="reads in forked processes")

CASES, STUDY_CASES = len(REPLACEMENTS) + 10, 2_000  # of each file
PACKAGE = Path(ftcore.__file__).parent


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reader], Path]:
    """The directory of valid files of a reader."""

    @cache
    def made(make: Callable[[Path], object]) -> Path:
        directory = tmp_path_factory.mktemp("valid")
        make(directory)
        return directory

    return lambda reader: made(reader.make)


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(name, valid, tmp_path):
    outcomes = run_cases(READERS[name], valid(READERS[name]), range(CASES), tmp_path)
    assert not described(name, outcomes)


@pytest.fixture(scope="module")
def heading() -> None:
    print("\n| file | cases | read | refused | faults | slowest |\n|---|---|---|---|---|---|")


@pytest.mark.study
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_mutated_files(name, valid, heading, tmp_path):
    outcomes = run_cases(READERS[name], valid(READERS[name]), range(STUDY_CASES), tmp_path)
    read, refused = (sum(outcome.result == result for outcome in outcomes) for result in RESULTS)
    faults, slowest = STUDY_CASES - read - refused, max(outcome.seconds for outcome in outcomes)
    print(f"| {name} | {STUDY_CASES} | {read} | {refused} | {faults} | {slowest:.1f} s |")
    assert not described(name, outcomes)


def described(name: str, outcomes: list[Outcome]) -> list[str]:
    """One line for each kind of fault, with the first case of it."""
    kinds: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.result not in RESULTS:
            kinds.setdefault((outcome.result, outcome.detail.rpartition(" at ")[2]), []).append(outcome)
    return [
        f"{name}, seed {same[0].seed} ({len(same)} cases): {same[0].mutation} -> {result}: {same[0].detail}"
        for (result, _), same in kinds.items()
    ]


def loop(path: Path) -> None:
    while True:
        pass


def take_memory(path: Path) -> None:
    """Memory of its own: freed memory of earlier tests may still be resident."""
    with mmap.mmap(-1, 200 * 2**20) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


def run_out_of_memory(path: Path) -> None:
    try:
        bytearray(10**12)
    except MemoryError:
        raise ValueError(f"{path}: damaged") from None


def fail(error: Exception) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        raise error

    return read


FAULTS: dict[str, Callable[[Path], object]] = {
    "more than 0.2 s": loop,
    "killed by SIGSEGV": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "more than 128 MiB": take_memory,
    "refused after running out of memory": run_out_of_memory,
    "the file was executed": lambda path: os.system(f"touch {EXECUTED}"),
    "a control character is printed": lambda path: print("\x1b[31m", file=sys.stderr),
    "KeyError": fail(KeyError("n_layer")),
    "ValueError without a file": fail(ValueError("n_layer is -1")),
    "OSError without a file": fail(OSError(19, "No such device")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(case_runner, "MAX_MEMORY", 2**27)
    if fault == "more than 0.2 s":
        monkeypatch.setattr(case_runner, "MAX_CPU_SECONDS", 0.2)
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "config.json").write_text("{}")
    reader = Reader(lambda directory: None, "config.json", FAULTS[fault])
    outcomes = run_cases(reader, tmp_path / "valid", [20, 21], tmp_path)
    assert [outcome.result for outcome in outcomes] == [fault, fault]


# Functions that open or parse files, and are called by none of READERS; "benchmark/" is all in this folder.
READING = {"open", "read_text", "read_bytes", "loads", "load", "raw_decode", "load_file", "safe_open"}
READING |= {"from_str", "LoadFromSerializedProto", "parse_json", "read_json", "read_json_lines"}
NOT_COVERED = {
    "__main__.py find_commands": "part of the package",
    "benchmark/": "reads what it has written",
    "output.py guard_output": "the null device",
    "output.py _guard": "the null device",
    "compare.py random_model": "a config.json, read as in load_model",
    "explorer/page.py _file": "part of the package",
    "fast/program_cache.py": "a folder of the user's own, see test_program_cache.py",
    "lessons/runner.py _run_child": "what a child process has written",
    "training/preview.py _excerpts": "a text that was read before",
    "training/resize.py _key_and_value": "the command line",
    "training/sharded.py load_sharded": "several processes, see test_sharded.py",
}


def test_valid_files_are_read_and_every_function_that_reads_files_is_called(valid):
    modules = {str(path): path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    called: set[str] = set()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and (name := modules.get(frame.f_code.co_filename)):
            called.add(f"{name} {frame.f_code.co_name}")

    def read_all() -> list[str]:
        threading.setprofile(profile)
        sys.setprofile(profile)
        for reader in READERS.values():
            os.chdir(valid(reader))
            reader.read(next(valid(reader).glob(reader.file)))
        sys.setprofile(None)
        return list(called)

    status, lines = in_child(read_all)
    assert status == 0, "a valid file is refused; the traceback is above"
    reading = {f"{name} {function}" for path, name in modules.items() for function in functions_reading(path)}
    others = reading - set(map(json.loads, lines))
    assert not [name for name in others if not name.startswith(tuple(NOT_COVERED))]
    assert not [known for known in NOT_COVERED if not any(name.startswith(known) for name in others)]


def functions_reading(path: str) -> Iterator[str]:
    """Names of the functions of a module that open or parse files."""
    for function in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and any(map(is_reading, ast.walk(function))):
            yield function.name


def is_reading(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    writes = any(isinstance(value, ast.Constant) and str(value.value)[:1] in "wax" for value in node.args)
    return ast.unparse(node.func).rpartition(".")[2] in READING and not writes
