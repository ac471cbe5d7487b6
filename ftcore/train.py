"""Train and fine-tune T5 and GPT-2: `python -m ftcore.train`. The loop is `train`, below."""

import os

from ftcore.cli import FAILED_RUN, INTERRUPTED, cli_errors, parse
from ftcore.training.options import TrainOptions

if __name__ == "__main__" and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's processes speak later
    parse(TrainOptions, command="ftcore.train")  # --help and typing errors, before the slow import of torch

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ftcore.data import DataLoader
from ftcore.decoding import generate
from ftcore.training.check_result import FAILS, HOLDS
from ftcore.training.checks import Loop, run_checks
from ftcore.training.distributed import join
from ftcore.training.estimate import estimate
from ftcore.training.interrupt import Interrupt
from ftcore.training.launch import first_speaks
from ftcore.training.loss import count_targets
from ftcore.training.meter import Meter
from ftcore.training.non_finite import explained
from ftcore.training.optim import set_learning_rate
from ftcore.training.picture import save_picture
from ftcore.training.preview import preview
from ftcore.training.report import save_report
from ftcore.training.run_directory import RunDirectory
from ftcore.training.samples import continuations
from ftcore.training.scoring import Answer, mean, score_answers, score_loss
from ftcore.training.setup import Run, prepare

Batch = dict[str, Tensor]


def train(run: Run, watch: Callable[[dict[str, float]], None] = lambda metrics: None) -> None:
    """Train until the last step or an interrupt. Everything that changes is in `run` and its directory.

    `watch` is shown the figures of each validation after the first steps; what it raises ends the run.
    """
    options, progress = run.options, run.progress
    if progress.step == 0:
        validate(run)  # what the model can do before it learns anything

    meter = Meter(progress.losses, run.parallel)
    bar = tqdm(total=run.total_steps, initial=progress.step, desc="training", unit="step", file=sys.stdout)
    with bar, Interrupt() as interrupt:
        while progress.step < run.total_steps:
            run.train_loader.set_epoch(progress.epoch)
            for window in windows(run.train_loader, options.grad_accum):
                lr = run.learning_rate(progress.step)
                loss, grad_norm = take_step(run, window, lr)
                progress.step += 1

                meter.add(loss, window)
                bar.update()
                bar.set_postfix(meter.postfix(lr), refresh=False)
                is_last = progress.step == run.total_steps
                if is_last or progress.step % options.log_every == 0:
                    log(run, **meter.take(), learning_rate=lr, grad_norm=grad_norm)
                if is_last or progress.step % run.eval_every == 0:
                    with meter.paused():
                        watch(validate(run))
                if options.save_every and progress.step % options.save_every == 0:
                    save_step(run)
                if run.parallel.any(is_last or interrupt.requested):
                    run.save()
                    return
            progress.epoch += 1


def windows(loader: DataLoader, accumulate: int) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step: `accumulate` of them, at an epoch's end maybe fewer."""
    batches = iter(loader)
    while window := list(islice(batches, accumulate)):
        yield window


def take_step(run: Run, window: Sequence[Batch], lr: float) -> tuple[float, float]:
    """Forward, backward, clip, step. Returns the loss and how long the gradient was."""
    set_learning_rate(run.optimizer, lr)
    with explained(run, window):
        loss = accumulate_gradients(run, window)
        grad_norm = clip_gradients(run)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss, grad_norm


def accumulate_gradients(run: Run, window: Sequence[Batch]) -> float:
    """The gradient of one large batch, a micro-batch at a time; returns its loss, the mean over its tokens.

    Each micro-batch's sum is divided by the target tokens of the whole window. A mean of the micro-batches'
    means, the usual way, would weigh a token by how few others its micro-batch has.
    """
    parallel = run.parallel
    tokens = parallel.sum(sum(count_targets(run.model, batch) for batch in window))
    total = 0.0
    for number, batch in enumerate(window, start=1):
        batch = {name: tensor.to(run.device, non_blocking=True) for name, tensor in batch.items()}
        with parallel.synchronized(last=number == len(window)):
            with run.autocast():
                loss = parallel.batch_loss(run.model, batch, run.options.label_smoothing).total / tokens
            total += loss.item()
            # Times the processes, over which torch takes the mean of the gradients: it is their sum.
            run.scaler.scale(loss * parallel.count).backward()
    return require_finite("the loss", parallel.sum(total))


def clip_gradients(run: Run) -> float:
    """Shorten the gradient of all parameters together to --clip-norm; returns how long it was."""
    run.scaler.unscale_(run.optimizer)
    limit = run.options.clip_norm or math.inf
    norm = run.parallel.item(torch.nn.utils.clip_grad_norm_(run.model.parameters(), limit))
    # Under fp16 gradients overflow now and then: the scaler leaves that step out and scales less.
    return norm if run.scaler.is_enabled() else require_finite("the gradient's norm", norm)


def require_finite(name: str, value: float) -> float:
    """Stop before a step that would spoil the weights."""
    if not math.isfinite(value):
        raise FloatingPointError(f"{name} is {value}")
    return value


def validate(run: Run) -> dict[str, float]:
    """Score the validation set, tell and log what came out, and keep the weights at best/ if they are."""
    score = score_loss(run.model, run.valid_loader, run.autocast, run.parallel)
    metrics = {
        "valid_loss": score.loss,
        "token_accuracy": score.token_accuracy,
        "perplexity": score.perplexity,
    }
    model = run.parallel.whole(run.model)
    answers = score_answers(
        model,
        run.tokenizer,
        run.valid_set,
        limit=run.options.eval_answers,
        batch_size=run.valid_loader.batch_sampler.batch_size,
        max_new_tokens=run.options.max_target_length,
        num_beams=run.options.num_beams,
        parallel=run.parallel,
    )
    if answers:
        metrics["exact_match"] = mean([answer.exact_match for answer in answers])
        metrics["f1"] = mean([answer.f1 for answer in answers])
    elif run.options.eval_answers:
        answers = continuations(model, run.tokenizer, run.valid_set, count=4, max_new_tokens=32)
    show_answers(answers)
    log(run, **metrics)
    tell(f"step {run.progress.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))

    rank = [metrics.get("exact_match", 0.0), -metrics["valid_loss"]]
    if run.progress.step > 0 and (run.progress.best is None or rank > run.progress.best):
        run.progress.best = rank
        run.save_checkpoint(run.directory.best)
        predictions = [{"step": run.progress.step, **asdict(answer)} for answer in answers]
        run.parallel.on_first(lambda: run.directory.save_predictions(predictions))
    return metrics


def save_step(run: Run) -> None:
    """The save of every --save-every steps: a checkpoint of this step, and the state to resume from."""
    run.save_checkpoint(run.directory.step_checkpoint(run.progress.step))
    run.parallel.on_first(lambda: run.directory.prune_checkpoints(run.options.keep))
    run.save()


def log(run: Run, **metrics: float) -> None:
    epoch = run.progress.step / run.train_loader.windows_per_epoch
    line = {"step": run.progress.step, "epoch": round(epoch, 4), **metrics}
    run.parallel.on_first(lambda: run.directory.log(line))


def tell(line: str) -> None:
    """Print without tearing the progress bar."""
    tqdm.write(line, file=sys.stdout)


def show_answers(answers: Sequence[Answer], count: int = 2) -> None:
    """Some of the model's answers beside the gold ones, the same ones each time."""
    for answer in answers[:: max(1, len(answers) // count)][:count]:
        source = " ".join(answer.source.split())
        tell(f"  {source if len(source) < 90 else source[:87] + '...'}")
        tell(f"    answer: {answer.prediction!r}   gold: {' | '.join(answer.references)!r}")


def introduce(run: Run) -> None:
    """What this run will do, before it does it."""
    options, model = run.options, run.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tell(f"model      {options.model} ({model.config.architecture}, {parameters:,} parameters, {run.device})")
    if run.resized and run.resized.keys and run.progress.step == 0:
        changed = [f"{key} {old} -> {new}" for key, (old, new) in run.resized.keys.items()]
        tell(f"changed    {', '.join(changed)}")
        for fate, modules in run.resized.parameters.items():
            tell(f"  {fate:<9}{', '.join(modules)}")
    if trained < parameters:
        tell(f"trained    {trained:,} parameters, {trained / parameters:.1%}; the others are frozen")
    train, valid = len(run.train_loader.batch_sampler.lengths), len(run.valid_loader.batch_sampler.lengths)
    tell(f"task       {options.task}: {train:,} examples to train on, {valid:,} to validate on")
    tell(
        f"steps      {run.total_steps:,} of {options.batch_size} x {options.grad_accum} examples, "
        f"learning rate {options.lr:g} {options.schedule}, {options.precision}"
    )
    if run.parallel.mode:
        tell(f"processes  {run.parallel.count}, {run.parallel.mode}")
    look = preview(run.train_loader, model, run.tokenizer)
    for line in look.lines(bars=options.dry_run):
        tell(line)
    if not options.check and not options.dry_run:
        tell(f"directory  {run.directory.path}")


def conclude(run: Run) -> None:
    """Where the results are and how to go on."""
    directory = run.directory
    if run.progress.step < run.total_steps:
        tell(f"stopped after step {run.progress.step} of {run.total_steps} and saved; go on with:")
        tell(f"  {run.how_to_go_on}")
        return
    save_picture(directory.read_metrics(), directory.picture)
    save_report(run)
    tell(f"report        {directory.report}")
    tell(f"best weights  {directory.best}")
    tell(f"last weights  {directory.last}")
    example = "--context TEXT --question TEXT" if run.options.task == "qa" else "--prompt TEXT"
    tell(f"try them      python -m ftcore.generate --model {directory.best} {example}")


def dry_run(options: TrainOptions) -> int:
    """Say what a run would do, and leave nothing behind."""
    with TemporaryDirectory(prefix="ftcore-dry-run-") as place, cli_errors("ftcore.train"):
        if options.output:
            RunDirectory(Path(options.output)).require_free(overwrite=options.overwrite)
        run = prepare(replace(options, output=str(Path(place, "run")), overwrite=False))
        introduce(run)
        for line in estimate(run).lines():
            tell(line)
    return 0


def check(options: TrainOptions) -> int:
    """See whether what must hold of every run holds of this one; trains nothing and leaves nothing behind."""
    loop = Loop(train, take_step, accumulate_gradients, windows, generate)
    with TemporaryDirectory(prefix="ftcore-check-") as place:
        with cli_errors("ftcore.train"):
            run = prepare(replace(options, output=str(Path(place, "run")), overwrite=False))
        introduce(run)
        verdicts = []
        with cli_errors("ftcore.train", (OSError,), FAILED_RUN):
            for name, found in run_checks(run, loop, Path(place)):
                tell(f"\n{name}: {found}")
                verdicts.append(found.verdict)
    held = sum(verdict == HOLDS for verdict in verdicts)
    tell(f"\n{held} of {len(verdicts)} checks hold")
    return FAILED_RUN if FAILS in verdicts else 0


def options_of(argv: Sequence[str] | None) -> TrainOptions:
    """The command line's options; those of a run to resume come from its directory."""
    options = parse(TrainOptions, argv, command="ftcore.train")
    if not options.resume:
        return options
    with cli_errors("ftcore.train"):
        saved = RunDirectory.existing(options.output or "").config
    given: list[Any] = list(sys.argv[1:] if argv is None else argv)
    return parse(TrainOptions, ["--config", str(saved), *given], command="ftcore.train")


def main(argv: Sequence[str] | None = None) -> int:
    with first_speaks():
        options = options_of(argv)
        try:
            with cli_errors("ftcore.train"):
                parallel = join(options)
            if options.check or options.dry_run:
                return check(options) if options.check else dry_run(options)
            with cli_errors("ftcore.train"):
                run = prepare(options, parallel)
            with cli_errors("ftcore.train", (FloatingPointError, OSError), FAILED_RUN):
                run.parallel.on_first(lambda: introduce(run))
                with run.parallel.noticing_losses(run.situation):
                    train(run)
        except KeyboardInterrupt:  # while steps are taken, `Interrupt` answers it
            tell("interrupted; what was saved before is whole")
            return INTERRUPTED
        run.parallel.on_first(lambda: conclude(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
