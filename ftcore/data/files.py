"""Read rows from files: JSON lines, CSV, SQuAD's JSON and lines of `text;label`.

A row is a dictionary. It comes with `where`, its file and line, for error messages.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import not_utf8, parse_json, require_text

Row = dict[str, Any]


def read_chunks(path: Path, size: int) -> Iterator[str]:
    """`read_text` for files larger than memory: `size` characters at a time."""
    require_text(path)
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:  # None: every line ends with "\n"
            while chunk := file.read(size):
                yield chunk
    except UnicodeDecodeError:
        raise not_utf8(path) from None


def read_rows(
    path: Path, text: str, *, expected: str, squad: bool = False, labeled_lines: bool = False
) -> Iterator[tuple[str, Row]]:
    """The rows of a file: (where, row).

    The format follows from the suffix (.json, .jsonl, .csv) or, without one of these, the first character.

    Args:
        text: the content of the file, from `read_text`.
        expected: a description of valid files, for error messages.
        squad: accept one SQuAD document.
        labeled_lines: accept lines of `text;label`.

    Raises:
        ValueError: broken or of another format; the message names file and line.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _csv_rows(path, text)
    if suffix == ".jsonl":
        return json_line_rows(path, text)
    if suffix == ".json" or re.match(r'\s*\{\s*"', text):
        return _json_rows(path, text, expected=expected, squad=squad)
    if labeled_lines:
        return _labeled_line_rows(path, text)
    raise ValueError(f"{path}: neither JSON nor CSV; expected {expected}")


def _labeled_line_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for where, line in numbered_lines(path, text):
        # The last semicolon: the text may contain others, a label does not.
        content, separator, label = line.rpartition(";")
        if not separator:
            raise ValueError(f"{where}: no ';' between text and label; expected text;label")
        yield where, {"text": content, "label": label}


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: an unclosed quote is an error
    header: list[str] = []
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = [name.strip() for name in fields]
            elif len(fields) != len(header):
                raise ValueError(
                    f"{where}: {len(fields)} fields, but the header has {len(header)} ({listed(header)}); "
                    "quote fields that contain a comma"
                )
            else:
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: broken CSV: {error}") from None


def _json_rows(path: Path, text: str, *, expected: str, squad: bool) -> Iterator[tuple[str, Row]]:
    """A .json file is one SQuAD document or JSON lines, which often have this suffix too."""
    start = len(text) - len(text.lstrip())
    try:
        document, end = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: broken JSON: {error.msg}") from None
    if isinstance(document, dict) and "data" in document and not text[end:].strip():
        if not squad:
            raise ValueError(f"{path}: a SQuAD document, which is for task 'qa'; expected {expected}")
        return _squad_rows(path, document)
    if isinstance(document, list):
        raise ValueError(f"{path}: a JSON array; write one object per line (JSON lines)")
    return json_line_rows(path, text)


def json_line_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """The rows of JSON lines: (where, row)."""
    for where, line in numbered_lines(path, text):
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: {short(row)} is not a record; expected an object {{...}} on every line"
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


def numbered_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank: (where, line)."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def text_of(row: Row, key: str, where: str) -> str:
    """The text under a key. Raises ValueError if it is missing, blank or not a string."""
    if key not in row:
        raise ValueError(f"{where}: no key {key!r} (found: {listed(row) or 'none'})")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}: key {key!r} is {short(value)}; expected a string")
    if not value.strip():
        raise ValueError(f"{where}: key {key!r} is empty; expected text")
    return value


def listed(names: Any) -> str:
    """Names, comma-separated, for error messages."""
    return ", ".join(str(name) for name in names)


def short(value: object) -> str:
    """A value as JSON of at most 60 characters, for error messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
