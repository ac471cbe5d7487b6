"""What a run prints."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ftcore.cli import FAILED_RUN, cli_errors, log
from ftcore.training.check_result import FAILS, HOLDS
from ftcore.training.checks import Loop, run_checks
from ftcore.training.distributed import world_size
from ftcore.training.estimate import estimate
from ftcore.training.options import TrainOptions
from ftcore.training.picture import save_picture
from ftcore.training.preview import preview
from ftcore.training.report import save_report
from ftcore.training.run_directory import RunDirectory
from ftcore.training.scoring import Answer
from ftcore.training.setup import Run

Prepare = Callable[[TrainOptions], Run]


def print_answers(answers: Sequence[Answer], count: int = 2) -> None:
    """Some of the model's answers beside the gold ones, the same ones each time."""
    for answer in answers[:: max(1, len(answers) // count)][:count]:
        source = " ".join(answer.source.split())
        log(f"  {source if len(source) < 90 else source[:87] + '...'}")
        log(f"    answer: {answer.prediction!r}   gold: {' | '.join(answer.references)!r}")


def print_summary(run: Run) -> None:
    """What this run will do, before it does it."""
    options, model = run.options, run.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log(f"model      {options.model} ({model.config.architecture}, {parameters:,} parameters, {run.device})")
    if run.resized and run.resized.keys and run.progress.step == 0:
        changed = [f"{key} {old} -> {new}" for key, (old, new) in run.resized.keys.items()]
        log(f"changed    {', '.join(changed)}")
        for fate, modules in run.resized.parameters.items():
            log(f"  {fate:<9}{', '.join(modules)}")
    if trained < parameters:
        log(f"trained    {trained:,} parameters, {trained / parameters:.1%}; the others are frozen")
    train, valid = len(run.train_loader.batch_sampler.lengths), len(run.valid_loader.batch_sampler.lengths)
    log(f"task       {options.task}: {train:,} examples to train on, {valid:,} to validate on")
    log(
        f"steps      {run.total_steps:,} of {options.batch_size} x {options.grad_accum} examples, "
        f"learning rate {options.lr:g} {options.schedule}, {options.precision}"
    )
    if run.strategy:
        log(f"processes  {world_size()}, {run.strategy}")
    look = preview(run.train_loader, model, run.tokenizer)
    for line in look.lines(bars=options.dry_run):
        log(line)
    if not options.check and not options.dry_run:
        log(f"directory  {run.directory.path}")


def print_results(run: Run) -> None:
    """Where the results are and how to go on."""
    directory = run.directory
    if run.progress.step < run.total_steps:
        log(f"stopped after step {run.progress.step} of {run.total_steps} and saved; go on with:")
        log(f"  {run.resume_command}")
        return
    save_picture(directory.read_metrics(), directory.picture)
    save_report(run)
    log(f"report        {directory.report}")
    log(f"best weights  {directory.best}")
    log(f"last weights  {directory.last}")
    example = "--context TEXT --question TEXT" if run.options.task == "qa" else "--prompt TEXT"
    log(f"try them      python -m ftcore.generate --model {directory.best} {example}")


def dry_run(options: TrainOptions, prepare: Prepare) -> int:
    """Say what a run would do, and leave nothing behind."""
    with TemporaryDirectory(prefix="ftcore-dry-run-") as place, cli_errors("ftcore.train"):
        if options.output:
            RunDirectory(Path(options.output)).require_free(overwrite=options.overwrite)
        run = prepare(replace(options, output=str(Path(place, "run")), overwrite=False))
        print_summary(run)
        for line in estimate(run).lines():
            log(line)
    return 0


def check(options: TrainOptions, prepare: Prepare, loop: Loop) -> int:
    """See whether what must hold of every run holds of this one; trains nothing and leaves nothing behind."""
    with TemporaryDirectory(prefix="ftcore-check-") as place:
        with cli_errors("ftcore.train"):
            run = prepare(replace(options, output=str(Path(place, "run")), overwrite=False))
        print_summary(run)
        verdicts = []
        with cli_errors("ftcore.train", (OSError,), FAILED_RUN):
            for name, found in run_checks(run, loop, Path(place)):
                log(f"\n{name}: {found}")
                verdicts.append(found.verdict)
    held = sum(verdict == HOLDS for verdict in verdicts)
    log(f"\n{held} of {len(verdicts)} checks hold")
    return FAILED_RUN if FAILS in verdicts else 0
