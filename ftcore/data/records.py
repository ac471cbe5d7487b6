"""Records: the rows of a file as source and target texts of a task."""

import ast
import json
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import parse_json
from ftcore.data.files import Paths, Row, as_text, expand_files, listed, text_of
from ftcore.data.rows import labeled_row, read_rows
from ftcore.data.tasks import CORPUS_TASKS, Task, as_task, require_column
from ftcore.data.templates import Template
from ftcore.output import few

# The file formats of each task with records, for error messages.
_FORMS = {
    "qa": "SQuAD JSON, or JSON lines or CSV with context, question and answer (or answers)",
    "emotion": "lines of text;label, or CSV or JSON lines with text and label",
    "text2text": "JSON lines or CSV with source and target",
    "chat": 'JSON lines with messages, a list of {"role": ..., "content": ...}',
}

ROLES = ("system", "user", "assistant")  # of chat messages
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # in {"from": ..., "value": ...}
_MOST_MESSAGES = 1000  # of a conversation, since the sources of its replies grow with the square of it


@dataclass(frozen=True)
class Record:
    """One training example as text."""

    source: str  # the input; "" is pure language modelling
    target: str  # the text to learn; "" where a question has no answer
    references: tuple[str, ...] = ()  # all correct answers, the target first
    group: str | None = field(default=None, repr=False)  # equal within a passage; a split keeps it together
    where: str = field(default="", compare=False, repr=False)  # file and line, for error messages


def read_records(
    task: str | Task, paths: Paths, *, decoder_only: bool, limit: int | None = None
) -> list[Record]:
    """Read the files of one task, in order; at most `limit` records.

    Args:
        task: one with records, that is, none of `CORPUS_TASKS`; a name stands for the task as it is.
        paths: one file or several, or patterns, see `expand_files`; of any format of `read_rows`.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the task is unknown, or a file is empty, not UTF-8, not of the expected format, or has
            an invalid record. The message names the file and the line.
    """
    task = _with_records(task)
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}; expected at least 1")
    files, expected = expand_files(paths), _FORMS[task.name]
    line_row = labeled_row if task.name == "emotion" else None
    rows = chain.from_iterable(
        read_rows(file, expected=expected, squad=task.name == "qa", line_row=line_row) for file in files
    )
    found = chain.from_iterable(_records(task, row, where, decoder_only) for where, row in rows)
    records = list(islice(found, limit))
    if not records:
        raise ValueError(f"{few([*map(str, files)])}: no records; expected {expected}")
    return records


def make_records(
    task: str | Task, rows: Iterable[Record | Mapping[str, Any]], *, decoder_only: bool
) -> list[Record]:
    """Make the records of rows in memory, as `read_records` makes those of a file's rows.

    Args:
        task: as in `read_records`.
        rows: dicts as in JSON lines; records stay as they are.
        decoder_only: as in `read_records`.

    Raises:
        ValueError: the task is unknown, or a row is none of it. The message has the row's number, from 0.
    """
    task, records = _with_records(task), []
    for number, row in enumerate(rows):
        if isinstance(row, Record):
            records.append(row)
        elif isinstance(row, Mapping):
            records += _records(task, dict(row), f"row {number}", decoder_only)
        else:
            raise ValueError(f"row {number} is {shown(row)}; expected a Record, or a dict of columns")
    return records


def _with_records(task: str | Task) -> Task:
    """The task of that name. Raises ValueError if there is none, or if it trains on running text."""
    task = as_task(task)
    if task.name in CORPUS_TASKS:
        raise ValueError(f"task {task.name!r} has no records, it trains on running text: use read_corpus")
    return task


def read_prompt(task: Task, row: Row, where: str, *, decoder_only: bool) -> str:
    """The source of a row, for generation; for chat, what leads to the last reply.

    Raises:
        ValueError: a column is missing or is not a text.
    """
    if task.name == "chat":
        messages = _messages(task, row, where)
        if messages[-1]["role"] == "assistant":
            messages.pop()
        return chat_prompt(messages)
    template = task.prompt_template(decoder_only)
    texts = _texts(task, template, row, where, may_be_blank=task.template is not None)
    return task.prompt(texts, decoder_only=decoder_only)


def has_prompt(task: Task, row: Row) -> bool:
    """Whether a row has the columns of the task's prompt."""
    names = ("messages",) if task.name == "chat" else task.prompt_fields
    return all(task.column(name) in row for name in names)


def chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The source of the reply to these messages: a line per message, "user: Hello", then "assistant:"."""
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:"


def split_records(
    records: Sequence[Record], fraction: float, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Split off about `fraction` of the records: (train, validation), each in the order of the file.

    Questions about one passage stay together, and so do equal texts. Otherwise the validation score would
    measure memorized passages.

    Raises:
        ValueError: a fraction outside of 0 to 1, or all records belong together.
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


def _records(task: Task, row: Row, where: str, decoder_only: bool) -> Iterator[Record]:
    if task.name == "chat":
        yield from _replies(_messages(task, row, where), where, decoder_only)
        return
    source = read_prompt(task, row, where, decoder_only=decoder_only)
    references = _references(task, row, where)
    if not task.learns_target(decoder_only):
        yield Record(source="", target=source, where=where)
        return
    # GPT-2's answer follows "answer:"; the targets of other tasks are on a line of their own.
    space = " " if decoder_only and task.name == "qa" and references[0] else ""
    context = row.get(task.column("context")) if task.name == "qa" else None
    group = context if isinstance(context, str) else None
    yield Record(source, space + references[0], references, group, where)


def _references(task: Task, row: Row, where: str) -> tuple[str, ...]:
    """The target and other correct answers."""
    if task.name != "qa":
        return (_target(task, row, where),)
    answers = _answers(row, _answer_column(task, row, where), where)
    rows = [row | {task.column("answer"): answer} for answer in answers]
    return tuple(_target(task, answered, where) for answered in rows) or (task.no_answer,)


def _answer_column(task: Task, row: Row, where: str) -> str:
    """The column of the answers: the one that the task names, else `answers` or `answer`."""
    for name in ("answers", "answer"):
        if name in task.columns:
            require_column(name, task.column(name), row, where)
            return task.column(name)
    if found := [name for name in ("answers", "answer") if name in row]:
        return found[0]
    advice = "; `columns` answer=COLUMN names another one"
    raise ValueError(f"{where}: no key 'answer' or 'answers' (found: {listed(row)}){advice}")


def _target(task: Task, row: Row, where: str) -> str:
    template = task.answer_template
    texts = _texts(task, template, row, where, may_be_blank=task.target_template is not None)
    target = template.fill(texts)
    return target.strip() if task.name == "emotion" else target


def _texts(task: Task, template: Template, row: Row, where: str, *, may_be_blank: bool) -> dict[str, str]:
    """The texts of a row for a template's placeholders. In the user's own template, one may be blank."""
    texts = {name: _text(task, row, name, where, may_be_blank) for name in template.names}
    if not any(text.strip() for text in texts.values()):
        raise ValueError(f"{where}: {listed(texts)}: empty; expected text")
    return texts


def _text(task: Task, row: Row, name: str, where: str, may_be_blank: bool) -> str:
    column = task.column(name)
    require_column(name, column, row, where)
    if name == "label":  # in CSV a list is text, which is no label either
        row[column] = _parse_literal(row[column], column, where)
    text = text_of(row, column, where, blank=may_be_blank)
    return task.word(text, where) if column == task.label_column else text


def _answers(row: Row, key: str, where: str) -> tuple[str, ...]:
    """All correct answers of a question, without duplicates, in the order of the file; () if it has none.

    Under `key` is a string, a list of strings, a list of {"text": ...} (SQuAD's own layout), or
    {"text": [...], "answer_start": [...]} (the layout of the Hugging Face data set). As in SQuAD 2.0, an
    empty list is a question without an answer, and so is a row whose `is_impossible` is true.

    Raises:
        ValueError: another layout, or only blank texts.
    """
    if str(row.get("is_impossible", "")).strip().lower() in ("true", "1", "1.0"):  # in CSV it is text
        return ()
    given = _parse_literal(row[key], key, where)
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


def _parse_literal(value: Any, key: str, where: str) -> Any:
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


def _messages(task: Task, row: Row, where: str) -> list[dict[str, str]]:
    """The messages of a conversation, checked."""
    column = task.column("messages")
    require_column("messages", column, row, where)
    messages = _parse_literal(row[column], column, where)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: key {column!r} is {shown(messages)}; expected {_FORMS['chat']}")
    if len(messages) > _MOST_MESSAGES:
        raise ValueError(f"{where}: {len(messages)} messages; expected at most {_MOST_MESSAGES}: split them")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f'{where}: {shown(message)}; expected {{"role": ..., "content": ...}}')
    role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
    role = text_of(message, role_key, where)
    role = _SHAREGPT_ROLES.get(role, role)
    if role not in ROLES:
        raise ValueError(f"{where}: role {shown(role)}; expected one of {listed(ROLES)}")
    return {"role": role, "content": text_of(message, content_key, where).strip()}


def _replies(messages: list[dict[str, str]], where: str, decoder_only: bool) -> Iterator[Record]:
    """A record for each reply of the assistant; a split keeps the conversation together."""
    replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        raise ValueError(f"{where}: no message of role 'assistant', so there is no reply to learn")
    conversation = chat_prompt(messages)
    for number in replies:
        reply, source = messages[number]["content"], chat_prompt(messages[:number])
        yield Record(source, f" {reply}" if decoder_only else reply, (reply,), conversation, where)
