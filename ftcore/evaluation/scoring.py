"""How good a model is: its loss on a data set, and the answers it writes."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ftcore.data import DataLoader, Examples
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate_from_ids
from ftcore.decoding.arguments import position_limit
from ftcore.evaluation.metrics import exact_match, f1
from ftcore.models import Model
from ftcore.training.loss import batch_loss
from ftcore.training.precision import Autocast


@dataclass(frozen=True)
class LossScore:
    """Means over all target tokens of a data set, however they were batched."""

    loss: float  # nats a token
    token_accuracy: float  # share of tokens that are the model's first guess, 0 to 1
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class Answer:
    """What the model wrote beside what it should have written."""

    source: str
    prediction: str
    references: tuple[str, ...]
    exact_match: float
    f1: float


def score_loss(model: Model, loader: DataLoader, autocast: Autocast = nullcontext) -> LossScore:
    """Loss and token accuracy of a model over a loader, without dropout."""
    device = next(model.parameters()).device
    total, correct, tokens = 0.0, 0, 0
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast():
        for batch in loader:
            loss = batch_loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
            total += loss.total.item()
            correct += int(loss.correct)
            tokens += loss.tokens
    model.train(was_training)
    return LossScore(total / max(1, tokens), correct / max(1, tokens), tokens)


def score_answers(
    model: Model,
    tokenizer: Tokenizer,
    dataset: Examples,
    *,
    max_new_tokens: int,
    limit: int | None = None,
    batch_size: int = 16,
    progress: bool = False,
    **options: Any,
) -> list[Answer]:
    """Let the model answer the examples that have gold answers, and score what it writes.

    Args:
        dataset: the sources are its examples', cut as in training.
        max_new_tokens: of an answer; fewer where GPT-2 has no positions for them behind the longest source.
        limit: answer no more than this many examples.
        batch_size, progress, options: those of `ftcore.decoding.generate_from_ids`.
    """
    asked = [index for index, record in enumerate(dataset.records) if record.references][:limit]
    sources = [dataset.source(index) for index in asked]
    positions = position_limit(model)
    if positions is not None and sources:
        max_new_tokens = min(max_new_tokens, positions - max(map(len, sources)))
    written = generate_from_ids(
        model,
        tokenizer,
        sources,
        batch_size=batch_size,
        progress=progress,
        max_new_tokens=max_new_tokens,
        **options,
    )
    answers = []
    for index, prediction in zip(asked, written, strict=True):
        record = dataset.records[index]
        scores = exact_match(prediction, record.references), f1(prediction, record.references)
        answers.append(Answer(record.source, prediction, record.references, *scores))
    return answers


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
