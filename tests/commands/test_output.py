"""Standard output and error that fail, or lack characters, end no run, and no command prints a traceback.

`--help` stands for all output that a command prints before torch is imported. Whole commands run in a forked
child, whose standard streams are those that Python would make at its start.
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import ftcore.train
from ftcore.__main__ import find_commands
from ftcore.output import BROKEN_PIPE, FAILED_RUN, guard_output
from tests.helpers import tiny_runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and uses /dev/full")

RUNS = ("train", "tune")  # what these print is not their result


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# Name -> file descriptor, None for a closed one.
FAILING: dict[str, Callable[[], int | None]] = {
    "closed pipe": closed_pipe,
    "full disk": lambda: os.open("/dev/full", os.O_WRONLY),
    "closed": lambda: None,
    "not open for writing": lambda: os.open(os.devnull, os.O_RDONLY),
}
STATUS = {"closed pipe": BROKEN_PIPE}  # of a command whose result it should get, else FAILED_RUN


def start(descriptor: int | None, stream: int, argv: list[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run Python with standard output (1) or standard error (2) replaced, the other one captured."""

    def replace() -> None:
        os.close(stream) if descriptor is None else os.dup2(descriptor, stream)

    return subprocess.run([sys.executable, *argv], capture_output=True, preexec_fn=replace, timeout=120)


@pytest.mark.parametrize("command", find_commands())
def test_help_of_every_command(command: str) -> None:
    for name, descriptor in FAILING.items():
        done = start(descriptor(), 1, ["-m", f"ftcore.{command}", "--help"])
        assert done.returncode == (0 if command in RUNS else STATUS.get(name, FAILED_RUN)), name
        line = b"" if command in RUNS or name == "closed pipe" else b"standard output: "
        assert line in done.stderr and done.stderr.count(b"\n") == bool(line), (name, done.stderr)
    done = start(FAILING["full disk"](), 2, ["-m", f"ftcore.{command}", "--help"])
    assert done.returncode == 0 and b"usage: " in done.stdout


def test_errors_keep_their_status_without_standard_error() -> None:
    for descriptor in FAILING.values():
        done = start(descriptor(), 2, ["-m", "ftcore.train", "--epoch", "3"])
        assert (done.returncode, done.stdout) == (2, b"")


# Whole commands


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.optim.AdamW([torch.zeros(1)])  # imports torch's compiler, once instead of in each child
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    pairs = ({"source": f"日本 → {number}", "target": f"ответ {number}"} for number in range(12))
    tiny_runs.write_lines(folder / "pairs.jsonl", pairs)
    return folder


def argv(command: str, files: Path, output: Path) -> list[str]:
    if command == "generate":
        return f"--model {files / 't5'} --prompt ответ --max-new-tokens 4 --json".split()
    words = f"--task text2text --model {files / 't5'} --train {files / 'pairs.jsonl'} --max-steps 2"
    words += f" --log-every 1 --eval-answers 1 --max-target-length 16 --output {output}"
    return (words + (" --search lr=1e-3..1e-2 --trials 2" if command == "tune" else "")).split()


def forked(act: Callable[[], Any], replace: Callable[[], None], errors: Path) -> int:
    """The exit status of `act` in a child; its standard error goes to a file, unless `replace` changes it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status: Any = 70
    try:
        for stream in (1, 2):
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = text(1), text(2)
        replace()
        guarded = [sys.stdout, sys.stderr]
        status = act()
    except SystemExit as ending:
        status = ending.code
    except BaseException as error:  # the child must not return into pytest
        os.write(2, f"Traceback: {error!r}".encode())
    finally:
        del guarded
        os._exit(int(status or 0))


def text(stream: int, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(open(stream, "wb", closefd=False), encoding, line_buffering=stream == 2)


def replaced(stream: int, output: str) -> Callable[[], None]:
    """Replace a standard stream, by a failing one or by one of another encoding."""

    def replace() -> None:
        name = "stdout" if stream == 1 else "stderr"
        if output not in FAILING:
            setattr(sys, name, text(stream, output))
        elif (descriptor := FAILING[output]()) is None:
            os.close(stream)
            setattr(sys, name, None)
        else:
            os.dup2(descriptor, stream)
            setattr(sys, name, text(stream))

    return replace


@pytest.mark.parametrize("output", [*FAILING, "latin-1", "ascii"])
@pytest.mark.parametrize(
    ("command", "stream"), [("train", 1), ("train", 2), ("tune", 1), ("generate", 1), ("generate", 2)]
)
def test_whole_commands(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, stream: int, output: str
) -> None:
    if command == "tune":
        pytest.importorskip("optuna")
        monkeypatch.setattr("ftcore.tune.save_picture", lambda *_: False)
    module, run, log = import_module(f"ftcore.{command}"), tmp_path / "run", tmp_path / "log"

    def act() -> int:
        guard_output(None if command in RUNS else f"ftcore.{command}")
        status = module.main(argv(command, files, run))
        sys.stdout.flush()
        return status

    status = forked(act, replaced(stream, output), log)
    fails = stream == 1 and command not in RUNS and output in FAILING
    printed = log.read_text(encoding="utf-8")
    assert status == (STATUS.get(output, FAILED_RUN) if fails else 0), printed
    assert "Traceback" not in printed
    if command == "train":
        assert (run / "last" / "model.safetensors").exists() and (run / "report.html").exists()
    if command == "tune":
        assert (run / "trials.csv").exists()


def test_a_reader_that_ends_early(files: Path, tmp_path: Path) -> None:
    """`python -u -m ftcore.train | head -1`"""
    reader, writer = os.pipe()
    head = Thread(target=lambda: open(reader).close() if os.read(reader, 1) else None)
    head.start()

    def replace() -> None:
        os.close(reader)
        os.dup2(writer, 1)
        os.close(writer)
        sys.stdout = text(1)
        sys.stdout.reconfigure(write_through=True)

    def act() -> int:
        guard_output()
        return ftcore.train.main(argv("train", files, tmp_path / "run"))

    assert forked(act, replace, tmp_path / "log") == 0
    os.close(writer)
    head.join()
    assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()
