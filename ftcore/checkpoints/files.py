"""JSON files, and files that are written completely or not at all. Imports no torch."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file so that a reader, a full disk or a killed process finds the old one or the new one, whole.

    Args:
        path: the file; its directory must exist. One process at a time may write it.
        write: is given the path of a file beside the target, to write to; that file is then flushed to the
            disk and renamed. Where `write` raises, the old file stays and nothing else is left behind.
    """
    write_together({Path(path): write})


def write_together(writes: dict[Path, Callable[[Path], object]]) -> None:
    """`write_atomically` for several files: all are safe on the disk before the first is renamed."""
    beside = {path: path.with_name(f".{path.name}.part") for path in writes}
    try:
        for path, write in writes.items():
            temporary = beside[path]
            temporary.unlink(missing_ok=True)  # what a killed process left
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask allows; safetensors would make it 0600
            write(temporary)
            temporary.chmod(mode)
            flush(temporary)
        for path, temporary in beside.items():
            temporary.replace(path)
    finally:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)
    for directory in {path.parent for path in writes}:
        flush(directory)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, have reached the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open directories
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: broken JSON, or JSON of another kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on an existing directory, in its file .lock; a no-op on Windows.

    The system releases the lock when the process ends, also when it is killed.

    Raises:
        ValueError: another process holds the lock.
    """
    with (directory / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError:
            raise ValueError(f"another process is at work on {directory}") from None
        yield
