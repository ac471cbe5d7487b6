"""Loss, accuracy and generated answers of a model on a data set.

Answers are compared as SQuAD 1.1 does for task qa, and as they are for every other task, see `comparison`.
They come from greedy or beam search, see `plain_search`: generation_config.json says how a checkpoint should
write, not how it is measured. Nothing here draws random numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ftcore.data import DataLoader, ExampleDataset, Task
from ftcore.data.tasks import as_task
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate_from_ids
from ftcore.decoding.arguments import SPECIAL_TOKENS, position_limit
from ftcore.decoding.state import eval_mode
from ftcore.metrics import exact_match, f1, normalize_answer
from ftcore.models import Model
from ftcore.models.non_finite import find_non_finite
from ftcore.training.distributed import (
    ComputeLoss,
    all_gather,
    all_gather_flat,
    all_reduce_sum,
    shard,
    unsharded,
)
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
    def scored(
        cls, source: str, prediction: str, references: tuple[str, ...], normalize: Callable[[str], str]
    ) -> "Answer":
        scores = (metric(prediction, references, normalize) for metric in (exact_match, f1))
        return cls(source, prediction, references, *scores)


def comparison(task: str | Task, tokenizer: Tokenizer) -> Callable[[str], str]:
    """The form in which the answers of a task are compared: SQuAD's for qa, else `as_written`."""
    return normalize_answer if as_task(task).name == "qa" else partial(as_written, tokenizer)


def as_written(tokenizer: Tokenizer, text: str) -> str:
    """`text` as the tokenizer writes it, without white space at the ends: encoded and decoded.

    GPT-2 and ByT5 write any text as it is. T5 writes Unicode form NFKC and single spaces: where a gold answer
    is "\ufb01n", a model can only answer "fin". A text with unknown characters or special tokens stays as it
    is: without them it could equal another one, or an empty answer.
    """
    ids = tokenizer.encode(text)
    written = tokenizer.decode(ids)
    is_lossless = tokenizer.unk_id not in ids and tokenizer.encode(written) == ids
    return (written if is_lossless else text).strip()


def named(metrics: Mapping[str, Any], task: str | Task) -> dict[str, Any]:
    """Metrics under printed names, which say where answers are compared as SQuAD does."""
    suffix = " (SQuAD)" if as_task(task).name == "qa" else ""
    return {name + suffix if name in ("exact_match", "f1") else name: metrics[name] for name in metrics}


def describe_answers(task: str | Task, *, num_beams: int, max_new_tokens: int) -> str:
    """How `score_answers` searches for answers and compares them, in a line."""
    how = "as in SQuAD 1.1" if as_task(task).name == "qa" else "exactly, as the tokenizer writes them"
    search = "greedy search" if num_beams == 1 else f"beam search with {num_beams} beams"
    return f"{search}, at most {max_new_tokens} tokens, compared {how}"


@contextmanager
def plain_search(model: Model) -> Iterator[None]:
    """Inside, the model's generation_config has no other settings than special tokens.

    It is not None, which would stand for the settings in an old checkpoint's config.json.

    Sampling and several answers have no place in a measurement, and constraints and penalties would measure
    the settings with the weights.
    """
    settings = model.generation_config
    model.generation_config = {
        name: value for name, value in (settings or {}).items() if name in SPECIAL_TOKENS
    }
    try:
        yield
    finally:
        model.generation_config = settings


def score_loss(
    model: Model,
    loader: DataLoader,
    autocast: Autocast = nullcontext,
    compute_loss: ComputeLoss | None = None,
) -> LossScore:
    """Loss and token accuracy over a loader, without dropout. A collective: each rank has its own rows.

    Args:
        compute_loss: by default `batch_loss` of the model; see `distributed.wrap`.

    Raises:
        FloatingPointError: the loss is not finite; the message names the first weight or module that is not.
    """
    compute_loss = compute_loss or partial(batch_loss, model)
    device = next(model.parameters()).device
    total, correct, tokens, failed = 0.0, 0, 0, None
    # not inference_mode: FSDP reuses these tensors in training
    with eval_mode(model), torch.no_grad(), autocast():
        for batch in loader:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            loss = compute_loss(batch)
            total += loss.total.item()
            failed = batch if failed is None and not math.isfinite(total) else failed
            correct += int(loss.correct)
            tokens += loss.tokens
        total = all_reduce_sum(total)
        if not math.isfinite(total):
            model = unsharded(model)
            cause = None if failed is None else find_non_finite(model, partial(batch_loss, model, failed))
            raise FloatingPointError(f"the loss is {total}: {next(filter(None, all_gather(cause)))}")
    correct, tokens = int(all_reduce_sum(correct)), int(all_reduce_sum(tokens))
    return LossScore(total / max(1, tokens), correct / max(1, tokens), tokens)


def score_answers(
    model: Model,
    tokenizer: Tokenizer,
    dataset: ExampleDataset,
    *,
    task: str | Task,
    max_new_tokens: int,
    num_beams: int = 1,
    limit: int | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Answer]:
    """Generate answers to the examples that have gold answers, and score them.

    A collective: each rank generates its share of the answers, with an unsharded model.

    Args:
        dataset: its sources are truncated as in training.
        task: of the dataset, see `comparison`.
        max_new_tokens: per answer; fewer where GPT-2's positions do not suffice for the longest source.
        num_beams: 1 for greedy search.
        limit: answer at most this many examples.
        batch_size, progress: those of `ftcore.decoding.generate_from_ids`.
    """
    indices = [index for index, record in enumerate(dataset.records) if record.references][:limit]
    sources = [dataset.source(index) for index in indices]
    with plain_search(model):
        predictions = generate_from_ids(
            model,
            tokenizer,
            shard(sources),
            batch_size=batch_size,
            progress=progress,
            max_new_tokens=_new_tokens(model, sources, max_new_tokens),
            num_beams=num_beams,
        )
    records, normalize = [dataset.records[index] for index in indices], comparison(task, tokenizer)
    return [
        Answer.scored(record.source, prediction, record.references, normalize)
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
    with plain_search(model):
        predictions = generate_from_ids(
            model,
            tokenizer,
            sources,
            batch_size=count,
            max_new_tokens=_new_tokens(model, sources, max_new_tokens),
        )
    return [
        Answer.scored(tokenizer.decode(source, False), prediction, (tokenizer.decode(target),), str.strip)
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
