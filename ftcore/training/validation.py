"""Validation of a run: its metrics on a validation set, and which validation is the best."""

from collections.abc import Mapping

from ftcore.data import DataLoader
from ftcore.training.distributed import unsharded
from ftcore.training.scoring import Answer, mean, score_answers, score_continuations, score_loss
from ftcore.training.setup import Run


def score_set(run: Run, loader: DataLoader) -> tuple[dict[str, float], list[Answer]]:
    """Metrics of a validation set, and the answers that they are of.

    Without gold answers, a few continuations for the eye. A collective.
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
        task=options.task,
        limit=options.eval_answers,
        batch_size=options.eval_batch_size,
        max_new_tokens=options.max_target_length,
        num_beams=options.num_beams,
    )
    if answers:
        metrics["exact_match"] = mean([answer.exact_match for answer in answers])
        metrics["f1"] = mean([answer.f1 for answer in answers])
    elif options.eval_answers:
        answers = score_continuations(model, run.tokenizer, dataset, count=4, max_new_tokens=32)
    return metrics, answers


def improved(run: Run, metrics: Mapping[str, float]) -> bool:
    """Whether a validation is the best so far, which is then recorded; of equal ones the first is.

    The first validation set decides: by exact match, then by loss.
    """
    name = next(iter(run.valid_loaders))
    prefix = f"{name}/" if name else ""
    quality = [metrics.get(f"{prefix}exact_match", 0.0), -metrics[f"{prefix}valid_loss"]]
    if run.progress.best is not None and quality <= run.progress.best:
        return False
    run.progress.best = quality
    return True
