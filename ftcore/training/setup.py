"""A run before its first step: options, files and a checkpoint become everything that the loop works with."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftcore.checkpoints.checkpoint import save_model
from ftcore.cli import warn
from ftcore.data import CORPUS_TASKS, Corpus, DataLoader, ExampleDataset, split_records
from ftcore.data.tokenizer import Tokenizer, check_vocabulary
from ftcore.fast.compiled_blocks import compile_blocks
from ftcore.fast.compiler import require_compiler
from ftcore.fast.memory import keep_freed_memory
from ftcore.fast.training import use_fast_layers
from ftcore.lora.adapter import save_adapter
from ftcore.lora.lora import add_lora, lora_layers, merge_lora
from ftcore.models import Model
from ftcore.models.config import set_dropout_rates
from ftcore.training.distributed import OneProcess, require_processes
from ftcore.training.freeze import freeze
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from ftcore.training.inputs import load_checkpoint, make_dataset, read_data
from ftcore.training.optim import adafactor, adamw, learning_rate, warmup_steps
from ftcore.training.options import TrainOptions, with_defaults
from ftcore.training.precision import Autocast, autocast, grad_scaler
from ftcore.training.resize import Resized, config_changes, resize
from ftcore.training.run_directory import RunDirectory, atomic_directory
from ftcore.training.state import load_state, save_state, saved_step, sha256


@dataclass
class Progress:
    """Where a run stands; saved with its state."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # the epoch it is in, from 0
    best: list[float] | None = None  # the best validation so far: exact match, minus the loss
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of the log


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
    valid_set: ExampleDataset
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Autocast
    total_steps: int
    learning_rate: Callable[[int], float]  # of a step, counted from 0
    fingerprints: dict[str, str]  # of the data's files, by option: a resumed run must find the same ones
    resized: Resized | None  # what options have changed about the model
    parallel: OneProcess  # the processes that train it together
    progress: Progress = field(default_factory=Progress)

    @property
    def eval_every(self) -> int:
        return self.options.eval_every or self.train_loader.windows_per_epoch

    def save_checkpoint(self, directory: Path) -> None:
        """Weights, config and tokenizer: a directory that ftcore and transformers open.

        Raises:
            FloatingPointError: a weight is not finite, so that what was saved before is worth more.
        """
        weights = self.model.named_parameters()
        spoilt = [name for name, weight in weights if not self.parallel.local(weight).isfinite().all()]
        for names in self.parallel.gather(spoilt):
            if names:
                raise self.failure(f"after step {self.progress.step}, {names[0]} is not finite")
        model = self.parallel.whole(self.model, only_on_first=True)
        self.parallel.on_first(lambda: self._write_checkpoint(model, directory))

    def _write_checkpoint(self, model: Model, directory: Path) -> None:
        with atomic_directory(directory) as place:
            save_model(merge_lora(model), place)
            if lora_layers(model) and self.resized is None:  # else nobody has the model that it changes
                save_adapter(model, place / "adapter", base_model=self.options.model)
            self.tokenizer.save_pretrained(place)

    def save(self) -> None:
        """Save the weights for people at last/, and the run so that it can be resumed.

        The state comes last: what a kill leaves older than the state would never be written again.
        """
        self.save_checkpoint(self.directory.last)
        save_state(self.directory.state, **self._stateful(), progress=asdict(self.progress))

    def failure(self, what: str) -> FloatingPointError:
        """What a run ends with that cannot go on, and what can be done about it."""
        advice = "a lower --lr may help"
        if self.directory.last.exists():
            advice += f"; the weights of the last save are at {self.directory.last}"
        return FloatingPointError(f"{what}; {advice}")

    def resume(self) -> None:
        self.progress = Progress(**load_state(self.directory.state, **self._stateful()))
        self.parallel.on_first(lambda: self.directory.forget_metrics_after(self.progress.step))

    @property
    def how_to_go_on(self) -> str:
        """The command line that resumes the run."""
        return f"{self.parallel.command()} --output {self.directory.path} --resume"

    def situation(self) -> str:
        """Where it stands, for who hears that it ends here."""
        here = f"in step {self.progress.step + 1} of {self.total_steps}"
        saved = saved_step(self.directory.state)
        if saved is None:
            return f"{here}, before the first save; start again with --overwrite"
        return f"{here}; the run goes on from its last save, step {saved}, with {self.how_to_go_on}"

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "loader": self.train_loader,
            "options": self.options,
            "fingerprints": self.fingerprints,
            "parallel": self.parallel,
        }


def prepare(options: TrainOptions, parallel: OneProcess | None = None) -> Run:
    """Read everything, check that it fits together, and make (or take up) the run's directory, last.

    Args:
        parallel: the processes that train together; all of them call it. By default there is this one.

    Raises:
        ValueError, OSError: an option, a file or a checkpoint is wrong; the message says what to do. Of
            several processes all raise it, whichever has found it.
    """
    keep_freed_memory()
    parallel = parallel or OneProcess()
    require_processes(options, parallel)
    with parallel.agreed():
        options = with_defaults(options)
        assert options.model and options.train and options.epochs
        assert options.batch_size and options.eval_batch_size
        assert options.schedule and options.warmup is not None
        torch.manual_seed(options.seed)
        device = parallel.find_device(options.device)
        context = autocast(options.precision, device)
        if options.compile:
            require_compiler(device, "--compile")
        model, tokenizer, resized = _model(options)
        if options.lr is None:
            options.lr = _default_lr(options, is_t5=model.config.is_encoder_decoder)
        files = {"train": options.train} | ({"valid": options.valid} if options.valid else {})
        fingerprints = {name: sha256(file) for name, file in files.items()}
        train, valid = _datasets(options, model, tokenizer, parallel)
        train_loader = make_loader(
            train, options, tokenizer, options.batch_size, accumulate=options.grad_accum, parallel=parallel
        )
        valid_loader = make_loader(valid, options, tokenizer, options.eval_batch_size, parallel=parallel)

    if options.compile:
        compile_blocks(model)
    if options.gradient_checkpointing:
        checkpoint_blocks(model)
    parallel.place(model.train(), device, options.seed)
    total_steps = options.max_steps or options.epochs * train_loader.windows_per_epoch
    run = Run(
        options=options,
        directory=RunDirectory(parallel.on_first(lambda: _directory(options).path)),
        device=device,
        tokenizer=tokenizer,
        model=model,
        train_loader=train_loader,
        valid_loader=valid_loader,
        valid_set=valid,
        optimizer=make_optimizer(options, model),
        scaler=grad_scaler(options.precision, device),
        autocast=context,
        total_steps=total_steps,
        learning_rate=partial(
            learning_rate,
            peak=options.lr,
            schedule=options.schedule,
            warmup_steps=warmup_steps(options.warmup, total_steps),
            total_steps=total_steps,
        ),
        fingerprints=fingerprints,
        resized=resized,
        parallel=parallel,
    )
    if options.resume:
        run.resume()
    parallel.on_first(lambda: run.directory.save_options(options))
    return run


def _model(options: TrainOptions) -> tuple[Model, Tokenizer, Resized | None]:
    """The checkpoint's, changed as the options say."""
    assert options.model
    model, tokenizer = load_checkpoint(options.model, from_scratch=options.from_scratch)
    resized = None
    if changes := config_changes(options, model.config):
        model, resized = resize(model, changes, keep_weights=not options.from_scratch)
        check_vocabulary(tokenizer, model.config, "the changed config.json")
    if options.dropout is not None:
        _set_dropout(model, options.dropout)
    if options.freeze and (tied := freeze(model, options.freeze)):
        names = " ".join(options.freeze)
        warn(f"--freeze {names} freezes {', '.join(tied)} too: the same weights serve there")
    if options.lora_rank is not None:
        alpha = options.lora_alpha or 2 * options.lora_rank
        targets = "all-linear" if options.lora_targets == ["all-linear"] else options.lora_targets
        add_lora(model, rank=options.lora_rank, alpha=alpha, dropout=options.lora_dropout, targets=targets)
    if not options.compile:  # the compiler looks into the textbook's layers, and makes its own of them
        use_fast_layers(model)
    return model, tokenizer, resized


def _default_lr(options: TrainOptions, *, is_t5: bool) -> float:
    """Of fine-tuning with AdamW; Adafactor's is an option's default."""
    if options.relative_steps:
        return 1e-2
    if options.lora_rank is not None:
        return 3e-3 if is_t5 else 1e-3
    return 3e-4 if is_t5 else 5e-5


def _set_dropout(model: Model, rate: float) -> None:
    """In the modules, which compute, and in the config, which is saved."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    set_dropout_rates(model.config, rate)


def _datasets(
    options: TrainOptions, model: Model, tokenizer: Tokenizer, parallel: OneProcess
) -> list[ExampleDataset]:
    """The training and the validation set."""
    assert options.train
    # Records are read by all at once; a corpus is tokenised by the first and lies on disk for the others.
    with parallel.first_before_others() if options.task in CORPUS_TASKS else nullcontext():
        train = read_data(options.task, options.train, model, tokenizer)
        valid = read_data(options.task, options.valid, model, tokenizer) if options.valid else None
    if valid is None:
        if isinstance(train, Corpus):
            train, valid = train.split(options.valid_share)
        else:
            train, valid = split_records(train, options.valid_share, options.seed)
    return [
        make_dataset(
            data,
            model,
            tokenizer,
            name=name,
            max_source_length=options.max_source_length,
            max_target_length=options.max_target_length,
            pad_to_max_length=options.pad_to_max_length,
            seed=options.seed,
        )
        for name, data in (("training", train), ("validation", valid))
    ]


def make_loader(
    dataset: ExampleDataset,
    options: TrainOptions,
    tokenizer: Tokenizer,
    batch_size: int,
    accumulate: int | None = None,
    parallel: OneProcess | None = None,
) -> DataLoader:
    """The training loader where `accumulate` is given, else the validation loader; of this process's rows."""
    parallel = parallel or OneProcess()
    return DataLoader(
        dataset,
        batch_size,
        pad_id=tokenizer.pad_id,
        accumulate=accumulate or 1,
        shuffle=accumulate is not None,
        seed=options.seed,
        # Packed rows have room for examples of all lengths, which may then be mixed at random.
        bucket=not options.packing,
        pack=options.packing,
        pad_to_max_length=options.pad_to_max_length,
        num_workers=options.workers,
        process=parallel.rank,
        processes=parallel.count,
    )


def make_optimizer(options: TrainOptions, model: Model) -> torch.optim.Optimizer:
    assert options.lr is not None and options.weight_decay is not None
    if options.optimizer == "adafactor":
        return adafactor(model, lr=options.lr, weight_decay=options.weight_decay)
    relative = bool(options.relative_steps)
    return adamw(model, lr=options.lr, weight_decay=options.weight_decay, relative=relative)


def _directory(options: TrainOptions) -> RunDirectory:
    if options.resume:
        assert options.output
        return RunDirectory.existing(options.output)
    return RunDirectory.create(options.output, overwrite=options.overwrite)
