"""The checkpoint and the data files that a run reads."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ftcore.training.options import TrainOptions

CLONE = Path(__file__).resolve().parents[2]  # of the project, where weights/ and examples/ are


class Files(NamedTuple):
    """The checkpoint and the data files of a run."""

    model: str
    train: list[str]
    valid: list[str] | None  # FILE or NAME=FILE; None: a share of the training files


# The two runs that a clone of the project can make without any option but --task.
_EMBEDDED_FILES = {
    "qa": Files("weights/t5-mini", ["examples/data/qa/train.json"], ["examples/data/qa/valid.json"]),
    "emotion": Files(
        "weights/gpt2-mini", ["examples/data/emotion/train.txt"], ["examples/data/emotion/valid.txt"]
    ),
}


def find_files(options: TrainOptions) -> Files:
    """The files that the options name or, where they name none, those of the task that come with a clone.

    Patterns are replaced by the files that match now, which a resumed run then reads again. An empty list
    stands for examples that are given to `prepare`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the task has no embedded files, or they are missing because this is no clone; some
            validation files have names and others have none.
    """
    embedded = _EMBEDDED_FILES.get(options.task)
    model, train, valid = options.model, options.train, options.valid
    if embedded:
        model = model or _in_clone(embedded.model, "model")
        if train is None:
            train = [_in_clone(path, "train") for path in embedded.train]
            if valid is None:
                valid = [_in_clone(path, "valid") for path in embedded.valid or []]
    for name, given in (("model", model), ("train", train)):
        if given is None:
            raise ValueError(f"`task` {options.task} has no default for `{name}`: pass one")
    sets = valid_files(valid or [])
    valid = [f"{name}={path}" if name else path for name, paths in sets.items() for path in _expand(paths)]
    return Files(str(model), _expand(train or []), valid or None)


def valid_files(valid: Sequence[str]) -> dict[str, list[str]]:
    """The files of each validation set by its name, from NAME=FILE; the name is "" where there is none.

    Raises:
        ValueError: some have a name and others have none.
    """
    sets: dict[str, list[str]] = {}
    for text in valid:
        name, _, path = text.partition("=")
        if not path or not re.fullmatch(r"[\w-]+", name) or Path(text).exists():
            name, path = "", text
        sets.setdefault(name, []).append(path)
    if "" in sets and len(sets) > 1:
        raise ValueError(
            f"`valid` {sets[''][0]} has no name, but other files have: write NAME=FILE for all, or for none"
        )
    return sets


def data_files(options: TrainOptions) -> dict[str, list[str]]:
    """The data files of a run by the option that names them."""
    valid = [path for paths in valid_files(options.valid or []).values() for path in paths]
    return {"train": options.train or [], "valid": valid}


def _expand(patterns: Sequence[str]) -> list[str]:
    from ftcore.data.files import expand_files  # imports torch, which --help does not wait for

    return [str(path) for path in expand_files(patterns)]


def clone_path(path: str) -> Path:
    """Where a file of the project is, if this is a clone of it."""
    return CLONE / path


def _in_clone(path: str, option: str) -> str:
    if not clone_path(path).exists():
        raise ValueError(
            f"{path}, the default of `{option}`, is not here: it comes with a clone of the project. "
            "Pass `model`, `train` and `output`, or run this in a clone"
        )
    return path if Path(path).resolve() == clone_path(path) else str(clone_path(path))
