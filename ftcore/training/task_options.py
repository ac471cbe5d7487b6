"""The options that say what the rows of a file mean, shared by train, evaluate and generate."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any, Literal

from ftcore.checkpoints.files import read_json
from ftcore.cli import check_options, option
from ftcore.output import one_line

if TYPE_CHECKING:
    from ftcore.data import Task  # imports torch

TaskName = Literal["qa", "emotion", "lm", "text2text", "span-corruption", "chat"]


@dataclass(kw_only=True)
class TaskOptions:
    """Task, and how a file's columns become its source and target."""

    task: TaskName | None = option(
        None, "what the rows are (default: the checkpoint's own task)", group="Task"
    )
    columns: list[str] | None = option(
        None, "columns of the file under other names: source=document,target=summary", metavar="FIELD=COLUMN"
    )
    template: str | None = option(
        None, "source, with columns in braces: 'summarize: {document}'; other braces are doubled"
    )
    target_template: str | None = option(None, "target, with columns in braces: '{label} since {reason}'")
    labels: list[str] | None = option(
        None,
        "words for labels that are numbers or Booleans, 0=sadness,1=joy, or a JSON file of them",
        metavar="LABEL=WORD",
    )
    no_answer: str | None = option(
        None, "answer to learn where a question of SQuAD 2.0 has none (default: an empty one)"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.labels is not None and len(self.labels) == 1 and "=" not in self.labels[0]:
            self.labels = _read_labels(Path(self.labels[0]))
        for name in ("columns", "labels"):
            if (texts := getattr(self, name)) is not None:
                setattr(self, name, _split(name, texts))

    def make_task(self, saved: "Task | None" = None) -> "Task":
        """The task that these options describe; what they leave out is `saved`'s, if it has the same name.

        Raises:
            ValueError: no task is given, or the options do not fit it.
        """
        from ftcore.data import Task

        name = self.task or (saved.name if saved else None)
        if name is None:
            raise ValueError("`task` is missing: the checkpoint has no task of its own (no task.json)")
        given: dict[str, Any] = {
            "columns": _pairs(self.columns),
            "template": self.template,
            "target_template": self.target_template,
            "labels": _pairs(self.labels),
            "no_answer": self.no_answer,
        }
        given = {key: value for key, value in given.items() if value is not None}
        return replace(saved, **given) if saved and saved.name == name else Task(name, **given)


def _split(option: str, texts: list[str]) -> list[str]:
    """["a=b,c=d", "e=f"] -> ["a=b", "c=d", "e=f"]; a comma that no KEY= follows is part of a value."""
    pairs = [pair for text in texts for pair in re.split(r",(?=[^,=]+=)", text)]
    for pair in pairs:
        if not re.fullmatch("[^=]+=.+", pair, re.DOTALL):
            form = "FIELD=COLUMN" if option == "columns" else "LABEL=WORD"
            raise ValueError(f"`{option}` {shown(pair)[1:-1]}: expected {form}")
    return pairs


def _pairs(texts: list[str] | None) -> dict[str, str] | None:
    return (
        None if texts is None else {key: value for key, _, value in (text.partition("=") for text in texts)}
    )


def _read_labels(path: Path) -> list[str]:
    """The pairs of a JSON file of labels and words."""
    try:
        labels: Mapping[str, Any] = read_json(path)
    except OSError as error:
        raise ValueError(f"`labels` takes LABEL=WORD, or a JSON file of them: {one_line(error)}") from None
    for label, word in labels.items():
        if not isinstance(word, str) or _pairs(_split("labels", [f"{label}={word}"])) != {label: word}:
            raise ValueError(f"{path}: {shown(label)} has the word {shown(word)}; expected text without '='")
    return [f"{label}={word}" for label, word in labels.items()]
