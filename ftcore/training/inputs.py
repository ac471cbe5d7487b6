"""Load device, checkpoint and data by name."""

import os
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shown
from typing import Any

import torch

from ftcore.checkpoints.checkpoint import load_model, outline
from ftcore.data import (
    CORPUS_TASKS,
    Corpus,
    Dataset,
    ExampleDataset,
    Record,
    Task,
    load_tokenizer,
    make_pretraining_dataset,
    make_records,
    read_corpus,
    read_records,
)
from ftcore.data.tasks import as_task
from ftcore.data.tokenizer import Tokenizer, check_vocabulary
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.output import warn

# A user's own: rows of the task as dicts, or records, or token ids.
Examples = Iterable[Record | Mapping[str, Any]] | ExampleDataset


def find_device(name: str | None) -> torch.device:
    """The device of that name; by default the first CUDA device or, without CUDA, the CPU.

    Raises:
        ValueError: no such device, or torch cannot use it.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # which one depends on the reason
        raise ValueError(
            f"`device` is {name!r}, which torch does not find here: expected cpu, cuda or cuda:N"
        ) from None


def load_checkpoint(name: str, *, from_scratch: bool = False, check: bool = True) -> tuple[Model, Tokenizer]:
    """Model and tokenizer of a directory or hub name; with `from_scratch`, without weights: see `outline`.

    Without `check`, `check_checkpoint` is left to the caller, who changes the model first.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or model and tokenizer do not match.
    """
    model = outline(name) if from_scratch else load_model(name)
    tokenizer = load_tokenizer(name)
    if check:
        check_checkpoint(model, tokenizer, name)
    return model, tokenizer


def check_checkpoint(model: Model, tokenizer: Tokenizer, where: str) -> None:
    """Check that a tokenizer fits a model, see `check_vocabulary`.

    A T5 without a start token gets the one of all published T5s, the pad token.
    """
    check_vocabulary(tokenizer, model.config, where)
    if isinstance(model, T5ForConditionalGeneration) and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = model.config.pad_token_id


def read_data(
    task: str | Task, paths: Sequence[str], model: Model, tokenizer: Tokenizer, limit: int | None = None
) -> list[Record] | Corpus:
    """The first `limit` records of a task's files, one file after another, or the token ids of plain texts.

    Raises:
        ValueError, OSError: a file is not in a format of the task, or `limit` was given for plain text.
    """
    task, decoder_only = as_task(task), not model.config.is_encoder_decoder
    if task.name in CORPUS_TASKS:
        if limit is not None:
            raise ValueError(
                f"`limit` counts records; `task` {task.name} reads plain text, which has none: "
                "pass a shorter file"
            )
        return read_corpus(task, paths, tokenizer, decoder_only=decoder_only)
    try:
        return read_records(task, paths, decoder_only=decoder_only, limit=limit)
    except ValueError as error:
        if task != Task("qa") or "no key" not in str(error):
            raise
        raise ValueError(f"{error}. The task is qa, the default: `task` names another") from None


def own_data(task: Task, examples: Examples, model: Model, name: str) -> list[Record] | ExampleDataset:
    """The caller's examples: a data set as it is, or the records of rows.

    Args:
        name: of the argument in messages, such as "train_set".

    Raises:
        ValueError: a row is none of the task; the data set is for the other family of models, or its lengths
            have the wrong shape.
    """
    decoder_only = not model.config.is_encoder_decoder
    if isinstance(examples, str | os.PathLike):
        option = name.removesuffix("_set")
        raise ValueError(f"{name} is {shown(examples)}; expected rows or a data set, `{option}` takes files")
    if not isinstance(examples, ExampleDataset):
        try:
            return make_records(task, examples, decoder_only=decoder_only)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if examples.decoder_only != decoder_only:
        family = "GPT-2" if decoder_only else "T5"
        raise ValueError(f"{name} has decoder_only {examples.decoder_only}, this model is {family}")
    shape = getattr(examples.lengths, "shape", type(examples.lengths).__name__)
    if shape != (len(examples), 2):
        raise ValueError(f"{name}.lengths is {shape}; expected an array, ({len(examples)}, 2)")
    return examples


def make_dataset(
    data: Sequence[Record] | Corpus | ExampleDataset,
    model: Model,
    tokenizer: Tokenizer,
    *,
    name: str,
    max_source_length: int,
    max_target_length: int,
    pad_to_max_length: bool = False,
    seed: int = 0,
) -> ExampleDataset:
    """Make examples for a model, and warn about truncated records.

    Args:
        data: a data set is returned as it is.
        name: of the data in the warning, such as "training".
        seed: of span corruption.

    Raises:
        ValueError: an example has more tokens than GPT-2 has positions.
    """
    lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    dataset: ExampleDataset
    if isinstance(data, ExampleDataset):
        dataset = data
    elif isinstance(data, Corpus):
        dataset = make_pretraining_dataset(data, tokenizer, **lengths, seed=seed)
    else:
        dataset = Dataset(data, tokenizer, decoder_only=not model.config.is_encoder_decoder, **lengths)
    for part, cut, limit in (
        ("source", dataset.truncated_sources, max_source_length),
        ("target", dataset.truncated_targets, max_target_length),
    ):
        if cut:
            warn(f"{cut} of {len(data)} {name} {part}s are truncated to --max-{part}-length {limit} tokens")
    if isinstance(model, GPT2LMHeadModel):
        positions = model.config.n_positions
        longest = dataset.max_input_length if pad_to_max_length else dataset.lengths.max()
        if longest > positions:
            raise ValueError(
                f"an example of {longest} tokens, but the model has only {positions} positions "
                "(n_positions): lower `max_source_length` or `max_target_length`"
            )
        if dataset is not data:  # packed rows are filled up to these
            dataset.max_input_length = min(dataset.max_input_length, positions)
            dataset.max_label_length = min(dataset.max_label_length, positions)
    return dataset
