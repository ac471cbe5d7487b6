"""A terminal of a given width."""

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def terminal(columns: int) -> Iterator[TextIO]:
    """A text stream to a pseudo-terminal, whose output is discarded."""
    reader, writer = pty.openpty()
    with open(writer, "w", encoding="utf-8") as stream:
        resize(stream, columns)
        yield stream
    os.close(reader)


def resize(stream: TextIO, columns: int) -> None:
    fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
