"""What all sides are given: one directory with the model, one file with each case's ids or batches."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftcore.benchmark.cases import Case
from ftcore.benchmark.shapes import SHAPES
from ftcore.checkpoints.checkpoint import load_model, model_from_config, save_model
from ftcore.cli import did_you_mean
from ftcore.data import DataLoader, Dataset, load_tokenizer, read_records
from ftcore.data.tokenizer import check_vocabulary
from ftcore.models import Model, T5Config
from ftcore.models.config import set_dropout_rates
from ftcore.training.options import TrainOptions, with_defaults

Batch = dict[str, Tensor]


def stage_model(name: str, directory: Path) -> Model:
    """Write a published shape with random weights, or the model of a directory or hub name, to `directory`.

    Without dropout, so that the sides' losses can be compared, unless an order asks for some; and without
    settings of generation of its own.

    Raises:
        ValueError, FileNotFoundError: neither a shape nor a model.
    """
    if name in SHAPES:
        torch.manual_seed(0)
        model = model_from_config(SHAPES[name])
    elif "/" not in name and not Path(name).exists():
        raise ValueError(
            f"--model {name}: no such shape or directory{did_you_mean(name, SHAPES)}; "
            f"shapes: {', '.join(SHAPES)}"
        )
    else:
        model = load_model(name)
    config = model.config
    set_dropout_rates(config, 0.0)
    if isinstance(config, T5Config) and config.decoder_start_token_id is None:
        config.decoder_start_token_id = config.pad_token_id
    model.generation_config = None
    save_model(model, directory)
    return model


def stage_prompts(case: Case, vocab_size: int, file: Path) -> None:
    """Random ids, (rows, source), none of which is one of the first ids, where special tokens lie."""
    first = min(5, vocab_size - 1)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(first, vocab_size, (case.rows, case.source), generator=generator)
    save_file({"input_ids": ids}, file)


def read_prompts(file: Path) -> Tensor:
    return load_file(file)["input_ids"]


def training_files(*, decoder_only: bool, train: str | None, tokenizer: str | None) -> TrainOptions:
    """The task, its file and a directory with a tokenizer: those given, or those that come with a clone.

    Raises:
        ValueError: neither given nor here.
    """
    return with_defaults(TrainOptions(task="emotion" if decoder_only else "qa", train=train, model=tokenizer))


def stage_batches(case: Case, files: TrainOptions, model: Model, directory: Path, file: Path) -> None:
    """Batches of similar length, drawn evenly from the epoch's, from narrow to wide; and the tokenizer.

    They are written twice, padded to the longest example of the batch and padded to the case's limits.

    Raises:
        ValueError, OSError: the file, the tokenizer or the two together are wrong.
    """
    assert files.train and files.model
    decoder_only = not model.config.is_encoder_decoder
    tokenizer = load_tokenizer(files.model)
    check_vocabulary(tokenizer, model.config, files.model)
    tokenizer.save_pretrained(directory)
    dataset = Dataset(
        read_records(files.task, files.train, decoder_only=decoder_only),
        tokenizer,
        decoder_only=decoder_only,
        max_source_length=case.source,
        max_target_length=case.target,
    )
    if len(dataset) < case.steps * case.rows:
        raise ValueError(
            f"{files.train}: {len(dataset)} examples, expected {case.steps} batches of {case.rows} at least"
        )
    tensors: Batch = {}
    for padded in (False, True):
        loader = DataLoader(
            dataset, case.rows, pad_id=tokenizer.pad_id, shuffle=True, pad_to_max_length=padded
        )
        for step, batch in enumerate(_typical(loader, case.steps)):
            tensors |= {f"{padded}/{step}/{name}": tensor for name, tensor in batch.items()}
    save_file(tensors, file)


def _typical(loader: DataLoader, count: int) -> list[Batch]:
    """Batch number (i + 1/2) / count of the epoch's full batches, ordered by width."""
    size = loader.batch_sampler.batch_size
    order = loader.batch_sampler.order()
    full = order[: len(order) - len(order) % size].reshape(-1, size)
    widths = loader.batch_sampler.lengths[full, 0].max(axis=1)
    ranked = full[widths.argsort(kind="stable")]
    chosen = [ranked[(2 * i + 1) * len(ranked) // (2 * count)] for i in range(count)]
    return [loader.collate_fn([loader.dataset[place] for place in places.tolist()]) for places in chosen]


def read_batches(file: Path, *, padded: bool) -> list[Batch]:
    batches: dict[int, Batch] = {}
    for key, tensor in load_file(file).items():
        which, step, name = key.split("/")
        if which == str(padded):
            batches.setdefault(int(step), {})[name] = tensor
    return [batches[step] for step in sorted(batches)]
