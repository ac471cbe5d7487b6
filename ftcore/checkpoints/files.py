"""Text, JSON, atomic writes and file locks, without torch."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from reprlib import repr as shown
from typing import Any

MAX_JSON_DEPTH = 100  # levels of nesting; Python's own limit depends on the depth of the call stack

# The first bytes of formats that are neither text nor weights.
FORMATS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"\x1f\x8b": "compressed by gzip: decompress it first",
    b"BZh": "compressed by bzip2: decompress it first",
    b"\xfd7zXZ\0": "compressed by xz: decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it first",
    b"PK\x03\x04": "a zip archive or a workbook (.xlsx): extract it, or export it as CSV",
    b"\xd0\xcf\x11\xe0": "a workbook (.xls): export it as CSV",
    b"PAR1": "a parquet file: export it as JSON lines or CSV",
    b"ARROW1": "an arrow file: export it as JSON lines or CSV",
    b"SQLite format 3": "an SQLite database: export it as JSON lines or CSV",
    b"%PDF": "a PDF: extract its text",
    b"<!doctype html": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"\xff\xfe\0\0": "text in UTF-32: save it as UTF-8",
    b"\0\0\xfe\xff": "text in UTF-32: save it as UTF-8",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
}


def describe_format(start: bytes) -> str | None:
    """Name a format by its first bytes (64 are enough), with what to do; None if it is not in FORMATS."""
    start = start.lstrip(b" \t\r\n").lower()
    return next((text for magic, text in FORMATS.items() if start.startswith(magic.lower())), None)


def require_text(path: Path) -> None:
    """Raise FileNotFoundError for a missing file, ValueError for a directory or a format other than text."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; expected a file")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path}: the file is empty")
    if description := describe_format(start):
        raise ValueError(f"{path}: {description}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, its lines ended by "\\n".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a directory, an empty file, not UTF-8, or a format of `describe_format`.
    """
    require_text(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # without the byte order mark that spreadsheets write
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    # Not str.splitlines: it also breaks at U+2028, which is valid inside a JSON string.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def not_utf8(path: Path) -> ValueError:
    """An error that names the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                return ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
                )
    return ValueError(f"{path}: not UTF-8; save the file as UTF-8")


def parse_json(text: str, where: object) -> Any:
    """Parse JSON from a file or a request.

    Args:
        where: file, and line where it has several documents; heads the message of an error.

    Raises:
        ValueError: broken JSON; NaN, Infinity or a number beyond float64; a lone surrogate; more than
            MAX_JSON_DEPTH levels.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # a surrogate: UTF-8 cannot encode half of a pair
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
            raise RecursionError
    except RecursionError:
        raise ValueError(f"{where}: broken JSON: more than {MAX_JSON_DEPTH} levels of nesting") from None
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(f"{where}{line}: broken JSON: {error.msg} (column {error.colno})") from None
    except UnicodeEncodeError:
        raise ValueError(f"{where}: broken JSON: a \\u escape of a lone surrogate") from None
    except ValueError as error:
        raise ValueError(f"{where}: broken JSON: {error}") from None
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError, ValueError: see `read_text` and `parse_json`; or not an object.
    """
    values = parse_json(read_text(path), path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def read_json_lines(path: Path, warn: Callable[[str], object]) -> list[dict[str, Any]]:
    """The JSON objects of a log that processes append to; [] where there is no file.

    An incomplete last line, which a killed process may leave, is dropped. Other lines that are not objects
    are skipped, and `warn` is called with a message that names file and line.
    """
    rows = []
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = parse_json(line.decode(), where)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
            rows.append(row)
        except UnicodeDecodeError:
            warn(f"{where}: not UTF-8; skipped")
        except ValueError as error:
            warn(f"{error}; skipped")
    return rows


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
