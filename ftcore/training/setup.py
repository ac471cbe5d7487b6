"""The parts of a run, made from its options."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftcore.checkpoints.checkpoint import new_model
from ftcore.data import CORPUS_TASKS, Corpus, DataLoader, ExampleDataset, split_records
from ftcore.data.tokenizer import Tokenizer
from ftcore.lora.lora import add_lora
from ftcore.models import Model
from ftcore.models.config import set_dropout_rates
from ftcore.output import log, one_line, warn
from ftcore.training.defaults import RunOptions
from ftcore.training.distributed import main_process_first, on_main, rank, world_size
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from ftcore.training.inputs import (
    Examples,
    check_checkpoint,
    load_checkpoint,
    make_dataset,
    own_data,
    read_data,
)
from ftcore.training.options import TrainOptions
from ftcore.training.resize import Resized, config_changes, freeze, resize
from ftcore.training.run_directory import RunDirectory, new_path
from ftcore.training.run_files import data_files, valid_files
from ftcore.training.state import sha256


@contextmanager
def naming_saved_options(options: TrainOptions) -> Iterator[None]:
    """Let each ValueError of a resumed run name train_config.json, which most of its options come from."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not options.resume:
            raise
        config = RunDirectory(Path(options.output or "")).config
        raise ValueError(f"{one_line(error)} (options of {config})") from None


def make_directory(options: TrainOptions) -> RunDirectory:
    """Create the run's directory, by default below runs/, or open that of the run to resume. A collective."""
    directory = RunDirectory(Path(options.output or on_main(lambda: new_path(Path("runs")))))
    on_main(lambda: directory.open(resume=options.resume, overwrite=options.overwrite))
    return directory


def make_model(
    name: str, options: TrainOptions, device: torch.device
) -> tuple[Model, Tokenizer, Resized | None]:
    """The checkpoint's model, changed as the options say; its tokenizer; how the sizes have changed."""
    model, tokenizer = load_checkpoint(name, from_scratch=options.from_scratch, check=False)
    resized = None
    if changes := config_changes(options, model.config):
        model, resized = resize(model, changes, keep_weights=not options.from_scratch)
    elif options.from_scratch:
        model = new_model(name)
    check_checkpoint(model, tokenizer, "the changed config.json" if resized else name)
    if options.dropout is not None:
        set_dropout(model, options.dropout)
    if options.freeze and (tied := freeze(model, options.freeze)):
        names = " ".join(options.freeze)
        warn(f"--freeze {names} freezes {', '.join(tied)} too: they are tied to it")
    if options.lora_rank is not None:
        alpha = options.lora_alpha or 2 * options.lora_rank
        targets = "all-linear" if options.lora_targets == ["all-linear"] else options.lora_targets
        add_lora(model, rank=options.lora_rank, alpha=alpha, dropout=options.lora_dropout, targets=targets)
    if options.fast or options.compile:
        prepare_fast(model, device, compile=options.compile)
    if options.gradient_checkpointing:
        checkpoint_blocks(model)
    return model.train(), tokenizer, resized


def set_dropout(model: Model, rate: float) -> None:
    """Set all dropout rates, of the modules and of the config that is saved."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    set_dropout_rates(model.config, rate)


def prepare_fast(model: Model, device: torch.device, *, compile: bool) -> None:
    """Replace layers by faster ones. Raises ValueError without ftcore.fast, which may be left out."""
    try:
        from ftcore.fast import prepare_for_training
    except ImportError as error:
        raise ValueError(f"`fast` and `compile` need ftcore.fast ({error})") from None
    prepare_for_training(model, compile=compile, device=device)
    log(f"{'--compile' if compile else '--fast'} is on: training with ftcore.fast")


def without_files(options: TrainOptions, train_set: object, valid_set: object) -> TrainOptions:
    """The options of a run with examples of the caller's own. Raises ValueError if files are named, too."""
    for option, given in (("train", train_set), ("valid", valid_set)):
        if given is not None and getattr(options, option):
            raise ValueError(f"`{option}` names files, and {option}_set is given too: choose one")
    train = options.train if train_set is None else []
    return replace(options, train=train, valid=options.valid if valid_set is None else [])


def make_datasets(
    options: RunOptions,
    model: Model,
    tokenizer: Tokenizer,
    train_set: Examples | None = None,
    valid_set: Examples | Mapping[str, Examples] | None = None,
) -> tuple[ExampleDataset, dict[str, ExampleDataset]]:
    """The training set, and the validation sets by name; "" is the only, unnamed one.

    Args:
        train_set, valid_set: see `prepare`; by default they are read from files.

    Raises:
        ValueError, OSError: see `read_data`, `own_data` and `make_dataset`.
    """
    read = partial(read_data, options.make_task(), model=model, tokenizer=tokenizer)
    own = partial(own_data, options.make_task(), model=model)
    if train_set is None and not options.train:
        raise ValueError("`train` names no file: such a run has its examples from Python, where it resumes")
    # All ranks read records at once. A corpus is tokenized by rank 0, into a file that the others read.
    with main_process_first() if options.task in CORPUS_TASKS else nullcontext():
        train = read(options.train) if train_set is None else own(train_set, name="train_set")
        valid: dict[str, Any]
        if valid_set is None:
            valid = {name: read(paths) for name, paths in valid_files(options.valid or []).items()}
        else:
            sets = valid_set if isinstance(valid_set, Mapping) else {"": valid_set}
            valid = {name: own(examples, name="valid_set") for name, examples in sets.items()}
    if not valid:
        if isinstance(train, list):
            train, valid[""] = split_records(train, options.valid_share, options.seed)
        elif isinstance(train, Corpus):
            train, valid[""] = train.split(options.valid_share)
        else:
            raise ValueError("valid_set is missing: only rows can be split, train_set is a data set")
    settings: dict[str, Any] = {
        "max_source_length": options.max_source_length,
        "max_target_length": options.max_target_length,
        "pad_to_max_length": options.pad_to_max_length,
        "seed": options.seed,
    }
    return (
        make_dataset(train, model, tokenizer, name="training", **settings),
        {
            name: make_dataset(data, model, tokenizer, name=name or "validation", **settings)
            for name, data in valid.items()
        },
    )


def make_loader(
    dataset: ExampleDataset, options: RunOptions, tokenizer: Tokenizer, *, training: bool
) -> DataLoader:
    """Batches of this rank's rows; shuffled for training."""
    return DataLoader(
        dataset,
        options.batch_size if training else options.eval_batch_size,
        pad_id=tokenizer.pad_id,
        accumulate=options.grad_accum if training else 1,
        shuffle=training,
        seed=options.seed,
        bucket=not options.packing,  # packed rows are filled from examples of all lengths
        pack=options.packing,
        pad_to_max_length=options.pad_to_max_length,
        num_workers=options.workers,
        rank=rank(),
        world_size=world_size(),
    )


def fingerprint(options: RunOptions) -> dict[str, str]:
    """SHA-256 of the data files, in their order, by the option that names them; empty for a train_set."""
    files = data_files(options)
    return {name: " ".join(map(sha256, files[name])) for name in files if files[name] or name == "train"}


def seed_rank(seed: int) -> None:
    """Give each rank its own random numbers: otherwise all would drop the same units of different rows."""
    if rank() > 0:
        torch.manual_seed((seed + rank() * 0x9E3779B97F4A7C15) % 2**63)
