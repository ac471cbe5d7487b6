"""A run before its first step: options, files and a checkpoint become everything that the loop works with."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftcore.command import warn
from ftcore.data import DataLoader, Dataset, load_tokenizer, read_records, split_records
from ftcore.data.tokenizer import Tokenizer, check_vocabulary
from ftcore.models.checkpoint import load_model, new_model, save_model
from ftcore.models.gpt2 import GPT2LMHeadModel
from ftcore.models.t5 import T5ForConditionalGeneration
from ftcore.training.loss import Model
from ftcore.training.optim import adamw, warmup_steps
from ftcore.training.options import TrainOptions, with_defaults
from ftcore.training.precision import Autocast, autocast, grad_scaler
from ftcore.training.run_directory import RunDirectory
from ftcore.training.state import load_state, save_state

_DEFAULT_LR = {"t5": 3e-4, "gpt2": 5e-5}  # of fine-tuning with AdamW


@dataclass
class Progress:
    """Where a run stands; saved with its state."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # the epoch it is in, from 0
    best: list[float] | None = None  # the best validation so far, as `validation_rank` ranks them


@dataclass
class Run:
    """Everything that the loop in train.py works with."""

    options: TrainOptions
    directory: RunDirectory
    device: torch.device
    tokenizer: Tokenizer
    model: Model
    train_loader: DataLoader
    valid_loader: DataLoader
    valid_set: Dataset
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Autocast
    total_steps: int
    warmup_steps: int
    progress: Progress = field(default_factory=Progress)

    @property
    def eval_every(self) -> int:
        return self.options.eval_every or self.train_loader.windows_per_epoch

    def save_checkpoint(self, directory: Path) -> None:
        """Weights, config and tokenizer: a directory that ftcore and transformers open."""
        save_model(self.model, directory)
        self.tokenizer.save_pretrained(directory)

    def save(self) -> None:
        """Save the run so that it can be resumed, and its weights for people at last/."""
        save_state(self.directory.state, **self._stateful(), progress=asdict(self.progress))
        self.save_checkpoint(self.directory.last)

    def resume(self) -> None:
        self.progress = Progress(**load_state(self.directory.state, **self._stateful()))
        self.directory.forget_metrics_after(self.progress.step)

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "loader": self.train_loader,
            "options": self.options,
        }


def prepare(options: TrainOptions) -> Run:
    """Read everything, check that it fits together, and make (or take up) the run's directory, last.

    Raises:
        ValueError, OSError: an option, a file or a checkpoint is wrong; the message says what to do.
    """
    options = with_defaults(options)
    assert options.model and options.train and options.batch_size and options.epochs
    torch.manual_seed(options.seed)
    device = _device(options.device)
    context = autocast(options.precision, device)

    model, tokenizer = _load(options)
    if options.lr is None:
        options.lr = _DEFAULT_LR[model.config.model_type]
    train, valid = _datasets(options, model, tokenizer)
    train_loader = _loader(train, options, tokenizer, options.batch_size, accumulate=options.grad_accum)
    valid_loader = _loader(valid, options, tokenizer, options.eval_batch_size or options.batch_size)

    model.to(device).train()
    total_steps = options.max_steps or options.epochs * train_loader.windows_per_epoch
    run = Run(
        options=options,
        directory=_directory(options),
        device=device,
        tokenizer=tokenizer,
        model=model,
        train_loader=train_loader,
        valid_loader=valid_loader,
        valid_set=valid,
        optimizer=adamw(model, lr=options.lr, weight_decay=options.weight_decay),
        scaler=grad_scaler(options.precision, device),
        autocast=context,
        total_steps=total_steps,
        warmup_steps=warmup_steps(options.warmup, total_steps),
    )
    if options.resume:
        run.resume()
    run.directory.save_options(asdict(options))
    return run


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device is {name!r}, expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {name}, but torch sees no CUDA device here")
    return device


def _load(options: TrainOptions) -> tuple[Model, Tokenizer]:
    assert options.model
    model = new_model(options.model) if options.from_scratch else load_model(options.model)
    tokenizer = load_tokenizer(options.model)
    check_vocabulary(tokenizer, model.config, options.model)
    if options.dropout is not None:
        _set_dropout(model, options.dropout)
    if isinstance(model, T5ForConditionalGeneration) and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = model.config.pad_token_id  # as all published T5 have it
    return model, tokenizer


def _set_dropout(model: Model, rate: float) -> None:
    """In the modules, which compute, and in the config, which is saved."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    for name in ("dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(model.config, name):
            setattr(model.config, name, rate)


def _datasets(options: TrainOptions, model: Model, tokenizer: Tokenizer) -> tuple[Dataset, Dataset]:
    """The training and the validation set; says how much of them is cut off."""
    assert options.train
    causal = not model.config.is_encoder_decoder
    train = read_records(options.task, options.train, causal=causal)
    if options.valid is not None:
        valid = read_records(options.task, options.valid, causal=causal)
    else:
        train, valid = split_records(train, options.valid_share, options.seed)
    limits = {"max_source_length": options.max_source_length, "max_target_length": options.max_target_length}
    datasets = [Dataset(records, tokenizer, causal=causal, **limits) for records in (train, valid)]
    for name, dataset in zip(("training", "validation"), datasets, strict=True):
        for part in ("source", "target"):
            cut = getattr(dataset, f"truncated_{part}s")
            if cut:
                limit = limits[f"max_{part}_length"]
                warn(f"{cut} of {len(dataset)} {name} {part}s are cut to --max-{part}-length {limit} tokens")
        if isinstance(model, GPT2LMHeadModel) and dataset.lengths.max() > model.config.n_positions:
            raise ValueError(
                f"an example of {dataset.lengths.max()} tokens, but {options.model} has only "
                f"{model.config.n_positions} positions: lower --max-source-length or --max-target-length"
            )
    return datasets[0], datasets[1]


def _loader(
    dataset: Dataset,
    options: TrainOptions,
    tokenizer: Tokenizer,
    batch_size: int,
    accumulate: int | None = None,
) -> DataLoader:
    """The training loader where `accumulate` is given, else the validation loader."""
    return DataLoader(
        dataset,
        batch_size,
        pad_id=tokenizer.pad_id,
        accumulate=accumulate or 1,
        shuffle=accumulate is not None,
        seed=options.seed,
        pad_to_max_length=options.pad_to_max_length,
        num_workers=options.workers,
    )


def _directory(options: TrainOptions) -> RunDirectory:
    if options.resume:
        assert options.output
        return RunDirectory.existing(options.output)
    return RunDirectory.create(options.output, overwrite=options.overwrite)
