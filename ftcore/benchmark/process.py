"""A process of any Python interpreter, with the packages installed there, that calls ftcore's functions.

Run as a script, this file is that process. It imports the standard library only: unpickling a function
imports its module and what that needs.
"""

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class WorkerProcess:
    """Calls functions in a process, one at a time, until its `with` block ends.

    Args:
        python: path of the interpreter, which has its own packages; "" is this one, with its `sys.path`.
    """

    def __init__(self, python: str = "") -> None:
        paths = [] if python else sys.path
        self.process: Any = subprocess.Popen(
            [python or sys.executable, "-I", __file__, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of a module of ftcore returns there.

        Raises:
            RuntimeError: the function failed, or the process ended; the message is one line.
        """
        try:
            pickle.dump((function, arguments), self.process.stdin)
            self.process.stdin.flush()
            error, result = pickle.load(self.process.stdout)
        except (BrokenPipeError, EOFError):
            raise RuntimeError(f"its process ended with status {self.process.wait()}") from None
        if error:
            raise RuntimeError(error)
        return result


def serve() -> None:
    """Answer calls from standard input until it ends, as it does where the parent is killed."""
    requests: Any = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what libraries print
    while requests.peek(1):
        try:
            function, arguments = pickle.load(requests)
            reply = "", function(*arguments)
        except Exception as error:  # a limitation of the library, or out of memory, for example
            reason = (str(error).splitlines() or [""])[0]
            is_limitation = isinstance(error, NotImplementedError)
            reply = reason if is_limitation else f"{type(error).__name__}: {reason}", None
        pickle.dump(reply, replies)
        replies.flush()


def use_this_ftcore() -> None:
    """Let `import ftcore` find the folder of this file, and nothing that is installed beside it."""
    spec: Any = importlib.util.spec_from_file_location("ftcore", Path(__file__).parents[1] / "__init__.py")
    sys.modules["ftcore"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ftcore"])


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:] or sys.path
    use_this_ftcore()
    serve()
