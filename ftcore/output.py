"""One-line errors, warnings, progress bars: output of the commands, which can never end a run."""

import atexit
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

WRONG_INPUT = 2  # exit status: invalid options or input
FAILED_RUN = 1  # exit status: the command started and failed
INTERRUPTED = 130  # exit status after Ctrl-C, the shells' convention
BROKEN_PIPE = 141  # exit status where the reader of a pipe has ended, the shells' convention

LONGEST_MESSAGE = 1200  # characters of an error or a warning


def is_main_process() -> bool:
    """False on the ranks above 0 that torchrun starts, which print nothing."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


@contextmanager
def cli_errors(
    command: str, kinds: tuple[type[Exception], ...] = (ValueError, OSError), status: int = WRONG_INPUT
) -> Iterator[None]:
    """Turn errors of these kinds into `command: message` on standard error and this exit status.

    The default kinds are what the library raises for wrong input: use it around reading options, files and
    checkpoints. Elsewhere a ValueError is a bug and keeps its traceback.

    The library names its arguments in backticks, and here they become options: `batch_size` -> --batch-size.
    """
    try:
        yield
    except kinds as error:
        if is_main_process():
            print(f"{command}: {as_options(one_line(error))}", file=sys.stderr)
        raise SystemExit(status) from None


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`"""
    return "--" + name.replace("_", "-")


def as_options(message: str) -> str:
    """Turn names in backticks into options: `batch_size` -> --batch-size."""
    return re.sub(r"`(\w+)`", lambda name: flag(name[1]), message)


def one_line(error: BaseException) -> str:
    """An error's message as one printable line; the class name where there is no message."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return printable(" ".join(text.split())) or type(error).__name__


def printable(text: str) -> str:
    """A line with control characters escaped, so that a file cannot control the terminal, and cut if long."""
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    if is_main_process():
        print(f"warning: {printable(message)}", file=sys.stderr)


def log(line: str) -> None:
    """Print a line to standard output, above a progress bar."""
    from tqdm import tqdm

    if is_main_process():
        tqdm.write(line, file=sys.stdout)


def progress_bar(*arguments: Any, **settings: Any) -> Any:
    """Make tqdm's progress bar: a widget in a notebook with ipywidgets, else text as wide as the window."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets: text will do
        from tqdm.auto import tqdm

    ipython = sys.modules.get("IPython")
    if ipython and ipython.get_ipython():  # notebooks show standard error in red
        settings.setdefault("file", sys.stdout)
    return tqdm(*arguments, dynamic_ncols=True, **settings)


class _GuardedStream:
    """A standard stream. Once a write fails, the stream is connected to the null device.

    Args:
        command: ended by the error, where standard output is its result; else None.
    """

    def __init__(self, stream: Any, command: str | None) -> None:
        self._stream, self._command = stream, command

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._guard(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._guard(self._stream.flush)

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if isinstance(error, BrokenPipeError) and self._command:  # the reader has seen enough: `| head`
                raise SystemExit(BROKEN_PIPE) from None
            if self._command:
                print(f"{self._command}: standard output: {one_line(error)}", file=sys.stderr)
                raise SystemExit(FAILED_RUN) from None


def guard_output(command: str | None = None) -> None:
    """Let no print raise, whatever standard output and standard error are connected to.

    Characters missing in the encoding are escaped. Once a write fails (closed pipe, full disk, closed
    terminal), further output is dropped, so that a run continues.

    Args:
        command: given where standard output is the result. The command then ends: quietly if a pipe was
            closed, else with one line and status 1.
    """
    for name in ("stderr", "stdout"):
        # None where the shell has closed it (`>&-`): writes fail, and no other file gets its number
        stream = getattr(sys, name) or open(os.devnull)  # noqa: SIM115
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _GuardedStream(stream, command if name == "stdout" else None))
    atexit.register(_flush_output)


def _flush_output() -> None:
    """Before Python's own flush at exit, whose errors print a traceback."""
    try:
        sys.stdout.flush()
    except SystemExit as ending:
        os._exit(int(ending.code or 0))


def did_you_mean(word: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str:
    """End of an error about an unknown word: the most similar known word, or "". Case is ignored.

    Args:
        synonyms: other words, and the known word that is suggested in place of each.
    """
    meant = {name.lower(): name for name in known} | dict(synonyms or {})
    close = difflib.get_close_matches(word.lower(), meant, n=1)
    return f", did you mean {meant[close[0]]!r}?" if close else ""


def few(names: Sequence[str], limit: int = 4) -> str:
    """The first of many names, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
