"""Tasks: how a row of a file becomes a source text and a target text.

    task       rows                        T5: source -> target           GPT-2: source + target
    qa         question, context, answers  question: Q context: C -> A    context: C⏎question: Q⏎answer: + A
    emotion    text, label                 Emotion: TEXT -> LABEL         (nothing) + Emotion: TEXT
    text2text  source, target              SOURCE -> TARGET               SOURCE⏎ + TARGET
    chat       messages                    the turns so far -> the reply  the turns so far + the reply

Running text has no rows: `read_corpus` tokenizes it, for `CausalLMDataset` (GPT-2, task `lm`) or
`SpanCorruption` (T5, task `span-corruption`).

T5's qa source is the one its checkpoints were trained on (T5 paper, appendix D). GPT-2's source is truncated
on the left, so the question and the cue `answer:` come last. Its answer starts with a space, since GPT-2's
vocabulary merges a word with the space before it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import read_json, write_text
from ftcore.checkpoints.hub import resolve_directory
from ftcore.data.files import Row, as_text, listed
from ftcore.data.templates import Template, parse_template
from ftcore.output import did_you_mean

TASK_FILE = "task.json"  # in a checkpoint's directory
_LARGEST_TASK_FILE = 2**22  # bytes

# The prompts of T5 and of GPT-2.
_PROMPTS = {
    "qa": (
        "question: {question} context: {context}",
        "context: {context}\nquestion: {question}\nanswer:",
    ),
    "emotion": ("Emotion: {text}", "Emotion: {text}"),
    "lm": ("{text}", "{text}"),
    "text2text": ("{source}", "{source}"),
    "span-corruption": ("{text}", "{text}"),
    "chat": ("user: {message}\nassistant:", "user: {message}\nassistant:"),
}
TASKS = tuple(_PROMPTS)
CORPUS_TASKS = ("lm", "span-corruption")  # trained on running text instead of records

_TARGETS = {"qa": "{answer}", "emotion": "{label}", "text2text": "{target}"}

# The fields that `columns` may rename, beside the placeholders of the templates.
_FIELDS = {
    "qa": ("question", "context", "answer", "answers"),
    "emotion": ("text", "label"),
    "lm": ("text",),
    "text2text": ("source", "target"),
    "span-corruption": ("text",),
    "chat": ("messages",),
}


@dataclass(frozen=True)
class Task:
    """How a row becomes a source and a target.

    Args:
        name: one of `TASKS`.
        columns: field -> column of the file, where they differ: {"source": "document", "target": "summary"}.
        template: the source instead of the task's own, "summarize: {document}". Placeholders are columns or
            fields. For GPT-2, text2text ends it with a line break.
        target_template: the target. GPT-2 then learns a target in task emotion too.
        labels: the words of labels, {0: "sadness", 1: "joy"}; keys are integers, Booleans or text.
        no_answer: target of a question without an answer; "" teaches the end token alone.

    Raises:
        ValueError: an unknown task or field, a wrong template, or a setting that the task does not have.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    target_template: str | None = None
    labels: Mapping[Any, str] = field(default_factory=dict)
    no_answer: str = ""

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise ValueError(f"unknown task {shown(self.name)}; known tasks: {listed(TASKS)}")
        self._check_types()
        labels = {_label_key(label): word for label, word in self.labels.items()}
        object.__setattr__(self, "labels", labels)  # the dataclass is frozen
        for argument, tasks in (
            ("template", _TARGETS),
            ("target_template", _TARGETS),
            ("labels", ("emotion", "text2text")),
            ("no_answer", ("qa",)),
        ):
            if getattr(self, argument) and self.name not in tasks:
                raise ValueError(f"`{argument}` is for task {' or '.join(tasks)}, not for {self.name}")
        known = {*_FIELDS[self.name], *self.prompt_fields, *self.target_names}
        for name in self.columns:
            if name not in known:
                hint = did_you_mean(name, known)
                if self.columns[name] in known:
                    hint = f", did you mean '`columns` {self.columns[name]}={name}'?"
                fields = f"{self.name} has {listed(sorted(known))}{hint}"
                raise ValueError(f"`columns` names {shown(name)}, but task {fields}")

    def _check_types(self) -> None:
        """Raise ValueError for a value of another type, from a file for example."""
        for argument in ("template", "target_template", "no_answer"):
            value = getattr(self, argument)
            if not isinstance(value, str) and (value is not None or argument == "no_answer"):
                raise ValueError(f"`{argument}` is {shown(value)}; expected text")
        for argument in ("columns", "labels"):
            texts = getattr(self, argument)
            if not isinstance(texts, Mapping):
                raise ValueError(f"`{argument}` is {shown(texts)}; expected a map")
            for key, text in texts.items():
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"`{argument}` has {shown(text)} for {shown(key)}; expected text")

    def prompt_template(self, decoder_only: bool) -> Template:
        """Template of the source."""
        text = self.template if self.template is not None else _PROMPTS[self.name][decoder_only]
        if decoder_only and self.learns_target(decoder_only) and self.name in ("emotion", "text2text"):
            text += "" if text[-1:].isspace() else "\n"
        return parse_template(text)

    @cached_property
    def answer_template(self) -> Template:
        """Template of the target, for tasks with records other than chat."""
        if self.target_template is not None:
            return parse_template(self.target_template, "target_template")
        return parse_template(_TARGETS[self.name])

    @property
    def target_names(self) -> tuple[str, ...]:
        """The placeholders of the target."""
        return self.answer_template.names if self.name in _TARGETS else ()

    def learns_target(self, decoder_only: bool) -> bool:
        """False where GPT-2 learns the text of an emotion instead of its label."""
        return self.name != "emotion" or not decoder_only or self.target_template is not None

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The fields of the task's prompt, each once."""
        return tuple(dict.fromkeys(self.prompt_template(False).names))

    def prompt(self, fields: Mapping[str, str], *, decoder_only: bool) -> str:
        """The source for these fields. Raises ValueError for others than `prompt_fields`."""
        if set(fields) != set(self.prompt_fields):
            takes, given = listed(self.prompt_fields), listed(fields) or "nothing"
            raise ValueError(f"a prompt of task {self.name!r} takes {takes}; got {given}")
        if self.name in ("qa", "emotion", "chat"):
            fields = {name: text.strip() for name, text in fields.items()}
        return self.prompt_template(decoder_only).fill(fields)

    def column(self, name: str) -> str:
        """The column of a field or placeholder."""
        return self.columns.get(name, name)

    @cached_property
    def label_column(self) -> str | None:
        """The column that `labels` are for."""
        if not self.labels:
            return None
        names = self.target_names
        return self.column(names[0] if len(names) == 1 else _FIELDS[self.name][1])

    def word(self, label: str, where: str) -> str:
        """The word of a label. Raises ValueError if it is not among `labels`."""
        word = self.labels.get(_label_key(label))
        if word is None:
            raise ValueError(f"{where}: label {shown(label)} is not among `labels` ({listed(self.labels)})")
        return word

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write task.json, for `load_task`. Raises OSError if it cannot be written."""
        values = asdict(self)
        given = {"task": values.pop("name")} | {key: value for key, value in values.items() if value}
        write_text(Path(directory, TASK_FILE), json.dumps(given, indent=2, ensure_ascii=False) + "\n")


def load_task(name: str | os.PathLike[str]) -> Task | None:
    """The task that a checkpoint was trained on, from the task.json in its directory; None if it has none.

    Args:
        name: a directory or hub name.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the file is damaged, or of another program.
    """
    path = resolve_directory(name, weights=False) / TASK_FILE
    if not path.exists():
        return None
    if path.stat().st_size > _LARGEST_TASK_FILE:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are too many for a task: {_REMOVE}")
    values = read_json(path)
    known = {"task", "columns", "template", "target_template", "labels", "no_answer"}
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"{path}: unknown key {shown(unknown[0])}{did_you_mean(unknown[0], known)}: {_REMOVE}"
        )
    try:
        return Task(values.pop("task", None), **values)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).replace('`', '')}: {_REMOVE}") from None


_REMOVE = "without the file, the checkpoint has no task of its own"


def as_task(task: str | Task) -> Task:
    """The task of that name. Raises ValueError if there is none."""
    return task if isinstance(task, Task) else Task(task)


def prompt(task: str | Task, /, *, decoder_only: bool, **fields: str) -> str:
    """The input text of a task, in training and for generation; decoder_only for GPT-2.

    `fields` are `question` and `context` for qa, `source` for text2text, `message` for chat, `text` for the
    others; with a template, its placeholders.
    """
    return as_task(task).prompt(fields, decoder_only=decoder_only)


def check_corpus_task(task: str | Task, decoder_only: bool) -> None:
    """Raise ValueError for a task that does not train on running text, or not this family of models."""
    task = as_task(task)
    if task.name not in CORPUS_TASKS:
        raise ValueError(f"task {task.name!r} learns from records, not from running text: use read_records")
    if task.name == "lm" and not decoder_only:
        raise ValueError(
            "task 'lm' trains a decoder-only model such as GPT-2; T5 learns from plain text with "
            "'span-corruption', and from pairs of texts with 'text2text'"
        )
    if task.name == "span-corruption" and decoder_only:
        raise ValueError(
            "task 'span-corruption' trains an encoder-decoder model such as T5; GPT-2 learns from plain text "
            "with 'lm'"
        )


def require_column(name: str, column: str, row: Row, where: str) -> None:
    """Raise ValueError for a row without a field's column; the message names the option for another one."""
    if column in row:
        return
    error = f"{where}: no key {column!r} (found: {listed(row) or 'none'})"
    if column != name:
        raise ValueError(f"{error}, which `columns` {name}={column} names{did_you_mean(column, row)}")
    options = {other.lower(): f"`columns` {name}={other}" for other in row}
    hint = did_you_mean(column, (), options) or f"; `columns` {name}=COLUMN names another one"
    raise ValueError(error + hint)


def _label_key(label: object) -> str:
    """A label in the one form that files and label maps share: "1" for 1.0, "true" for True."""
    text = str(as_text(label)).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return re.sub(r"(?<=\d)\.0+$", "", text)
