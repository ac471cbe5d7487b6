"""Read rows from files: JSON, tables of text such as CSV, lines of `text;label`, parquet and arrow.

Rows are read one at a time, so a file may be larger than memory. All but parquet and arrow may be compressed
by gzip.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from reprlib import repr as shown
from typing import Literal

from ftcore.checkpoints.files import open_text
from ftcore.data.arrow_rows import arrow_format, arrow_rows
from ftcore.data.files import Row, listed, numbered_lines, peek_text, read_lines, suffix
from ftcore.data.json_rows import json_rows
from ftcore.output import printable, warn

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_CSV_FIELD = 2**26  # characters of a field; the csv module's own limit is 2**17


def read_rows(
    path: Path, *, expected: str, squad: bool = False, line_row: Callable[[str, str], Row] | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of a file: (where, row). Rows that repeat the names of the columns are skipped with a warning.

    Args:
        expected: a description of valid files, for error messages.
        squad: accept SQuAD's layout.
        line_row: accept plain text: the row of a line, called with (line, where).

    Raises:
        ValueError: broken or of another format; the message names file and line.
    """
    if arrow_format(path):
        yield from arrow_rows(path)
        return
    with open_text(path, gunzip=True) as file:
        row_format = find_row_format(path, file)
        if row_format == "json":
            rows = json_rows(path, file, expected, squad)
        elif row_format == "csv":
            rows = _csv_rows(path, file)
        elif line_row:
            rows = ((where, line_row(line, where)) for where, line in numbered_lines(path, file))
        else:
            raise ValueError(f"{path}: neither JSON nor CSV; expected {expected}")
        for where, row in rows:
            is_header = bool(row) and all(str(row[key]).strip().lower() == key.lower() for key in row)
            if is_header and (row_format != "text" or len(row) > 1):  # not a line "prompt" of prompts
                warn(f"{where}: names of columns, not an example: skipped")
            else:
                yield where, row


def find_row_format(path: Path, file: TextIOWrapper) -> Literal["json", "csv", "text"]:
    """The format of a text file that was just opened, by its suffix or its first characters."""
    start = peek_text(file)
    if suffix(path) in (".json", ".jsonl") or re.match(r'\{\s*"|\[\s*\{\s*"', start):
        return "json"
    header = _first_line(start)
    if suffix(path) in (".csv", ".tsv"):
        return "csv"
    if header.replace(" ", "") == "text;label":  # of lines that `labeled_row` reads
        return "text"
    return "csv" if any(_is_header(header.split(delimiter)) for delimiter in _DELIMITERS) else "text"


def _first_line(start: str) -> str:
    return re.split(r"[\r\n]", start)[0]


def _is_header(fields: list[str]) -> bool:
    names = [field.strip('" ') for field in fields]
    return (
        len(names) > 1
        and all(map(str.isidentifier, names))
        and bool({"text", "source", "question", "prompt"} & {*names})
    )


def labeled_row(line: str, where: str) -> Row:
    """The row of a line `text;label`. Raises ValueError without a semicolon."""
    # The last semicolon: the text may contain others, a label does not.
    content, separator, label = line.rpartition(";")
    if not separator:
        raise ValueError(f"{where}: no ';' between text and label; expected text;label")
    return {"text": content, "label": label}


def _csv_rows(path: Path, file: TextIOWrapper) -> Iterator[tuple[str, Row]]:
    delimiter = _find_delimiter(path, _first_line(peek_text(file)))
    # strict: an unclosed quote is an error
    reader = csv.reader(read_lines(path, file), delimiter=delimiter, strict=True)
    csv.field_size_limit(max(_CSV_FIELD, csv.field_size_limit()))  # of the process; a reader has none
    header: list[str] = []
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{where}: broken CSV: {printable(str(error))}; put a field with quotation marks in "
                "quotation marks, and double those inside"
            ) from None
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
                f"quote fields that contain {_DELIMITERS[delimiter]}"
            )
        else:
            yield where, dict(zip(header, fields, strict=True))


def _find_delimiter(path: Path, header: str) -> str:
    """The most frequent delimiter outside of quotes. A warning says if the suffix promises another."""
    promised = "\t" if suffix(path) == ".tsv" else ","
    found = max([promised, *_DELIMITERS], key=re.sub(r'"[^"]*"', "", header).count)
    if found != promised and suffix(path) in (".csv", ".tsv"):
        warn(f"{path}: its fields are separated by {_DELIMITERS[found]}, not by {_DELIMITERS[promised]}")
    return found
