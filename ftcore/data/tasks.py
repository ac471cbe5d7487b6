"""Tasks: from a record in a file to a source text and a target text.

    task       files                       T5: source -> target           GPT-2: source + target
    qa         SQuAD 1.1 JSON, JSONL, CSV  question: Q context: C -> A    context: C⏎question: Q⏎answer: + A
    emotion    "text;label", CSV, JSONL    Emotion: TEXT -> LABEL         (nothing) + Emotion: TEXT
    text2text  JSONL, CSV                  SOURCE -> TARGET               SOURCE⏎ + TARGET

Running text has no records: `read_corpus` tokenizes it, for `CausalLMDataset` (GPT-2, task `lm`) or
`SpanCorruption` (T5, task `span-corruption`).

T5's qa source is the one its checkpoints were trained on (T5 paper, appendix D). GPT-2's source is truncated
on the left, so the question and the cue `answer:` come last. Its answer starts with a space, since GPT-2's
vocabulary merges a word with the space before it.
"""

import ast
import json
import random
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import parse_json
from ftcore.data.files import Paths, Row, as_text, expand_files, listed, text_of
from ftcore.data.rows import labeled_row, read_rows
from ftcore.output import few

# The fields of each task's prompt.
_PROMPT_FIELDS = {
    "qa": ("question", "context"),
    "emotion": ("text",),
    "lm": ("text",),
    "text2text": ("source",),
    "span-corruption": ("text",),
}
TASKS = tuple(_PROMPT_FIELDS)
CORPUS_TASKS = ("lm", "span-corruption")  # trained on running text instead of records

# Fields of the targets, which in CSV may hold a list or a dict as text.
_STRUCTURED_FIELDS = {"qa": {"answer", "answers"}, "emotion": {"label"}}

# The file formats of each task with records, for error messages.
_FORMS = {
    "qa": "SQuAD 1.1 JSON, or JSON lines or CSV with context, question and answer (or answers)",
    "emotion": "lines of text;label, or CSV or JSON lines with text and label",
    "text2text": "JSON lines or CSV with source and target",
}


@dataclass(frozen=True)
class Record:
    """One training example as text."""

    source: str  # the input; "" is pure language modelling
    target: str  # the text to learn
    references: tuple[str, ...] = ()  # all correct answers, the target first
    group: str | None = field(default=None, repr=False)  # equal within a passage; a split keeps it together
    where: str = field(default="", compare=False, repr=False)  # file and line, for error messages


def read_records(task: str, paths: Paths, *, decoder_only: bool, limit: int | None = None) -> list[Record]:
    """Read the files of one task, in order; at most `limit` records.

    Args:
        task: one of `TASKS` with records, that is, none of `CORPUS_TASKS`.
        paths: one file or several, or patterns, see `expand_files`; of any format of `read_rows`.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the task is unknown, or a file is empty, not UTF-8, not of the expected format, or has
            an invalid record. The message names the file and the line.
    """
    _check_task(task)
    if task in CORPUS_TASKS:
        raise ValueError(f"task {task!r} has no records, it trains on running text: use read_corpus")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}; expected at least 1")
    files = expand_files(paths)
    line_row = labeled_row if task == "emotion" else None
    rows = chain.from_iterable(
        read_rows(file, expected=_FORMS[task], squad=task == "qa", line_row=line_row) for file in files
    )
    records = [_record(task, row, where, decoder_only) for where, row in islice(rows, limit)]
    if not records:
        raise ValueError(f"{few([*map(str, files)])}: no records; expected {_FORMS[task]}")
    return records


def prompt(task: str, *, decoder_only: bool, **fields: str) -> str:
    """The input text of a task, in training and for generation.

    `fields` are `question` and `context` for qa, `source` for text2text, `text` for the others.
    """
    _check_task(task)
    expected = _PROMPT_FIELDS[task]
    if set(fields) != set(expected):
        given = listed(fields) or "nothing"
        raise ValueError(f"a prompt of task {task!r} takes {listed(expected)}; got {given}")
    if task == "qa":
        question, context = fields["question"].strip(), fields["context"].strip()
        if decoder_only:
            return f"context: {context}\nquestion: {question}\nanswer:"
        return f"question: {question} context: {context}"
    if task == "emotion":
        return f"Emotion: {fields['text'].strip()}"
    if task == "text2text" and decoder_only:
        return fields["source"] + "\n"
    return fields[expected[0]]


def check_corpus_task(task: str, decoder_only: bool) -> None:
    """Raise ValueError for a task that does not train on running text, or not this family of models."""
    _check_task(task)
    if task not in CORPUS_TASKS:
        raise ValueError(f"task {task!r} learns from records, not from running text: use read_records")
    if task == "lm" and not decoder_only:
        raise ValueError(
            "task 'lm' trains a decoder-only model such as GPT-2; T5 learns from plain text with "
            "'span-corruption', and from pairs of texts with 'text2text'"
        )
    if task == "span-corruption" and decoder_only:
        raise ValueError(
            "task 'span-corruption' trains an encoder-decoder model such as T5; GPT-2 learns from plain text "
            "with 'lm'"
        )


def split_records(
    records: Sequence[Record], fraction: float, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Split off about `fraction` of the records: (train, validation), each in the order of the file.

    Questions about one passage stay together, and so do equal texts. Otherwise the validation score would
    measure memorized passages.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction is {fraction}; expected a number between 0 and 1")
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.group or record.source or record.target, []).append(index)
    if len(groups) < 2:
        raise ValueError(
            f"cannot split {len(records)} record(s) that share one passage or text; "
            "pass a separate validation file"
        )
    shuffled = list(groups.values())
    random.Random(int(seed)).shuffle(shuffled)  # NumPy's integers are not accepted
    wanted = fraction * len(records)
    held_out: set[int] = set()
    for group in shuffled[:-1]:  # both sides get at least one group
        held_out.update(group)
        if len(held_out) >= wanted:
            break
    train = [record for index, record in enumerate(records) if index not in held_out]
    validation = [record for index, record in enumerate(records) if index in held_out]
    return train, validation


# ------------------------------------------------------------------------------------------------------------
# From rows to records; `where` names the file and line of a row for error messages.


def _record(task: str, row: Row, where: str, decoder_only: bool) -> Record:
    for key in _STRUCTURED_FIELDS.get(task, set()) & row.keys():
        row[key] = _parse_literal(row[key], key, where)
    fields = {key: text_of(row, key, where) for key in sorted(_PROMPT_FIELDS[task])}
    source = prompt(task, decoder_only=decoder_only, **fields)
    if task == "qa":
        answers = _answers(row, where)
        target = f" {answers[0]}" if decoder_only else answers[0]
        return Record(source, target, references=answers, group=fields["context"], where=where)
    if task == "text2text":
        target = text_of(row, "target", where)
        return Record(source, target, references=(target,), where=where)
    label = text_of(row, "label", where).strip()
    if decoder_only:
        return Record(source="", target=source, where=where)
    return Record(source, label, references=(label,), where=where)


def _parse_literal(value: Any, key: str, where: str) -> Any:
    """The list or dict in a string, as JSON or as Python prints it; other values unchanged."""
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


def _answers(row: Row, where: str) -> tuple[str, ...]:
    """All gold answers of a question, without duplicates, in the order of the file.

    `answer` or `answers` is a string, a list of strings, a list of {"text": ...} (SQuAD's own layout), or
    {"text": [...], "answer_start": [...]} (the layout of the Hugging Face data set).
    """
    key = "answers" if "answers" in row else "answer"
    if key not in row:
        raise ValueError(f"{where}: no key 'answer' or 'answers' (found: {listed(row)})")
    given = row[key]
    texts = given.get("text") if isinstance(given, dict) else given
    listed_texts = texts if isinstance(texts, list) else [texts]
    answers = [as_text(text.get("text") if isinstance(text, dict) else text) for text in listed_texts]
    is_impossible = str(row.get("is_impossible", "")).strip().lower() in ("true", "1")  # in CSV it is text
    if is_impossible or not answers:
        raise ValueError(
            f"{where}: a question without an answer (unanswerable questions of SQuAD 2.0 are not supported: "
            "remove them from the file)"
        )
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(
            f"{where}: key {key!r} is {shown(given)}; expected a string, a list of strings, "
            'or {"text": [...]}'
        )
    answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if not answers:
        raise ValueError(f"{where}: key {key!r} is empty; expected the answer's text")
    return tuple(answers)


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known tasks: {listed(TASKS)}")
