"""What a command names becomes a device, a model with its tokenizer, and examples; or an error."""

from collections.abc import Sequence

import torch

from ftcore.checkpoints.checkpoint import load_model, new_model
from ftcore.checkpoints.hub import resolve_directory
from ftcore.cli import warn
from ftcore.data import (
    CORPUS_TASKS,
    Corpus,
    Dataset,
    ExampleDataset,
    Record,
    load_tokenizer,
    make_pretraining_dataset,
    read_corpus,
    read_records,
)
from ftcore.data.tokenizer import Tokenizer, check_vocabulary
from ftcore.lora.adapter import base_model
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration


def find_device(name: str | None) -> torch.device:
    """The device of that name; without one, CUDA's first where there is one, else the CPU.

    Raises:
        ValueError: no such device, or it does not work here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # torch has a different one for each reason
        raise ValueError(
            f"--device is {name!r}, which torch does not find here: expected cpu, cuda or cuda:N"
        ) from None


def load_checkpoint(name: str, *, from_scratch: bool = False) -> tuple[Model, Tokenizer]:
    """A model and the tokenizer of the same directory or hub name; `from_scratch` gives it random weights.

    Raises:
        FileNotFoundError, ValueError: something is missing, damaged or does not fit together.
    """
    model = new_model(name) if from_scratch else load_model(name)
    tokenizer = load_tokenizer(base_model(resolve_directory(name)) or name)  # an adapter has none of its own
    check_vocabulary(tokenizer, model.config, name)
    if isinstance(model, T5ForConditionalGeneration) and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = model.config.pad_token_id  # as all published T5 have it
    return model, tokenizer


def read_data(
    task: str, path: str, model: Model, tokenizer: Tokenizer, limit: int | None = None
) -> list[Record] | Corpus:
    """What a file of a task holds: its first `limit` records, or of a plain text its ids.

    Raises:
        ValueError, OSError: the file cannot be read as what the task wants, or a text has no records to
            count.
    """
    decoder_only = not model.config.is_encoder_decoder
    if task in CORPUS_TASKS:
        if limit is not None:
            raise ValueError(
                f"--limit counts records, and the text of --task {task} has none: give a part of it"
            )
        return read_corpus(task, path, tokenizer, decoder_only=decoder_only)
    return read_records(task, path, decoder_only=decoder_only, limit=limit)


def make_dataset(
    data: Sequence[Record] | Corpus,
    model: Model,
    tokenizer: Tokenizer,
    *,
    name: str,
    max_source_length: int,
    max_target_length: int,
    pad_to_max_length: bool = False,
    seed: int = 0,
) -> ExampleDataset:
    """Make examples for a model, and warn of records that had to be cut.

    Args:
        name: what to call the records in the warning, "training" say.
        seed: of span corruption's noise.

    Raises:
        ValueError: GPT-2 has fewer positions than an example tokens.
    """
    lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    dataset: ExampleDataset
    if isinstance(data, Corpus):
        dataset = make_pretraining_dataset(data, tokenizer, **lengths, seed=seed)
    else:
        dataset = Dataset(data, tokenizer, decoder_only=not model.config.is_encoder_decoder, **lengths)
    for part, cut, limit in (
        ("source", dataset.truncated_sources, max_source_length),
        ("target", dataset.truncated_targets, max_target_length),
    ):
        if cut:
            warn(f"{cut} of {len(data)} {name} {part}s are cut to --max-{part}-length {limit} tokens")
    if isinstance(model, GPT2LMHeadModel):
        longest = dataset.max_input_length if pad_to_max_length else dataset.lengths.max()
        if longest > model.config.n_positions:
            raise ValueError(
                f"an example of {longest} tokens, but the model has only {model.config.n_positions} "
                "positions (n_positions): lower --max-source-length or --max-target-length"
            )
        # Nor has a packed row more positions.
        dataset.max_input_length = min(dataset.max_input_length, model.config.n_positions)
        dataset.max_label_length = min(dataset.max_label_length, model.config.n_positions)
    return dataset
