"""The correct answers of a question, and lists in the text of a CSV field."""

import ast
import json
import re
import warnings
from contextlib import suppress
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import parse_json
from ftcore.data.files import Row, as_text


def read_answers(row: Row, key: str, where: str) -> tuple[str, ...]:
    """All correct answers of a question, without duplicates, in the order of the file; () if it has none.

    Under `key` is a string, a list of strings, a list of {"text": ...} (SQuAD's own layout), or
    {"text": [...], "answer_start": [...]} (the layout of the Hugging Face data set). As in SQuAD 2.0, an
    empty list is a question without an answer, and so is a row whose `is_impossible` is true.

    Raises:
        ValueError: another layout, or only blank texts.
    """
    if str(row.get("is_impossible", "")).strip().lower() in ("true", "1", "1.0"):  # in CSV it is text
        return ()
    given = row[key]
    texts = given.get("text") if isinstance(given, dict) else given
    listed_texts = texts if isinstance(texts, list) else [texts]
    answers = [as_text(text.get("text") if isinstance(text, dict) else text) for text in listed_texts]
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(
            f"{where}: key {key!r} is {shown(given)}; expected a string, a list of strings, "
            'or {"text": [...]}'
        )
    found = tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if answers and not found:
        raise ValueError(
            f"{where}: key {key!r} is empty; expected the answer's text (a question without an answer has an "
            "empty list, or a true is_impossible)"
        )
    return found


def parse_literal(value: Any, key: str, where: str) -> Any:
    """The list or dict in a string, as JSON or as Python prints it; other values unchanged.

    Raises:
        ValueError: it looks like one and cannot be read.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith(("[", "{", "(", "array(")):
        return value
    with suppress(ValueError):
        return parse_json(text, where)
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            parsed = ast.literal_eval(text[: 2**20])  # a syntax tree is large; a text that is cut is refused
        # NumPy prints ['a' 'b'] without a comma, which Python reads as ['ab'].
        if isinstance(parsed, tuple | list | dict) and _quotes(repr(parsed)) == _quotes(text):
            return parse_json(json.dumps(parsed), where)  # tuples as lists, and within the limits of JSON
    if re.match(r"[\[{][\[\s]*([bru]?['\"]|array\()|array\(", text):
        raise ValueError(
            f"{where}: key {key!r} is {shown(value)}, a list or dict that cannot be read; write it as JSON"
        )
    return value


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')
