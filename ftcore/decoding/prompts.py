"""Prompts of the command line: built from what a user gives as training built them, and the way back."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from ftcore.data import CORPUS_TASKS, ExampleDataset, Task
from ftcore.data.files import Row, expand_files, listed, text_of
from ftcore.data.records import chat_prompt, has_prompt, read_prompt
from ftcore.data.rows import labeled_row, read_rows
from ftcore.data.tokenizer import Tokenizer
from ftcore.output import one_line, warn

_GAP = "<extra_id_0>"  # T5's first sentinel
_EXAMPLES = 200  # records to choose an example from
_WORDS = 8  # of an example from running text


def build_prompt(task: Task, given: Mapping[str, str] | str, *, decoder_only: bool) -> str:
    """The model's input text.

    Args:
        given: the texts by their names in the task's prompt, or the only one. For span corruption, a text
            without a gap gets one at its end.

    Raises:
        ValueError: the task has other fields.
    """
    names = task.prompt_fields
    if isinstance(given, str):
        if len(names) > 1:
            example = shlex.join(as_arguments(dict.fromkeys(names, "TEXT")))
            raise ValueError(f"task {task.name} takes {listed(names)}, not a single text: pass {example}")
        given = {names[0]: given}
    if task.name == "span-corruption" and _GAP not in given.get("text", _GAP):
        given = {"text": f"{given['text']} {_GAP}"}
    return task.prompt(given, decoder_only=decoder_only)


def warn_of_other_form(task: Task, text: str, *, decoder_only: bool) -> None:
    """Warn of an input text that does not have the form of the task's prompts."""
    template = task.prompt_template(decoder_only)
    if template.read(text) is None:
        form = template.fill({name: f"{{{name}}}" for name in template.names})
        warn(f"--prompt is the model's input as it is; in training, inputs had the form {form!r}")


def read_prompts(task: Task | None, file: str, *, decoder_only: bool) -> list[str]:
    """The prompts of a file's rows, or of several files'; "-" is standard input.

    Rows are those of the task, or have the model's input text in a column `prompt`; without a task they may
    also be those of qa and text2text. A line of text is the only field of the task's prompt (of emotion, with
    or without its label), or else the model's input.

    Raises:
        ValueError, OSError: the file cannot be read, or has no or other rows.
    """
    names = task.prompt_fields if task else ()

    def line_row(line: str, where: str) -> Row:
        if task and task.name == "emotion" and ";" in line:
            return labeled_row(line, where)
        return {task.column(names[0]) if task and len(names) == 1 else "prompt": line}

    with _opened(file) as paths:
        is_qa = task is not None and task.name == "qa"
        expected = "one prompt per line, or rows in JSON or CSV"
        rows = chain.from_iterable(
            read_rows(path, expected=expected, squad=is_qa, line_row=line_row) for path in paths
        )
        prompts = [_row_prompt(task, row, where, decoder_only) for where, row in rows]
        if not prompts:
            raise ValueError(f"{file}: no prompts, expected one per line")
    return prompts


@contextmanager
def _opened(file: str) -> Iterator[list[Path]]:
    """The files of a name or pattern, or a copy of standard input."""
    if file != "-":
        yield expand_files(file)
        return
    with TemporaryDirectory(prefix="ftcore-") as directory:
        path = Path(directory, "standard-input")
        path.write_bytes(sys.stdin.buffer.read())
        try:
            yield [path]
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "standard input")) from None


def _row_prompt(task: Task | None, row: Row, where: str, decoder_only: bool) -> str:
    if isinstance(row.get("prompt"), str) and not (task and has_prompt(task, row)):
        return row["prompt"]
    if task is not None:
        if task.name == "chat" and "message" in row:
            return build_prompt(task, text_of(row, "message", where), decoder_only=decoder_only)
        return read_prompt(task, row, where, decoder_only=decoder_only)
    for known in (Task("qa"), Task("text2text")):
        if has_prompt(known, row):
            return read_prompt(known, row, where, decoder_only=decoder_only)
    raise ValueError(
        f'{where}: expected an object with the texts "prompt", or "context" and "question", or "source"'
        f" (keys found: {listed(row) or 'none'})"
    )


def interact(
    task: Task | None, given: Mapping[str, str], answer: Callable[[str], str], *, decoder_only: bool
) -> None:
    """Ask for the fields of prompts on standard input and answer each, until the input ends.

    Args:
        task: None to ask for the model's input text.
        given: fields that are not asked for.
        answer: prints the answer to a prompt and returns it. In task chat it joins the conversation.
    """
    names = [name for name in (task.prompt_fields if task else ["prompt"]) if name not in given]
    messages: list[dict[str, str]] = []
    while True:
        try:
            asked = {name: _ask(name) for name in names}
        except EOFError:
            return
        try:
            if task is None:
                answer(asked["prompt"])
            elif task.name != "chat":
                answer(build_prompt(task, {**given, **asked}, decoder_only=decoder_only))
            else:
                messages.append({"role": "user", "content": asked["message"].strip()})
                reply = answer(chat_prompt(messages))
                messages.append({"role": "assistant", "content": reply.strip()})
        except ValueError as error:  # a prompt that is too long, for example
            warn(one_line(error) + ("; the conversation starts again" if messages else ""))
            messages.clear()


def _ask(name: str) -> str:
    """A line of standard input that is not blank. Raises EOFError at its end."""
    while not (line := input(f"{name}: " if sys.stdin.isatty() else "")).strip():
        pass
    return line


# ------------------------------------------------------------------------------------- the way back: examples


def as_arguments(fields: Mapping[str, str]) -> list[str]:
    """Fields of a prompt as arguments of ftcore.generate."""
    if len(fields) == 1:
        return list(fields.values())
    if set(fields) == {"context", "question"}:
        return ["--context", fields["context"], "--question", fields["question"]]
    return ["--field", *(f"{name}={text}" for name, text in fields.items())]


def example_arguments(task: Task, dataset: ExampleDataset, tokenizer: Tokenizer) -> list[str]:
    """Arguments of ftcore.generate for a short example of a data set."""
    if task.name in CORPUS_TASKS:
        ids = list(dataset[0]["input_ids"])
        if dataset.decoder_only and tokenizer.eos_id in ids[1:]:
            ids = ids[: ids.index(tokenizer.eos_id, 1)]  # the first document
        return [_excerpt(tokenizer.decode(ids, skip_special_tokens=dataset.decoder_only))]
    template = task.prompt_template(dataset.decoder_only)
    is_text = not task.learns_target(dataset.decoder_only)  # GPT-2 then gets the first half
    examples = []
    for record in islice(dataset.records, _EXAMPLES):
        found = template.read(record.source or record.target) or {} if record.target else {}
        words = {name: text.split() for name, text in found.items()}
        fields = {
            name: " ".join(text[: -(-len(text) // 2)] if is_text else text) for name, text in words.items()
        }
        if fields and not any(text.startswith("-") or not text.isprintable() for text in fields.values()):
            examples.append(fields)
    too_short = 2 if is_text else 0  # words
    shortest = min(examples, key=lambda fields: _length(fields, too_short), default=None)
    return as_arguments(shortest or dict.fromkeys(task.prompt_fields, "TEXT"))


def _length(fields: Mapping[str, str], too_short: int) -> tuple[bool, bool, int]:
    """Sort key: length; fields of fewer words than `too_short`, or that need two kinds of quotes, last."""
    text = " ".join(fields.values())
    return len(text.split()) < too_short, "'" in text, len(text)


def _excerpt(text: str) -> str:
    """A few words: the first ones, or those around the first gap."""
    before, gap, after = text.partition(_GAP)
    words = before.split()[-_WORDS:] if gap else before.split()[:_WORDS]
    words += [gap, *after.partition("<extra_id_1>")[0].removesuffix("</s>").split()[:_WORDS]] if gap else []
    return " ".join(filter(str.isprintable, words)).lstrip("-") or "TEXT"
