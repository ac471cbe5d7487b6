"""Atomic writes, JSON and file locks, without torch."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all: to a temporary file that is flushed to disk and renamed.

    Args:
        path: the file; its directory must exist. One process at a time may write it.
        write: writes to the temporary path that it is called with. If it raises, the old file stays and the
            temporary one is removed.
    """
    write_together({Path(path): write})


def write_together(writes: dict[Path, Callable[[Path], object]]) -> None:
    """`write_atomically` for several files: all are on disk before the first is renamed."""
    temporaries = {path: path.with_name(f".{path.name}.part") for path in writes}
    try:
        for path, write in writes.items():
            temporary = temporaries[path]
            temporary.unlink(missing_ok=True)  # left by a killed process
            temporary.touch()
            mode = temporary.stat().st_mode  # follows the umask; safetensors would create it with 0600
            write(temporary)
            temporary.chmod(mode)
            flush(temporary)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    for directory in {path.parent for path in writes}:
        flush(directory)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open directories
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: str | os.PathLike[str], contents: str) -> Path:
    """Create a directory to save `contents` in, with its parents.

    Raises:
        ValueError: `path` is a file.
    """
    directory = Path(path)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: a file, expected a directory to save {contents} in")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: invalid JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON Lines file; [] where there is no file.

    An incomplete last line, which a killed process may leave, is dropped.
    """
    if not path.exists():
        return []
    # Not splitlines, which also splits inside JSON strings, at U+2028 for example.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def directory_lock(directory: Path) -> AbstractContextManager[None]:
    """Hold an exclusive lock on an existing directory, in its file .lock; see `file_lock`."""
    path = directory / ".lock"
    path.touch()
    return file_lock(path, wait=False)


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on a file; a no-op on Windows and, with `wait`, on file systems without locks.

    The system releases the lock when the process ends, also when it is killed.

    Raises:
        ValueError: another process holds the lock, and `wait` is False.
    """
    with path.open("rb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError:
            raise ValueError(f"another process is at work on {path.parent}") from None
        except OSError:
            if not wait:
                raise
        yield
