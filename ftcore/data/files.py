"""Find data files by name or pattern, read their text, and take the values out of a row.

A row is a dictionary. It comes with `where`, its file and line, for error messages.
"""

import glob
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from gzip import GzipFile
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import open_text
from ftcore.data.arrow_rows import HUB, hub_files, saved_files

Row = dict[str, Any]
Paths = str | Path | Sequence[str | Path]  # one file or several; each may be a pattern of `expand_files`

_MAX_UNZIPPED = 2**23  # characters of a line or an item in a gzip file: 1 MB can be one line of 1 GB


def expand_files(names: Paths) -> list[Path]:
    """Find data files by name or pattern: the matches of a pattern sorted, and no file twice.

    Args:
        names: paths, which may begin with `~` and contain `*`, `?`, `[...]`, and `**` for directories;
            directories of `save_to_disk`; data sets on the hub, see `hub_files`.

    Raises:
        FileNotFoundError: a name or pattern matches nothing.
        ValueError: another directory, or a data set that cannot be downloaded.
    """
    files: list[Path] = []
    for name in [names] if isinstance(names, str | Path) else names:
        path = Path(os.path.expanduser(name))  # Path.expanduser raises for ~nosuchuser
        if path.as_posix().startswith(HUB):
            files += hub_files(path.as_posix())
        elif path.is_dir():
            files += saved_files(path)
        elif path.exists():
            files.append(path)
        elif matches := _matches(path):
            files += matches
        else:
            what = "no file matches" if glob.has_magic(str(name)) else "no such file:"
            advice = "; separate several files by spaces" if "," in str(name) else ""
            raise FileNotFoundError(f"{what} {name}{advice}")
    return list(dict.fromkeys(files))


def _matches(pattern: Path) -> list[Path]:
    """The files that match, sorted, without the token ids that `read_corpus` keeps beside its texts."""
    matches = map(Path, sorted(glob.glob(str(pattern), recursive=True)))
    return [match for match in matches if match.is_file() and not match.name.endswith(".ids.safetensors")]


def suffix(path: Path) -> str:
    """The suffix in lower case, without that of gzip: ".jsonl" of "a.JSONL.gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def peek_text(file: TextIOWrapper) -> str:
    """The first characters of a file that was just opened, without white space before them."""
    start = file.buffer.peek(2**13)  # type: ignore[attr-defined]
    return start.decode("utf-8-sig", errors="ignore").lstrip()


def read_chunks(path: Path, size: int) -> Iterator[str]:
    """The text of a file larger than memory: `size` characters at a time."""
    with open_text(path, gunzip=True) as file:
        line = 1
        while chunk := file.read(size):
            check_no_nul(chunk, path, line)
            line += chunk.count("\n")
            yield chunk


def read_lines(path: Path, file: TextIOWrapper) -> Iterator[str]:
    """Lines without byte order marks, which concatenated files have in the middle.

    Raises:
        ValueError: a line with a NUL character, or longer than a gzip file's may be.
    """
    limit = max_length(file)
    for number, line in enumerate(iter(lambda: file.readline(limit), ""), 1):
        check_no_nul(line, path, number)
        check_length(line, limit, path)
        yield line.removeprefix("\ufeff")


def numbered_lines(path: Path, file: TextIOWrapper) -> Iterator[tuple[str, str]]:
    """The lines of `read_lines` that are not blank: (where, line)."""
    for number, line in enumerate(read_lines(path, file), 1):
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\n")


def max_length(file: TextIOWrapper) -> int:
    """Characters that a line or an item may have: limited in a gzip file, else by the size of the file."""
    return _MAX_UNZIPPED if isinstance(file.buffer, GzipFile) else sys.maxsize


def check_length(text: str, limit: int, path: Path) -> None:
    """Raise ValueError for a line or item as long as the limit."""
    if len(text) >= limit:
        raise ValueError(f"{path}: a line or item of {limit:,} characters or more: decompress the file first")


def check_no_nul(text: str, path: Path, line: int) -> None:
    """Raise ValueError, naming the line, for a NUL character."""
    if "\0" in text:
        line += text[: text.index("\0")].count("\n")
        raise ValueError(f"{path}, line {line}: a NUL character: the file is damaged, or is not text")


def text_of(row: Row, key: str, where: str, *, blank: bool = False) -> str:
    """The text under a key; of a number or a Boolean, the text that Python's csv module writes.

    Args:
        blank: accept text without characters other than white space.

    Raises:
        ValueError: it is missing, blank or of another type.
    """
    if key not in row:
        raise ValueError(f"{where}: no key {key!r} (found: {listed(row) or 'none'})")
    value = as_text(row[key])
    if not isinstance(value, str):
        raise ValueError(f"{where}: key {key!r} is {shown(value)}; expected a string or a number")
    if not value.strip() and not blank:
        raise ValueError(f"{where}: key {key!r} is empty; expected text")
    return value


def as_text(value: Any) -> Any:
    """A number or a Boolean as text, other values unchanged: rows of JSON lines are those of a CSV file."""
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if is_number else value


def listed(names: Iterable[object]) -> str:
    """Names, comma-separated, for error messages."""
    return ", ".join(shown(str(name))[1:-1] for name in islice(names, 12))
