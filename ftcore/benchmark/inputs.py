"""Files that all backends share: a checkpoint and training batches."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ftcore.benchmark.cases import SHAPES, Case
from ftcore.checkpoints.checkpoint import load_model, model_from_config, save_model
from ftcore.data import DataLoader, Dataset, load_tokenizer, read_records
from ftcore.data.tokenizer import check_vocabulary
from ftcore.decoding.arguments import SPECIAL_TOKENS, TYPES
from ftcore.models import Model, T5Config
from ftcore.models.config import set_dropout_rates
from ftcore.output import did_you_mean
from ftcore.training.options import TrainOptions
from ftcore.training.run_files import Files, find_files


def write_model(name: str, directory: Path) -> Model:
    """Save a published shape with random weights, or the model of a directory or hub name, to `directory`.

    Dropout is 0, so that losses can be compared, and there are no generation settings.

    Raises:
        ValueError, FileNotFoundError: neither a shape nor a model.
    """
    if name in SHAPES:
        torch.manual_seed(0)
        model = model_from_config(SHAPES[name])
    elif "/" not in name and not Path(name).exists():
        raise ValueError(
            f"`model` {name}: no such shape or directory{did_you_mean(name, SHAPES)}; "
            f"shapes: {', '.join(SHAPES)}"
        )
    else:
        model = load_model(name)
    config = model.config
    set_dropout_rates(config, 0.0)
    if isinstance(config, T5Config) and config.decoder_start_token_id is None:
        config.decoder_start_token_id = config.pad_token_id
    model.generation_config = None
    for name in TYPES.keys() - set(SPECIAL_TOKENS):  # config.json of an old checkpoint has some
        config.extra.pop(name, None)
    save_model(model, directory)
    return model


def training_data(model: Model, train: str | None, tokenizer: str | None) -> tuple[str, Files]:
    """The task, and the training file and tokenizer directory; None selects those of a clone."""
    task: Literal["qa", "emotion"] = "qa" if model.config.is_encoder_decoder else "emotion"
    return task, find_files(TrainOptions(task=task, train=[train] if train else None, model=tokenizer))


def write_batches(case: Case, task: str, files: Files, model: Model, directory: Path, file: Path) -> None:
    """Save `case.steps` batches twice, padded to the longest example and to the case's lengths.

    The batches are evenly spaced among an epoch's, ordered by length; or random blocks, see `Case`. The
    tokenizer is saved to the model's `directory`.

    Args:
        task, files: see `training_data`.

    Raises:
        ValueError, OSError: invalid file or tokenizer, or too few examples.
    """
    train = files.train[0]
    tokenizer = load_tokenizer(files.model)
    check_vocabulary(tokenizer, model.config, files.model)
    tokenizer.save_pretrained(directory)
    decoder_only = not model.config.is_encoder_decoder
    if case.random:
        blocks = random_blocks(case, model.config.vocab_size, decoder_only=decoder_only)
        torch.save({False: blocks, True: blocks}, file)
        return
    dataset = Dataset(
        read_records(task, train, decoder_only=decoder_only),
        tokenizer,
        decoder_only=decoder_only,
        max_source_length=case.source,
        max_target_length=case.target,
    )
    if len(dataset) < case.steps * case.rows:
        raise ValueError(
            f"{train}: {len(dataset)} examples, expected {case.steps} batches of {case.rows} at least"
        )
    batches: dict[bool, list[dict[str, Tensor]]] = {}
    for padded in (False, True):
        loader = DataLoader(
            dataset, case.rows, pad_id=tokenizer.pad_id, shuffle=True, pad_to_max_length=padded
        )
        sampler = loader.batch_sampler
        epoch = sorted(
            (indices for indices in sampler if len(indices) == case.rows),
            key=lambda indices: sampler.lengths[indices, 0].max(),
        )
        spaced = [epoch[(2 * step + 1) * len(epoch) // (2 * case.steps)] for step in range(case.steps)]
        batches[padded] = [loader.collate_fn([dataset[index] for index in indices]) for indices in spaced]
    torch.save(batches, file)


def random_blocks(case: Case, vocab_size: int, *, decoder_only: bool) -> list[dict[str, Tensor]]:
    """Draw `case.steps` batches of full rows; GPT-2's labels are its input."""
    torch.manual_seed(1)
    batches = []
    for _ in range(case.steps):
        ids = torch.randint(vocab_size, (case.rows, case.source))
        labels = ids if decoder_only else torch.randint(vocab_size, (case.rows, case.target))
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return batches


def read_batches(file: Path, *, padded: bool) -> list[dict[str, Tensor]]:
    """Return the batches padded to the case's lengths, or to their longest example."""
    return torch.load(file, weights_only=True)[padded]
