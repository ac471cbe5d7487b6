"""A wrong input ends a command with one line that says what to do, never with a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

WRONG_INPUT = 2  # exit status of a command that was asked for something it cannot do
FAILED_RUN = 1  # exit status of a command that began its work and could not finish it
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


@contextmanager
def clear_errors(
    command: str,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
    status: int = WRONG_INPUT,
) -> Iterator[None]:
    """Turn errors of these kinds into `command: message` on standard error and this exit status.

    The kinds are those that the library raises for a wrong input: put it around reading options, files and
    checkpoints. Around the work itself a ValueError is a bug, and its traceback is wanted.
    """
    try:
        yield
    except kinds as error:
        print(f"{command}: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(status) from None


def warn(message: str) -> None:
    """Tell the user something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return " ".join(text.split())
