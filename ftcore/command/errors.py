"""A wrong input ends a command with one line that says what to do, never with a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

WRONG_INPUT = 2  # exit status of a command that was asked for something it cannot do
FAILED_RUN = 1  # exit status of a command that began its work and could not finish it


@contextmanager
def clear_errors(command: str) -> Iterator[None]:
    """Turn the library's ValueError and OSError into `command: message` on standard error and exit status 2.

    Put it around reading options, files and checkpoints, not around the work itself: there, a ValueError is
    a bug, and its traceback is wanted.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{command}: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from None


def warn(message: str) -> None:
    """Tell the user something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return " ".join(text.split())
