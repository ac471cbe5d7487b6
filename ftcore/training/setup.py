"""A run: what the training loop works with, and how options become its parts."""

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import torch
from torch import nn

from ftcore.checkpoints.checkpoint import new_model, save_model
from ftcore.cli import fits
from ftcore.data import CORPUS_TASKS, Corpus, DataLoader, ExampleDataset, Task, split_records
from ftcore.data.loader import BatchError
from ftcore.data.tokenizer import Tokenizer
from ftcore.lora.adapter import save_adapter
from ftcore.lora.lora import add_lora, lora_layers, merge_lora
from ftcore.metrics import MetricError
from ftcore.models import Model
from ftcore.models.config import set_dropout_rates
from ftcore.output import log, one_line, warn
from ftcore.training.callbacks import Callback, Metrics
from ftcore.training.distributed import (
    ComputeLoss,
    Strategy,
    all_gather,
    main_process_first,
    on_main,
    rank,
    to_local,
    unsharded,
    world_size,
)
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from ftcore.training.inputs import (
    Examples,
    check_checkpoint,
    load_checkpoint,
    make_dataset,
    own_data,
    read_data,
)
from ftcore.training.launch import start_command
from ftcore.training.loss import Loss
from ftcore.training.optim import Autocast, make_schedule
from ftcore.training.options import GOAL, RunOptions, TrainOptions
from ftcore.training.resize import Resized, config_changes, freeze, resize
from ftcore.training.run_directory import RunDirectory, atomic_directory, new_path
from ftcore.training.run_files import data_files, valid_files
from ftcore.training.state import load_state, save_state, saved_step, sha256


@dataclass
class Progress:
    """Counters of a run; saved with its state."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # current epoch, from 0
    best: list[float] | None = None  # best validation so far, see `validation.improved`
    best_step: int | None = None  # its step; None in the state of an older version
    validations_since_best: int = 0  # none of them better
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of the log
    skipped: int = 0  # last steps in a row without an update, since fp16 gradients overflowed
    is_unvalidated: bool = False  # the validation of this step failed


@dataclass
class Run:
    """Everything that the loop in train.py works with."""

    options: RunOptions
    directory: RunDirectory
    device: torch.device
    strategy: Strategy | None  # how several processes share the model
    tokenizer: Tokenizer
    model: Model
    loss: Loss  # batch_loss, or the user's own
    compute_loss: ComputeLoss  # the same of the model, under DDP or FSDP2 where there are several processes
    train_loader: DataLoader
    valid_loaders: dict[str, DataLoader]  # by name, "" of the only, unnamed set; the first one selects best/
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Autocast
    total_steps: int
    learning_rate: Callable[[int], float]  # of a step, from 0
    resized: Resized | None  # how the model differs from its checkpoint
    fingerprints: dict[str, str]  # SHA-256 of the data files by option; a resumed run must find the same
    progress: Progress = field(default_factory=Progress)
    callbacks: Sequence[Callback] = ()
    stop_reason: str | None = None  # why to save and stop after this step, see `stop`

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the run's directory for other processes."""
        self.directory.close()

    def start(self, callbacks: Sequence[Callback]) -> None:
        """Prepare for the loop; a run that was stopped in this process continues where it stopped."""
        self.callbacks, self.stop_reason = callbacks, None
        self.train_loader.load_state_dict(self.train_loader.state_dict())

    def stop(self, reason: str) -> None:
        """End the run after this step, with a save; `reason` is printed."""
        self.stop_reason = reason

    def line(self, **metrics: float) -> Metrics:
        """A line of metrics.jsonl: the metrics, with the step and the epoch that they belong to."""
        epoch = self.progress.step / self.train_loader.steps_per_epoch
        return {"step": self.progress.step, "epoch": round(epoch, 4), **metrics}

    @property
    def task(self) -> Task:
        return self.options.make_task()

    @property
    def is_finished(self) -> bool:
        return self.progress.step >= self.total_steps or self.early_stop is not None

    @property
    def early_stop(self) -> str | None:
        """Why --early-stopping ends the run, if it does."""
        count = self.progress.validations_since_best
        if 0 < self.options.early_stopping <= count:
            return f"no improvement of best/ in the last {count} validations"
        return None

    def is_best(self, quality: list[float]) -> bool:
        """Record a validation. Returns whether it is the best; if not, --early-stopping may end the run."""
        progress = self.progress
        if progress.best is None or quality > progress.best:
            progress.best, progress.best_step, progress.validations_since_best = quality, progress.step, 0
            return True
        progress.validations_since_best += 1
        if self.early_stop:
            self.stop(self.early_stop)
        return False

    @property
    def eval_every(self) -> int:
        return self.options.eval_every or self.train_loader.steps_per_epoch

    def save_checkpoint(self, directory: Path) -> None:
        """Write weights, config and tokenizer: a directory that ftcore and transformers open. A collective.

        Raises:
            FloatingPointError: a weight is not finite; what was saved before is kept.
        """
        self._save_weights(directory)
        self._report_save(directory)

    def _save_weights(self, directory: Path) -> None:
        weights = self.model.named_parameters()
        non_finite = [name for name, weight in weights if not to_local(weight).isfinite().all()]
        for names in all_gather(non_finite):
            if names:
                raise self.failure(f"after step {self.progress.step}, {names[0]} is not finite")
        model = unsharded(self.model, main_only=True)
        on_main(lambda: self._write_checkpoint(model, directory))

    def _write_checkpoint(self, model: Model, directory: Path) -> None:
        with atomic_directory(directory) as place:
            save_model(merge_lora(model), place)
            if lora_layers(model) and self.resized is None:  # a resized base model exists nowhere on disk
                save_adapter(model, place / "adapter", base_model=self.options.model)
                self.task.save(place / "adapter")
            self.tokenizer.save_pretrained(place)
            self.task.save(place)

    def save(self) -> None:
        """Save the weights at last/, then the state to resume from. A collective.

        In this order: after a kill in between, the resumed run writes last/ again.
        """
        self._save_weights(self.directory.last)
        save_state(self.directory.state, **self._stateful(), progress=asdict(self.progress))
        self._report_save(self.directory.last)

    def _report_save(self, directory: Path) -> None:
        for callback in self.callbacks:
            callback.on_save(self, directory)

    @property
    def lost_worker(self) -> str | None:
        """Why a worker process of a data loader was lost, if one was."""
        loaders = (self.train_loader, *self.valid_loaders.values())
        return next((loader.lost_worker for loader in loaders if loader.lost_worker), None)

    def require_workers(self) -> None:
        """Raise ChildProcessError if this saved run has stopped because a worker was lost. A collective."""
        lost = [reason for reason in all_gather(self.lost_worker) if reason]
        if lost and self.progress.step < self.total_steps:
            raise ChildProcessError(
                f"a worker process of the data loader was lost, perhaps for lack of memory ({lost[0]}); "
                f"saved after step {self.progress.step}, resume with fewer `workers`: {self.resume_command}"
            )

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save the run where a metric fails, or a batch cannot be read and no other process waits for it."""
        try:
            yield
        except (BatchError, MetricError) as error:
            if isinstance(error, BatchError) and world_size() > 1:
                raise
            self.progress.is_unvalidated = isinstance(error, MetricError)
            self.save()
            resume = f"saved after step {self.progress.step}, resume with {self.resume_command}"
            raise type(error)(f"{error}; {resume}") from None

    def resume(self) -> None:
        """Continue from the saved state. A collective."""
        state = self.directory.state
        (saved, options), types = load_state(state, **self._stateful()), typing.get_type_hints(Progress)
        for name, value in saved.items():
            if name not in types or not fits(value, types[name]):
                raise ValueError(f"{state}: damaged, the run cannot be resumed ({name} is {shown(value)})")
        self.progress = Progress(**saved)
        self._continue_to_goal(replace(self.options, **{name: options[name] for name in GOAL}))
        on_main(lambda: self.directory.metrics_log.truncate(self.progress.step))

    def _continue_to_goal(self, before: RunOptions) -> None:
        """Print what a goal other than that of the options `before` means for the learning rate.

        Raises:
            ValueError: the new goal has been reached already.
        """
        if all(getattr(before, name) == getattr(self.options, name) for name in GOAL):
            return
        step, goal, old_goal = self.progress.step, self.total_steps, steps_to_take(before, self.train_loader)
        if goal <= step:
            raise ValueError(
                f"{self.directory.path} has already taken {step} steps, not less than the goal of {goal}: "
                f"pass larger `epochs` or `max_steps`, or use the weights at {self.directory.last}"
            )
        last, following = make_schedule(before, old_goal)(step - 1), self.learning_rate(step)
        log(
            f"goal       {old_goal:,} -> {goal:,} steps. From here on the learning rate is that of a run "
            f"planned for {goal:,} steps: {last:.3g} in step {step}, {following:.3g} in step {step + 1}"
        )

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "loader": self.train_loader,
            "options": self.options,
            "fingerprints": self.fingerprints,
        }

    def failure(self, what: str) -> FloatingPointError:
        """The error of a run that cannot continue, with advice."""
        advice = "a lower --lr may help"
        if self.directory.last.exists():
            advice += f"; the weights of the last save are at {self.directory.last}"
        return FloatingPointError(f"{what}; {advice}")

    @property
    def resume_command(self) -> str:
        return start_command(self.strategy, "--output", str(self.directory.path), "--resume")

    def situation(self) -> str:
        """Progress and resume command, for the message about a lost process."""
        here = f"in step {self.progress.step + 1} of {self.total_steps}"
        try:
            saved = saved_step(self.directory.state)
        except ValueError as error:
            return f"{here}; {error}"
        if saved is None:
            return f"{here}, before the first save; start again with --overwrite"
        return f"{here}; resume from step {saved} with {self.resume_command}"


@contextmanager
def naming_saved_options(options: TrainOptions) -> Iterator[None]:
    """Let errors of a resumed run name train_config.json, which most of its options come from."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not options.resume:
            raise
        config = RunDirectory(Path(options.output or "")).config
        raise ValueError(f"{one_line(error)} (options of {config})") from None


def make_directory(options: TrainOptions) -> RunDirectory:
    """The run's directory, below runs/ without --output: created, or that of the run to resume. A collective.

    Raises:
        ValueError: see `RunDirectory.open`.
    """
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
    """See `ftcore.fast.prepare_for_training`; ftcore.fast may be left out."""
    try:
        from ftcore.fast import prepare_for_training
    except ImportError as error:
        raise ValueError(f"`fast` and `compile` need ftcore.fast ({error})") from None
    prepare_for_training(model, compile=compile, device=device)
    log(f"{'--compile' if compile else '--fast'} is on: training with ftcore.fast")


def without_files(options: TrainOptions, train_set: object, valid_set: object) -> TrainOptions:
    """The options of a run with examples of the caller's own, which are read from no files.

    Raises:
        ValueError: files are named, too.
    """
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


def steps_to_take(options: RunOptions, train_loader: DataLoader) -> int:
    """Optimizer steps of the whole run."""
    return options.max_steps or options.epochs * train_loader.steps_per_epoch


def fingerprint(options: RunOptions) -> dict[str, str]:
    """SHA-256 of the data files, in their order, by the option that names them; empty for a train_set."""
    files = data_files(options)
    return {name: " ".join(map(sha256, files[name])) for name in files if files[name] or name == "train"}


def seed_rank(seed: int) -> None:
    """Give each rank its own random numbers: otherwise all would drop the same units of different rows."""
    if rank() > 0:
        torch.manual_seed((seed + rank() * 0x9E3779B97F4A7C15) % 2**63)
