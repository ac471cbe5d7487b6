"""Train and fine-tune T5 and GPT-2: `python -m ftcore.train`."""

import os

from ftcore.cli import parse
from ftcore.output import FAILED_RUN, INTERRUPTED, cli_errors, guard_output, log, one_line, progress_bar
from ftcore.training.defaults import RunOptions, resolve
from ftcore.training.options import TrainOptions

# --help and wrong options, before the slow import of torch; under torchrun, main waits for rank 0's message
if __name__ == "__main__":
    guard_output()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        parse(TrainOptions, command="ftcore.train")

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ftcore.data import DataLoader
from ftcore.data.loader import BatchError
from ftcore.metrics import MetricError
from ftcore.models import Model
from ftcore.training import console
from ftcore.training.callbacks import Callback
from ftcore.training.distributed import (
    accumulate,
    all_reduce_sum,
    any_rank,
    on_main,
    rank,
    sync_errors,
    to_full,
    world_size,
    wrap,
)
from ftcore.training.inputs import Examples
from ftcore.training.interrupt import Interrupt
from ftcore.training.launch import connect, local_device, wait_for_main, watch_peers
from ftcore.training.loss import Batch, Loss, batch_loss, count_targets
from ftcore.training.metrics_log import Meter
from ftcore.training.non_finite import diagnose_non_finite
from ftcore.training.optim import autocast, grad_scaler, make_optimizer, make_schedule, set_learning_rate
from ftcore.training.run import Run, steps_to_take
from ftcore.training.run_directory import RunDirectory
from ftcore.training.run_files import find_files
from ftcore.training.setup import (
    fingerprint,
    make_datasets,
    make_directory,
    make_loader,
    make_model,
    naming_saved_options,
    seed_rank,
    without_files,
)
from ftcore.training.validation import check_metrics, improved, named_key, score_set

MAX_SKIPPED = 40  # steps in a row that fp16's scaler may skip; it has halved its scale at each


def prepare(
    options: TrainOptions,
    *,
    train_set: Examples | None = None,
    valid_set: Examples | Mapping[str, Examples] | None = None,
    loss: Loss = batch_loss,
    optimizer: Callable[[Model, RunOptions], torch.optim.Optimizer] = make_optimizer,
) -> Run:
    """Build everything that a run needs; its directory is created last, and locked until the run is closed.

    Args:
        options: those of the command line. To resume a run, pass the same again with `resume`.
        train_set: examples in the place of files: dicts of the task's columns, as the lines of a JSON lines
            file; or records; or an `ExampleDataset`, of token ids.
        valid_set: the same to validate on, or several by name; by default a share of the rows to train on.
        loss: of a batch, see `batch_loss`.
        optimizer: makes the optimizer; each step sets the learning rate of its groups.

    Returns:
        The run, for `train`; a context manager that closes it.

    Raises:
        ValueError, OSError: a wrong option, file or checkpoint; raised on all ranks.
    """
    with sync_errors(), naming_saved_options(options):
        strategy, device = connect(options), local_device(options.device)
        torch.manual_seed(options.seed)
        options = without_files(options, train_set, valid_set)
        files = find_files(options)
        model, tokenizer, resized = make_model(files.model, options, device)
        settings = resolve(options, files, is_t5=model.config.is_encoder_decoder)
        train_examples, valid_sets = make_datasets(settings, model, tokenizer, train_set, valid_set)
        check_metrics(settings, valid_sets)
        train_loader = make_loader(train_examples, settings, tokenizer, training=True)
        total_steps = steps_to_take(settings, train_loader)
    fingerprints = on_main(lambda: fingerprint(settings))
    run = Run(
        options=settings,
        device=device,
        strategy=strategy,
        tokenizer=tokenizer,
        model=model,
        loss=loss,
        compute_loss=wrap(model, device, strategy, loss),
        train_loader=train_loader,
        valid_loaders={
            name: make_loader(examples, settings, tokenizer, training=False)
            for name, examples in valid_sets.items()
        },
        optimizer=optimizer(model, settings),
        learning_rate=make_schedule(settings, total_steps),
        total_steps=total_steps,
        autocast=autocast(settings.precision, device),
        scaler=grad_scaler(settings.precision, device),
        resized=resized,
        fingerprints=fingerprints,
        directory=make_directory(settings),
    )
    with ExitStack() as on_error:
        on_error.enter_context(run)
        seed_rank(settings.seed)
        if settings.resume:
            run.resume()
        on_main(lambda: run.directory.save_options(settings))
        on_error.pop_all()
    return run


def train(run: Run, callbacks: Sequence[Callback] = ()) -> None:
    """Train until the last step, `run.stop`, an interrupt or the loss of a worker.

    Changes only `run` and its directory.

    Args:
        run: from `prepare`. One that was stopped goes on.
        callbacks: see `Callback`; their errors end the run and are raised.
    """
    options, progress = run.options, run.progress
    run.start(callbacks)
    if progress.step == 0 or progress.is_unvalidated:
        validate(run)  # the untrained model, or again after a metric that failed
        progress.is_unvalidated = False

    meter = Meter(progress.losses)
    with training_bar(run) as bar, Interrupt() as interrupt, run.saved_on_failure():
        while not run.is_finished:
            run.train_loader.set_epoch(progress.epoch)
            for micro_batches in grouped(run.train_loader, options.grad_accum):
                lr = run.learning_rate(progress.step)
                loss, grad_norm = take_step(run, micro_batches, lr)
                progress.step += 1

                meter.add(loss, micro_batches)
                bar.update()
                bar.set_postfix_str(meter.postfix(), refresh=False)
                is_last = progress.step == run.total_steps
                if is_last or progress.step % options.log_every == 0:
                    log_metrics(run, **meter.flush(), learning_rate=lr, grad_norm=grad_norm)
                for callback in callbacks:
                    callback.on_step(run, run.line(train_loss=loss, learning_rate=lr, grad_norm=grad_norm))
                if is_last or progress.step % run.eval_every == 0:
                    with meter.paused():
                        validate(run)
                if options.save_every and progress.step % options.save_every == 0:
                    save_step(run)
                stops = interrupt.requested or run.stop_reason is not None or run.lost_worker is not None
                if any_rank(is_last or stops):
                    run.save()
                    run.require_workers()
                    return
            progress.epoch += 1


def training_bar(run: Run) -> Any:
    """A progress bar of the steps; at 80 columns its line leaves room for the bar."""
    line = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    total, done = run.total_steps, run.progress.step
    return progress_bar(total=total, initial=done, bar_format=line, file=sys.stdout, disable=rank() > 0)


def grouped(loader: DataLoader, grad_accum: int) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step; fewer in the last step of an epoch."""
    batches = iter(loader)
    try:
        while micro_batches := list(islice(batches, grad_accum)):
            yield micro_batches
    except (ValueError, OSError) as error:  # a corpus that was removed, for example
        loader.rewind()
        raise BatchError(one_line(error)) from None


def take_step(run: Run, micro_batches: Sequence[Batch], lr: float) -> tuple[float, float]:
    """Forward, backward, clip, step. Returns (loss, gradient norm)."""
    set_learning_rate(run.optimizer, lr)
    with diagnose_non_finite(run, micro_batches):
        loss = accumulate_gradients(run, micro_batches)
        grad_norm = clip_gradients(run)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss, grad_norm


def accumulate_gradients(run: Run, micro_batches: Sequence[Batch]) -> float:
    """Compute the gradient of one large batch from its micro-batches. Returns its loss, a mean over tokens.

    Each micro-batch's summed loss is divided by the target tokens of all of them. The usual mean of means
    would weight a token by the number of tokens in its micro-batch.
    """
    tokens = all_reduce_sum(sum(count_targets(run.model, batch) for batch in micro_batches))
    total = 0.0
    for number, batch in enumerate(micro_batches, start=1):
        batch = {name: tensor.to(run.device, non_blocking=True) for name, tensor in batch.items()}
        with accumulate(run.compute_loss, is_last=number == len(micro_batches)):
            with run.autocast():
                loss = run.compute_loss(batch, run.options.label_smoothing).total / tokens
            total += loss.item()
            # DDP and FSDP average gradients over the ranks; their sum is wanted.
            run.scaler.scale(loss * world_size()).backward()
    return require_finite("the loss", all_reduce_sum(total))


def clip_gradients(run: Run) -> float:
    """Clip the global gradient norm to --clip-norm. Returns the norm before clipping."""
    run.scaler.unscale_(run.optimizer)
    limit = run.options.clip_norm or math.inf
    norm = to_full(torch.nn.utils.clip_grad_norm_(run.model.parameters(), limit)).item()
    # fp16 gradients overflow now and then: the scaler skips that step and lowers its scale.
    run.progress.skipped = 0 if math.isfinite(norm) else run.progress.skipped + 1
    if run.scaler.is_enabled() and run.progress.skipped < min(MAX_SKIPPED, run.total_steps):
        return norm
    return require_finite("the gradient's norm", norm)


def require_finite(name: str, value: float) -> float:
    """Raise FloatingPointError before a step that would make the weights NaN."""
    if not math.isfinite(value):
        raise FloatingPointError(f"{name} is {value}")
    return value


def validate(run: Run) -> None:
    """Score the validation sets, print and log the metrics, save the weights at best/ if they improved."""
    metrics: dict[str, float] = {}
    predictions: list[dict[str, Any]] = []
    for name, loader in run.valid_loaders.items():
        scores, answers = score_set(run, loader)
        console.print_validation(run, name, scores, answers)
        metrics |= {named_key(name, key): value for key, value in scores.items()}
        of_set = {"set": name} if name else {}
        predictions += [{"step": run.progress.step, **of_set, **asdict(answer)} for answer in answers]
    log_metrics(run, **metrics)
    if run.progress.step > 0 and improved(run, metrics):
        run.save_checkpoint(run.directory.best)
        on_main(lambda: run.directory.save_predictions(predictions))
    for callback in run.callbacks:
        callback.on_validate(run, run.line(**metrics))


def save_step(run: Run) -> None:
    """Save checkpoints/step-N and the state to resume from."""
    run.save_checkpoint(run.directory.step_checkpoint(run.progress.step))
    on_main(lambda: run.directory.prune_checkpoints(run.options.keep))
    run.save()


def log_metrics(run: Run, **metrics: float) -> None:
    """Append a line to metrics.jsonl."""
    if run.scaler.is_enabled() and "train_loss" in metrics:
        metrics["skipped_steps"] = skipped = run.progress.skipped
        if skipped:
            log(f"step {run.progress.step}: skipped ({skipped} in a row), its gradients overflow")
    on_main(lambda: run.directory.metrics_log.append(run.line(**metrics)))


def read_options(argv: Sequence[str] | None) -> TrainOptions:
    """The command line's options; a resumed run takes those not given from its directory."""
    options = parse(TrainOptions, argv, command="ftcore.train")
    if not options.resume:
        return options
    directory = RunDirectory(Path(options.output or ""))
    with cli_errors("ftcore.train"):
        directory.require_resumable()
    given = list(sys.argv[1:] if argv is None else argv)
    resumed = parse(TrainOptions, ["--config", str(directory.config), *given], command="ftcore.train")
    goal_in_epochs = options.epochs is not None and options.max_steps is None
    return replace(resumed, max_steps=None) if goal_in_epochs else resumed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    with wait_for_main():
        options = read_options(argv)
        try:
            if options.dry_run:
                return console.dry_run(options, prepare)
            if options.check:
                return console.check(options, sys.modules[__name__])
            with cli_errors("ftcore.train"):
                run = prepare(options)
            with run, cli_errors("ftcore.train", (FloatingPointError, OSError, MetricError), FAILED_RUN):
                on_main(lambda: console.print_summary(run))
                with watch_peers(run.situation):
                    train(run)
                on_main(lambda: console.print_results(run))
        except KeyboardInterrupt:  # outside of the loop, where Interrupt handles it
            log("interrupted; earlier saves are complete")
            return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
