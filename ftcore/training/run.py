"""A run: what the training loop works with, how it is saved, stopped and resumed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ftcore.checkpoints.checkpoint import save_model
from ftcore.data import DataLoader, Task
from ftcore.data.loader import BatchError
from ftcore.data.tokenizer import Tokenizer
from ftcore.lora.adapter import save_adapter
from ftcore.lora.lora import lora_layers, merge_lora
from ftcore.metrics import MetricError
from ftcore.models import Model
from ftcore.output import log
from ftcore.training.callbacks import Callback, Metrics
from ftcore.training.defaults import RunOptions
from ftcore.training.distributed import (
    ComputeLoss,
    Strategy,
    all_gather,
    on_main,
    to_local,
    unsharded,
    world_size,
)
from ftcore.training.launch import start_command
from ftcore.training.loss import Loss
from ftcore.training.optim import Autocast, make_schedule
from ftcore.training.options import GOAL
from ftcore.training.resize import Resized
from ftcore.training.run_directory import RunDirectory, atomic_directory
from ftcore.training.state import load_state, save_state, saved_step


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
        """What a row is, and how it becomes source and target."""
        return self.options.make_task()

    @property
    def is_finished(self) -> bool:
        """Whether the last step is taken, or --early-stopping has ended the run."""
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
        """Steps between validations: --eval-every, or an epoch."""
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
        save_state(self)
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
        """Continue from the saved state. A collective.

        Raises:
            ValueError: it is damaged, or of a run with other options, data, model or optimizer.
        """
        self.progress, options = load_state(self)
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

    def failure(self, what: str) -> FloatingPointError:
        """The error of a run that cannot continue, with advice."""
        advice = "a lower --lr may help"
        if self.directory.last.exists():
            advice += f"; the weights of the last save are at {self.directory.last}"
        return FloatingPointError(f"{what}; {advice}")

    @property
    def resume_command(self) -> str:
        """The command line that continues this run."""
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


def steps_to_take(options: RunOptions, train_loader: DataLoader) -> int:
    """Optimizer steps of the whole run."""
    return options.max_steps or options.epochs * train_loader.steps_per_epoch
