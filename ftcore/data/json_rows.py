"""Rows of JSON: lines, arrays, objects one after the other, and an object with a list under "data".

The last one is SQuAD's layout if its items have `paragraphs`; else its items are the rows. One item is in
memory at a time.
"""

import re
from collections.abc import Iterator
from io import TextIOWrapper
from json import JSONDecoder
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import parse_json
from ftcore.data.files import (
    Row,
    check_length,
    check_no_nul,
    listed,
    max_length,
    numbered_lines,
    peek_text,
    suffix,
    text_of,
)

_decoder = JSONDecoder()
_BLOCK = 2**16  # characters to read at a time
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")  # with the byte order marks in the middle of concatenated files
# An object with a list under "data", after values that are no lists.
_DATA = re.compile(r'\{\s*("\w+"\s*:\s*("[^"]*"|[\w.+-]+)\s*,\s*)*"data"\s*:\s*\[')
_OPEN_LINE = re.compile(r".*[{\[,:][ \t]*[\r\n]")  # a line that ends inside of a value


def json_rows(path: Path, file: TextIOWrapper, expected: str, squad: bool) -> Iterator[tuple[str, Row]]:
    """The rows of a JSON file that was just opened: (where, row). See `read_rows` for the arguments.

    Raises:
        ValueError: broken JSON, a value that is not an object, or SQuAD's layout without `squad`.
    """
    start = peek_text(file)
    has_data = suffix(path) != ".jsonl" and bool(_DATA.match(start))
    if has_data:
        items = _JSONReader(path, file).items_of_objects()
    elif start.startswith("[") or _OPEN_LINE.match(start):
        items = _JSONReader(path, file).items_of_arrays()
    else:
        items = ((where, parse_json(line, where)) for where, line in numbered_lines(path, file))
    for number, (where, item) in enumerate(items, 1):
        if not isinstance(item, dict):
            raise ValueError(f"{where}: {shown(item)} is not a record; expected an object {{...}}")
        if not has_data or "paragraphs" not in item:
            yield where, item
        elif squad:
            yield from _squad_rows(f"{path}, article {number}", item)
        else:
            raise ValueError(f"{path}: a SQuAD document, which is for task 'qa'; expected {expected}")


class _JSONReader:
    """Parses the values of a JSON text one at a time."""

    def __init__(self, path: Path, file: TextIOWrapper) -> None:
        self.path, self.file = path, file
        self.text, self.position = "", 0  # what was read, and how much of it was parsed
        self.line, self.number = 1, 1  # of `position`, and of the item there

    def items_of_arrays(self) -> Iterator[tuple[str, Any]]:
        """(where, item) of each array, and the values between arrays."""
        while first := self._next():
            if first == "[":
                yield from self._array()
            else:
                yield self._item()

    def items_of_objects(self) -> Iterator[tuple[str, Any]]:
        """(where, item) of the array under "data" of each object."""
        while self._next():
            self._take("{")
            while self._key() != "data":
                self._value()
                self._take(",")
            yield from self._array()
            while self._take(",}") == ",":
                self._key()
                self._value()

    def _array(self) -> Iterator[tuple[str, Any]]:
        self._take("[")
        if self._next() == "]":
            self._take("]")
            return
        yield self._item()
        while self._take(",]") == ",":
            yield self._item()

    def _item(self) -> tuple[str, Any]:
        self._next()
        where = f"{self.path}, item {self.number}, line {self.line}"
        item = self._value()
        self.number += 1
        return where, item

    def _key(self) -> Any:
        key = self._value()
        self._take(":")
        return key

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                end = _decoder.raw_decode(self.text, self.position)[1]
                is_whole = end + 2 < len(self.text)  # else it may be the start of a number: 1 of 1e+5
            except (ValueError, RecursionError):  # broken, or it goes on in the next block
                end, is_whole = len(self.text), False
            if is_whole or not self._read():
                break
        where, text = f"{self.path}, item {self.number}", self.text[self.position : end]
        if not is_whole:
            text = "\n" * (self.line - 1) + text  # for the line in the error
        value = parse_json(text, where)
        self._skip_to(end)
        return value

    def _take(self, expected: str) -> str:
        """Skip the next character, one of `expected`, and return it."""
        character = self._next()
        if not character or character not in expected:
            found = shown(character) if character else "the end of the file"
            raise ValueError(
                f"{self.path}, item {self.number}, line {self.line}: broken JSON: {found} instead of "
                f"{' or '.join(map(repr, expected))}"
            )
        self._skip_to(self.position + 1)
        return character

    def _next(self) -> str:
        """The next character after white space; "" at the end."""
        while True:
            self._skip_to(_BLANK.match(self.text, self.position).end())  # type: ignore[union-attr]
            if self.position < len(self.text) or not self._read():
                return self.text[self.position : self.position + 1]

    def _skip_to(self, end: int) -> None:
        self.line += self.text.count("\n", self.position, end)
        self.position = end

    def _read(self) -> bool:
        """Read as much again as is not parsed yet; False at the end of the file."""
        rest = self.text[self.position :]
        check_length(rest, max_length(self.file), self.path)
        block = self.file.read(max(_BLOCK, len(rest)))
        check_no_nul(block, self.path, self.line + rest.count("\n"))
        if block:
            self.text, self.position = rest + block, 0
        return bool(block)


def _squad_rows(where: str, article: Row) -> Iterator[tuple[str, Row]]:
    """The questions of an article of SQuAD, with their contexts."""
    for p, paragraph in enumerate(_objects(article, "paragraphs", where), 1):
        paragraph_name = f"{where}, paragraph {p}"
        context = text_of(paragraph, "context", paragraph_name)
        for q, question in enumerate(_objects(paragraph, "qas", paragraph_name), 1):
            yield f"{paragraph_name}, question {q}", {**question, "context": context}


def _objects(parent: Row, key: str, where: str) -> list[Row]:
    children = parent.get(key)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise ValueError(f"{where}: no list of objects under {key!r} (found keys: {listed(parent)})")
    return children
