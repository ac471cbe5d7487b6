"""Console output of `python -m ftcore.train`, and its --dry-run and --check.

What a run needs once, or only on request, is imported where it is used.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from ftcore.decoding.prompts import example_arguments
from ftcore.output import FAILED_RUN, cli_errors, flag, log, printable
from ftcore.training.defaults import model_defaults
from ftcore.training.distributed import world_size
from ftcore.training.options import TrainOptions
from ftcore.training.preview import preview
from ftcore.training.run import Run
from ftcore.training.run_directory import RunDirectory
from ftcore.training.scoring import Answer, count_answers, describe_answers, is_squad2, named

Prepare = Callable[[TrainOptions], Run]


def print_summary(run: Run) -> None:
    """Print model, data and settings before the first step."""
    options, model = run.options, run.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log(f"model      {options.model} ({model.config.architecture}, {parameters:,} parameters, {run.device})")
    if run.resized and run.resized.keys and run.progress.step == 0:
        changed = [f"{key} {old} -> {new}" for key, (old, new) in run.resized.keys.items()]
        log(f"changed    {', '.join(changed)}")
        for origin, modules in run.resized.parameters.items():
            log(f"  {origin:<9}{', '.join(modules)}")
    if trained < parameters:
        log(f"trained    {trained:,} parameters, {trained / parameters:.1%}; the others are frozen")
    valid_sets = {name: loader.dataset for name, loader in run.valid_loaders.items()}
    sizes = ", ".join(f"{len(dataset):,} for {name or 'validation'}" for name, dataset in valid_sets.items())
    log(f"task       {options.task}: {len(run.train_loader.dataset):,} examples for training, {sizes}")
    log(
        f"steps      {run.total_steps:,} of {options.batch_size} x {options.grad_accum} examples, "
        f"learning rate {options.lr:g} {options.schedule}, {options.precision}"
    )
    tuned = model_defaults(options.model).items()
    if words := [f"{flag(name)} {value}" for name, value in tuned if getattr(options, name) == value]:
        log(f"defaults   of this model: {' '.join(words)}".replace(" True", ""))
    if answers := sum(min(options.eval_answers, count_answers(dataset)) for dataset in valid_sets.values()):
        how = describe_answers(
            options.task,
            num_beams=options.num_beams,
            max_new_tokens=options.max_target_length,
            squad2=any(is_squad2(run.task, dataset) for dataset in valid_sets.values()),
        )
        log(f"answers    {answers:,} in each validation: {how}")
    if run.strategy:
        log(f"processes  {world_size()}, {run.strategy}")
    for line in preview(run.train_loader, model, run.tokenizer).lines(histograms=options.dry_run):
        log(line)
    if not options.check and not options.dry_run:
        log(f"directory  {run.directory.path}")


def print_validation(run: Run, name: str, metrics: Mapping[str, float], answers: Sequence[Answer]) -> None:
    """Print a validation set's metrics and two answers with the gold answers, always to the same examples."""
    for answer in answers[:: max(1, len(answers) // 2)][:2]:
        source = printable(" ".join(answer.source.split()))
        log(f"  {source if len(source) <= 78 else source[:75] + '...'}")
        log(f"    answer: {answer.prediction!r}   gold: {' | '.join(answer.references)!r}")
    shown = ", ".join(f"{key} {value:.4g}" for key, value in named(metrics, run.options.task).items())
    log(f"step {run.progress.step}{', ' if name else ''}{name}: {shown}")


def print_results(run: Run) -> None:
    """Of a finished run, save curves and report and print where the results are.

    Of a run that was stopped, print why and the command that resumes it.
    """
    directory = run.directory
    if run.progress.step < run.total_steps:
        print_stop(run)
    if not run.is_finished:
        return
    from ftcore.training.curves import save_curves
    from ftcore.training.report import save_report

    lines = [named(line, run.options.task) for line in directory.metrics_log.read()]
    save_curves(lines, directory.picture)
    save_report(run)
    log(f"report        {directory.report}")
    log(f"best weights  {directory.best}")
    log(f"last weights  {directory.last}")
    first = next(iter(run.valid_loaders.values()))
    example = example_arguments(run.task, first.dataset, run.tokenizer)
    command = ["python", "-m", "ftcore.generate", "--model", str(directory.best), *example]
    log(f"try them      {shlex.join(command)}")


def print_stop(run: Run) -> None:
    """Print why the run ended before its last step and the command that resumes it."""
    step, best_step, command = run.progress.step, run.progress.best_step, run.resume_command
    reason = run.early_stop or run.stop_reason
    if run.early_stop:
        for line in run.directory.metrics_log.read():
            if line["step"] == best_step and "train_loss" not in line:
                scores = {name: line[name] for name in line if name not in ("step", "epoch")}
                shown = named(scores, run.options.task).items()
                log(
                    f"best/ is step {best_step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown)
                )
        command += f" --early-stopping {2 * run.options.early_stopping}"
    because = f": {reason}" if reason else ""
    how = " a larger --early-stopping, or 0 for all steps" if run.early_stop else ""
    log(f"stopped after step {step} of {run.total_steps} and saved{because}; resume with{how}:\n  {command}")


def dry_run(options: TrainOptions, prepare: Prepare) -> int:
    """Print the summary, memory and time of a run without training; leaves no files."""
    from ftcore.training.estimate import estimate

    with TemporaryDirectory(prefix="ftcore-dry-run-") as directory, cli_errors("ftcore.train"):
        if options.output:
            RunDirectory(Path(options.output)).require_free(overwrite=options.overwrite)
        run = prepare(_with_output(options, directory))
        print_summary(run)
        for line in estimate(run).lines():
            log(line)
    return 0


def check(options: TrainOptions, loop: ModuleType) -> int:
    """Run all checks and print their results; leaves no files. Returns the exit status.

    Args:
        loop: the module of train.py, whose functions are under test.
    """
    from ftcore.training.checks import FAILS, HOLDS, run_checks

    with TemporaryDirectory(prefix="ftcore-check-") as directory:
        with cli_errors("ftcore.train"):
            run = loop.prepare(_with_output(options, directory))
        print_summary(run)
        verdicts = []
        with cli_errors("ftcore.train", (OSError,), FAILED_RUN):
            for name, result in run_checks(run, loop):
                log(f"\n{name}: {result}")
                verdicts.append(result.verdict)
    log(f"\n{verdicts.count(HOLDS)} of {len(verdicts)} checks hold")
    return FAILED_RUN if FAILS in verdicts else 0


def _with_output(options: TrainOptions, directory: str) -> TrainOptions:
    return replace(options, output=str(Path(directory, "run")), overwrite=False)
