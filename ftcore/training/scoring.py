"""How good a model is: its loss on a data set, and the answers it writes."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ftcore.data import DataLoader, ExampleDataset
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate_from_ids
from ftcore.decoding.arguments import position_limit
from ftcore.metrics import exact_match, f1
from ftcore.models import Model
from ftcore.training.distributed import ComputeLoss, all_gather_flat, all_reduce_sum, shard
from ftcore.training.loss import batch_loss
from ftcore.training.optim import Autocast


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


def score_loss(
    model: Model,
    loader: DataLoader,
    autocast: Autocast = nullcontext,
    compute_loss: ComputeLoss | None = None,
) -> LossScore:
    """Loss and token accuracy over a loader, without dropout. A collective: each rank has its own rows.

    Args:
        compute_loss: by default `batch_loss` of the model; see `distributed.wrap`.
    """
    compute_loss = compute_loss or partial(batch_loss, model)
    device = next(model.parameters()).device
    total, correct, tokens = 0.0, 0, 0
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast():  # no inference mode: FSDP fills the same tensors again in training
        for batch in loader:
            loss = compute_loss({name: tensor.to(device) for name, tensor in batch.items()})
            total += loss.total.item()
            correct += int(loss.correct)
            tokens += loss.tokens
    model.train(was_training)
    total, correct, tokens = all_reduce_sum(total), int(all_reduce_sum(correct)), int(all_reduce_sum(tokens))
    return LossScore(total / max(1, tokens), correct / max(1, tokens), tokens)


def score_answers(
    model: Model,
    tokenizer: Tokenizer,
    dataset: ExampleDataset,
    *,
    max_new_tokens: int,
    limit: int | None = None,
    batch_size: int = 16,
    progress: bool = False,
    **options: Any,
) -> list[Answer]:
    """Let the model answer the examples that have gold answers, and score what it writes.

    A collective: each rank generates some of the answers, with a model that is not sharded.

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
        shard(sources),
        batch_size=batch_size,
        progress=progress,
        max_new_tokens=max_new_tokens,
        **options,
    )
    answers = []
    for index, prediction in zip(asked, all_gather_flat(written), strict=True):
        record = dataset.records[index]
        scores = exact_match(prediction, record.references), f1(prediction, record.references)
        answers.append(Answer(record.source, prediction, record.references, *scores))
    return answers


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
