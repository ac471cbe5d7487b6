"""Validation of a run: its metrics on a validation set, and which validation is the best."""

from collections.abc import Collection, Mapping

from ftcore.data import DataLoader, ExampleDataset
from ftcore.metrics import MetricError
from ftcore.output import did_you_mean
from ftcore.training.defaults import RunOptions
from ftcore.training.distributed import on_main, unsharded
from ftcore.training.run import Run
from ftcore.training.scoring import (
    Answer,
    answer_metrics,
    score_answers,
    score_continuations,
    score_loss,
    try_metrics,
)

LOWER_IS_BETTER = ("valid_loss", "perplexity")


def check_metrics(options: RunOptions, valid_sets: Mapping[str, ExampleDataset]) -> None:
    """Compute the metrics of a few gold answers, before the first step.

    Raises:
        ValueError: a metric fails or needs answers that there are not, or --best names none.
    """
    names: list[str] = []
    for name, dataset in valid_sets.items():
        of_answers = try_metrics(options.metrics, dataset.records) if options.eval_answers else []
        keys = ["valid_loss", "token_accuracy", "perplexity", *of_answers]
        names += [named_key(name, key) for key in keys]
    if options.best:
        find_best(options.best, names)


def score_set(run: Run, loader: DataLoader) -> tuple[dict[str, float], list[Answer]]:
    """Metrics of a validation set, and the answers that they are of.

    Without gold answers, these are a few continuations, to look at. A collective.

    Raises:
        MetricError: a metric failed.
    """
    options, dataset = run.options, loader.dataset
    score = score_loss(run.model, loader, run.autocast, run.compute_loss)
    metrics = {
        "valid_loss": score.loss,
        "token_accuracy": score.token_accuracy,
        "perplexity": score.perplexity,
    }
    model = unsharded(run.model)
    answers = score_answers(
        model,
        run.tokenizer,
        dataset,
        task=run.task,
        limit=options.eval_answers,
        batch_size=options.eval_batch_size,
        max_new_tokens=options.max_target_length,
        num_beams=options.num_beams,
    )
    if answers:
        metrics |= on_main(lambda: answer_metrics(answers, options.metrics))
    elif options.eval_answers:
        answers = score_continuations(model, run.tokenizer, dataset, count=4, max_new_tokens=32)
    return metrics, answers


def named_key(name: str, key: str) -> str:
    """The key of a validation set's metric: "dev/f1", or "f1" of the only, unnamed set."""
    return f"{name}/{key}" if name else key


def improved(run: Run, metrics: Mapping[str, float]) -> bool:
    """Whether a validation is the best so far, which is then recorded; of equal ones the first is.

    --best decides, by default the exact match; ties are broken by the loss of the first validation set.
    """
    first = next(iter(run.valid_loaders))
    if run.options.best:
        key, sign = find_best(run.options.best, metrics)
        value = sign * metrics[key]
    else:
        value = metrics.get(named_key(first, "exact_match"), 0.0)
    return run.is_best([value, -metrics[named_key(first, "valid_loss")]])


def find_best(best: str, keys: Collection[str]) -> tuple[str, int]:
    """The key that --best names, and 1 if higher values are better, else -1.

    Args:
        best: a key, or one without the name of a set, which means the first; with ":min" lower is better.
        keys: those of a validation.

    Raises:
        MetricError: there is no such key.
    """
    name, _, direction = best.partition(":")
    found = next((key for key in keys if name in (key, key.rpartition("/")[2])), None)
    if found is None or direction not in ("", "min"):
        hint = did_you_mean(name, keys)
        there = f"{hint} There" if hint else "; there"
        raise MetricError(
            f"`best` {best}: no such metric{there} are {', '.join(keys)}, and :min "
            "behind a metric that is better the lower it is"
        )
    return found, -1 if direction or found.rpartition("/")[2] in LOWER_IS_BETTER else 1
