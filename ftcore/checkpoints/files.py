"""Text, JSON, atomic writes and file locks, without torch."""

import codecs
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from reprlib import repr as shown
from typing import Any, BinaryIO

from safetensors import SafetensorError

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
    b"PAR1": "a parquet file; expected text",
    b"ARROW1": "an arrow file; expected text",
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


@contextmanager
def open_text(path: Path, *, gunzip: bool = False) -> Iterator[io.TextIOWrapper]:
    """Open a UTF-8 text file, which may be a pipe, for reading; its lines end with "\\n".

    Args:
        gunzip: decompress a gzip file while it is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a directory, an empty file, not UTF-8, a damaged gzip file, or a format of
            `describe_format`.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; expected a file")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with _open_bytes(path, gunzip) as file:
            start = file.peek(64)
            if not start:
                raise ValueError(f"{path}: the file is empty")
            if description := describe_format(start[:64]):
                raise ValueError(f"{path}: {description}")
            # Without the byte order mark that spreadsheets write; newline=None: every line ends with "\n".
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline=None)
    except UnicodeDecodeError:
        raise _not_utf8(path, gunzip) from None


@contextmanager
def _open_bytes(path: Path, gunzip: bool) -> Iterator[Any]:
    with path.open("rb") as file:
        is_gzip = gunzip and file.peek(2).startswith(b"\x1f\x8b")
        try:
            yield gzip.GzipFile(fileobj=file) if is_gzip else file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: a damaged gzip file ({error})") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, its lines ended by "\\n". Raises the errors of `open_text`."""
    with open_text(path) as file:
        return file.read()


def _not_utf8(path: Path, gunzip: bool) -> ValueError:
    """An error that names the first line that is not UTF-8."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        if path.is_file():  # a pipe cannot be read again
            with _open_bytes(path, gunzip) as file:
                while chunk := file.read(2**16):
                    line += decoder.decode(chunk).count("\n")
                decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        byte = error.object[error.start]
        return ValueError(f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")
    return ValueError(f"{path}: not UTF-8; save the file as UTF-8")


def parse_json(text: str, where: object, *, unique_keys: bool = False) -> Any:
    """Parse JSON from a file or a request.

    Args:
        where: file, and line where it has several documents; heads the message of an error.
        unique_keys: refuse a key that an object has twice; otherwise the last one counts.

    Raises:
        ValueError: broken JSON; NaN, Infinity or a number beyond float64; a lone surrogate; more than
            MAX_JSON_DEPTH levels.
    """
    try:
        hook = _unique if unique_keys else None
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=hook)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # a surrogate: UTF-8 cannot encode half of a pair
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
            raise RecursionError
    except RecursionError:
        raise ValueError(f"{where}: broken JSON: more than {MAX_JSON_DEPTH} levels of nesting") from None
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.rstrip() else ""
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {shown(key)} twice")
        values[key] = value
    return values


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def read_json(path: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError, ValueError: see `read_text` and `parse_json`; or not an object.
    """
    values = parse_json(read_text(path), path, unique_keys=unique_keys)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def read_json_lines(
    path: Path,
    warn: Callable[[str], object],
    is_valid: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> list[dict[str, Any]]:
    """The JSON objects of a log that processes append to; [] where there is no file.

    An incomplete last line, which a killed process may leave, is dropped. Other lines that are not objects,
    or not valid ones, are skipped, and `warn` is called with a message that names file and line.
    """
    rows = []
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate([*lines, last], 1):
        where = f"{path}, line {number}"
        try:
            row = parse_json(line.decode(), where)
            if not isinstance(row, dict) or not is_valid(row):
                raise ValueError(f"{where}: not a line of this log: {shown(row)}")
            rows.append(row)
        except ValueError as error:
            message = f"{where}: not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            if number <= len(lines):
                warn(f"{message}; skipped")
    return rows


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object with sorted keys, indented, for people to read."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all: to a temporary file that is flushed to disk and renamed.

    Args:
        path: the file; its directory must exist. One process at a time may write it.
        write: writes to the temporary path that it is called with. If it raises, the old file stays and the
            temporary one is removed.

    Raises:
        OSError: the file cannot be written; names it.
    """
    write_together({Path(path): write})


def write_together(writes: dict[Path, Callable[[Path], object]]) -> None:
    """Write several files as `write_atomically`: all are on disk before the first is renamed."""
    temporaries = {path: path.with_name(f".{path.name}.part") for path in writes}
    try:
        for path, write in writes.items():
            temporary = temporaries[path]
            with write_errors(path, temporary):
                temporary.unlink(missing_ok=True)  # left by a killed process
                temporary.touch()
                mode = temporary.stat().st_mode  # follows the umask; safetensors would create it with 0600
                write(temporary)
                temporary.chmod(mode)
                flush(temporary)
        for path, temporary in temporaries.items():
            with write_errors(path, temporary):
                temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    for directory in {path.parent for path in writes}:
        flush(directory)


@contextmanager
def write_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Raise the error of a write to `path`, a full disk for example, as an OSError that names the file.

    torch and safetensors raise other types. Errors that name another file pass.
    """
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(path), str(temporary)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path}: cannot be written (is the disk full? {error})") from None


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


_locked: set[BinaryIO] = set()

if hasattr(os, "register_at_fork"):
    # A lock lasts until no process has its file open, and workers may outlive a process that was killed.
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _locked])


def directory_lock(directory: Path, warn: Callable[[str], object]) -> AbstractContextManager[None]:
    """Hold an exclusive lock on an existing directory, in its file .lock, which stays; see `file_lock`."""
    return file_lock(directory / ".lock", wait=False, warn=warn)


@contextmanager
def file_lock(
    path: Path, *, wait: bool, warn: Callable[[str], object] = lambda message: None
) -> Iterator[None]:
    """Hold an exclusive lock on a file; a no-op on Windows.

    The system releases the lock when the process ends, also when it is killed.

    Args:
        wait: for another process that holds the lock; the file must exist, else it may be created.
        warn: called with a message where there are no locks, as on some network file systems.

    Raises:
        ValueError: another process holds the lock, and `wait` is False.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("rb" if wait else "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work on {path.parent}") from None
        except OSError as error:
            warn(f"{path.parent} cannot be locked ({error.strerror}): let no other process write to it")
        _locked.add(file)
        try:
            yield
        finally:
            _locked.remove(file)
