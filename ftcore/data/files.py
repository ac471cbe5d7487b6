"""Read rows from files: JSON lines, CSV, SQuAD's JSON and lines of `text;label`.

A row is a dictionary. It comes with `where`, its file and line, for error messages. Rows are read one at a
time, so a file may be larger than memory, except for a SQuAD document.
"""

import csv
import glob
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal

from ftcore.checkpoints.files import open_text, parse_json
from ftcore.output import warn

Row = dict[str, Any]
Paths = str | Path | Sequence[str | Path]  # one file or several; each may be a pattern of `expand_files`

_CSV_FIELD = 2**26  # characters of a field; the csv module's own limit is 2**17
_csv_lock = threading.Lock()


def expand_files(patterns: Paths) -> list[Path]:
    """Find files by name or pattern, in this order; the matches of a pattern sorted, and no file twice.

    Args:
        patterns: paths, which may begin with `~` and contain `*`, `?`, `[...]`, and `**` for directories.

    Raises:
        FileNotFoundError: a pattern matches nothing.
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else map(Path, sorted(glob.glob(str(path), recursive=True)))
        if not (files := [match for match in matches if match == path or not match.is_dir()]):
            is_pattern = glob.has_magic(str(pattern))
            raise FileNotFoundError(f"{'no file matches' if is_pattern else 'no such file:'} {pattern}")
        paths += files
    return list(dict.fromkeys(paths))


def read_chunks(path: Path, size: int) -> Iterator[str]:
    """`read_text` for files larger than memory: `size` characters at a time."""
    with open_text(path) as file:
        line = 1
        while chunk := file.read(size):
            _check_no_nul(chunk, path, line)
            line += chunk.count("\n")
            yield chunk


def read_rows(
    path: Path, *, expected: str, squad: bool = False, line_row: Callable[[str, str], Row] | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of a file: (where, row). Rows that repeat the names of the columns are skipped with a warning.

    Args:
        expected: a description of valid files, for error messages.
        squad: accept one SQuAD document.
        line_row: accept plain text: the row of a line, called with (line, where).

    Raises:
        ValueError: broken or of another format; the message names file and line.
    """
    with open_text(path) as file:
        row_format, lines = find_row_format(path, file), _lines(path, file)
        if row_format == "csv":
            rows = _csv_rows(path, lines)
        elif row_format == "json":
            is_lines = path.suffix.lower() == ".jsonl"
            rows = _json_line_rows(path, lines) if is_lines else _json_rows(path, lines, expected, squad)
        elif line_row:
            rows = ((where, line_row(line, where)) for where, line in _numbered_lines(path, lines))
        else:
            raise ValueError(f"{path}: neither JSON nor CSV; expected {expected}")
        for where, row in rows:
            is_header = bool(row) and all(str(row[key]).strip().lower() == key.lower() for key in row)
            if is_header and (row_format != "text" or len(row) > 1):  # not a line "prompt" of prompts
                warn(f"{where}: names of columns, not an example: skipped")
            else:
                yield where, row


def find_row_format(path: Path, file: TextIOWrapper) -> Literal["json", "csv", "text"]:
    """The format of a file that was just opened, by its suffix or its first characters.

    Raises:
        ValueError: tab-separated values.
    """
    start = file.buffer.peek().decode("utf-8-sig", errors="ignore").lstrip()  # type: ignore[attr-defined]
    suffix = path.suffix.lower()
    first_line = re.split(r"[\r\n]", start)[0]
    if suffix == ".tsv" or _is_header(first_line.split("\t")):
        raise ValueError(f"{path}: tab-separated values; save the file as CSV, separated by commas")
    if suffix in (".json", ".jsonl") or re.match(r'\{\s*"|\[\s*\{\s*"', start):
        return "json"
    return "csv" if suffix == ".csv" or _is_header(first_line.split(",")) else "text"


def _is_header(fields: list[str]) -> bool:
    names = [field.strip('" ') for field in fields]
    return (
        len(names) > 1
        and all(map(str.isidentifier, names))
        and bool({"text", "source", "question", "prompt"} & {*names})
    )


def _lines(path: Path, file: Iterable[str]) -> Iterator[str]:
    """Lines without byte order marks, which concatenated files have in the middle."""
    for number, line in enumerate(file, 1):
        _check_no_nul(line, path, number)
        yield line.removeprefix("\ufeff")


def _check_no_nul(text: str, path: Path, line: int) -> None:
    if "\0" in text:
        line += text[: text.index("\0")].count("\n")
        raise ValueError(f"{path}, line {line}: a NUL character: the file is damaged, or is not text")


def labeled_row(line: str, where: str) -> Row:
    """The row of a line `text;label`."""
    # The last semicolon: the text may contain others, a label does not.
    content, separator, label = line.rpartition(";")
    if not separator:
        raise ValueError(f"{where}: no ';' between text and label; expected text;label")
    return {"text": content, "label": label}


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(lines, strict=True)  # strict: an unclosed quote is an error
    header: list[str] = []
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            fields = _next_row(reader)
        except csv.Error as error:
            raise ValueError(f"{where}: broken CSV: {error}") from None
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if not header:
            header = [name.strip() for name in fields]
            name, count = Counter(filter(None, header)).most_common(1)[0]
            if count > 1:
                raise ValueError(f"{where}: {count} columns have the name {shown(name)}")
        elif len(fields) != len(header):
            raise ValueError(
                f"{where}: {len(fields)} fields, but the header has {len(header)} ({listed(header)}); "
                "quote fields that contain a comma"
            )
        else:
            yield where, dict(zip(header, fields, strict=True))


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row. The csv module's limit for a field is global, so it is raised for this call only."""
    with _csv_lock:
        limit = csv.field_size_limit(_CSV_FIELD)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(limit)


def _json_rows(path: Path, lines: Iterator[str], expected: str, squad: bool) -> Iterator[tuple[str, Row]]:
    """A .json file is one SQuAD document or JSON lines, which often have this suffix too."""
    start: list[str] = []
    for line in lines:  # up to the second line that is not blank
        start.append(line)
        if line.strip() and any(map(str.strip, start[:-1])):
            break
    if not any(map(str.strip, start)):
        return
    (where, line), *second = _numbered_lines(path, start)
    try:
        document = parse_json(line, where)
        is_lines = isinstance(document, dict) and (second or "data" not in document)
    except ValueError:
        if not second:
            raise
        start += lines
        document, is_lines = parse_json("".join(start), path), False
    if is_lines:
        yield from _json_line_rows(path, chain(start, lines))
    elif isinstance(document, dict) and "data" in document:
        if not squad:
            raise ValueError(f"{path}: a SQuAD document, which is for task 'qa'; expected {expected}")
        yield from _squad_rows(path, document)
    else:
        kind = "a JSON array" if isinstance(document, list) else "JSON on several lines"
        raise ValueError(f"{path}: {kind}; write one object per line (JSON lines)")


def _json_line_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The rows of JSON lines: (where, row)."""
    for where, line in _numbered_lines(path, lines):
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: {shown(row)} is not a record; expected an object {{...}} on every line"
            )
        yield where, row


def _squad_rows(path: Path, document: Row) -> Iterator[tuple[str, Row]]:
    """The questions of a SQuAD document. It is one long line, so errors name article and paragraph."""
    for a, article in enumerate(_objects(document, "data", str(path)), 1):
        article_name = f"{path}, article {a}"
        for p, paragraph in enumerate(_objects(article, "paragraphs", article_name), 1):
            paragraph_name = f"{article_name}, paragraph {p}"
            context = text_of(paragraph, "context", paragraph_name)
            for q, question in enumerate(_objects(paragraph, "qas", paragraph_name), 1):
                yield f"{paragraph_name}, question {q}", {**question, "context": context}


def _objects(parent: Row, key: str, where: str) -> list[Row]:
    children = parent.get(key)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise ValueError(f"{where}: no list of objects under {key!r} (found keys: {listed(parent)})")
    return children


def _numbered_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The lines that are not blank: (where, line)."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\n")


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
    return str(value) if isinstance(value, int | float) else value


def listed(names: Iterable[object]) -> str:
    """Names, comma-separated, for error messages."""
    return ", ".join(shown(str(name))[1:-1] for name in islice(names, 12))
