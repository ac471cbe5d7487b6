"""Loss, accuracy and generated answers of a model on a data set."""

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
from ftcore.decoding.state import eval_mode
from ftcore.metrics import exact_match, f1
from ftcore.models import Model
from ftcore.training.distributed import ComputeLoss, all_gather_flat, all_reduce_sum, shard
from ftcore.training.loss import batch_loss
from ftcore.training.optim import Autocast

_PROMPT_TOKENS = 16  # of a running text, for `score_continuations`


@dataclass(frozen=True)
class LossScore:
    """Means over all target tokens of a data set, independent of the batch size."""

    loss: float  # nats per token
    token_accuracy: float  # share of tokens whose most likely prediction is the label, 0 to 1
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class Answer:
    """A generated answer, the gold answers and the scores against them."""

    source: str
    prediction: str
    references: tuple[str, ...]
    exact_match: float
    f1: float

    @classmethod
    def scored(cls, source: str, prediction: str, references: tuple[str, ...]) -> "Answer":
        return cls(
            source, prediction, references, exact_match(prediction, references), f1(prediction, references)
        )


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
    # not inference_mode: FSDP reuses these tensors in training
    with eval_mode(model), torch.no_grad(), autocast():
        for batch in loader:
            loss = compute_loss({name: tensor.to(device) for name, tensor in batch.items()})
            total += loss.total.item()
            correct += int(loss.correct)
            tokens += loss.tokens
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
    """Generate answers to the examples that have gold answers, and score them.

    A collective: each rank generates its share of the answers, with an unsharded model.

    Args:
        dataset: its sources are truncated as in training.
        max_new_tokens: per answer; fewer where GPT-2's positions do not suffice for the longest source.
        limit: answer at most this many examples.
        batch_size, progress, options: those of `ftcore.decoding.generate_from_ids`.
    """
    indices = [index for index, record in enumerate(dataset.records) if record.references][:limit]
    sources = [dataset.source(index) for index in indices]
    predictions = generate_from_ids(
        model,
        tokenizer,
        shard(sources),
        batch_size=batch_size,
        progress=progress,
        max_new_tokens=_new_tokens(model, sources, max_new_tokens),
        **options,
    )
    records = [dataset.records[index] for index in indices]
    return [
        Answer.scored(record.source, prediction, record.references)
        for record, prediction in zip(records, all_gather_flat(predictions), strict=True)
    ]


def score_continuations(
    model: Model, tokenizer: Tokenizer, dataset: ExampleDataset, *, count: int, max_new_tokens: int
) -> list[Answer]:
    """Greedy continuations for `count` examples spread over a data set without gold answers.

    GPT-2 continues the first tokens of a text, T5 fills the gaps of a corrupted one.
    """
    chosen = range(0, len(dataset), max(1, len(dataset) // count))[:count]
    examples = [dataset[index] for index in chosen]
    sources = [example["input_ids"] for example in examples]
    targets = [example["labels"] for example in examples]
    if dataset.decoder_only:
        starts = [min(_PROMPT_TOKENS, -(-len(text) // 2)) for text in sources]
        targets = [text[start:][:max_new_tokens] for text, start in zip(sources, starts, strict=True)]
        sources = [text[:start] for text, start in zip(sources, starts, strict=True)]
    predictions = generate_from_ids(
        model,
        tokenizer,
        sources,
        batch_size=count,
        max_new_tokens=_new_tokens(model, sources, max_new_tokens),
    )
    return [
        Answer.scored(tokenizer.decode(source, False), prediction, (tokenizer.decode(target),))
        for source, prediction, target in zip(sources, predictions, targets, strict=True)
    ]


def _new_tokens(model: Model, sources: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """`max_new_tokens`, reduced to the positions that GPT-2 has left after the longest source."""
    positions = position_limit(model)
    if positions is None or not sources:
        return max_new_tokens
    return min(max_new_tokens, positions - max(map(len, sources)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
