"""Loss, accuracy and generated answers of a model on a data set.

Answers are compared as SQuAD does for task qa, and as they are for every other task, see `comparison`.
They come from greedy or beam search, see `plain_search`: generation_config.json says how a checkpoint should
write, not how it is measured. Nothing here draws random numbers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from ftcore.data import DataLoader, ExampleDataset, Record, Task
from ftcore.data.tasks import as_task
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate_from_ids
from ftcore.decoding.arguments import SPECIAL_TOKENS, position_limit
from ftcore.decoding.state import eval_mode
from ftcore.metrics import (
    DEFAULT_METRICS,
    MetricError,
    compute,
    exact_match,
    f1,
    metric_names,
    normalize_answer,
    squad2_references,
)
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
        """e to the loss; infinite where that is too large for a float."""
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
        cls,
        source: str,
        prediction: str,
        references: tuple[str, ...],
        normalize: Callable[[str], str],
        *,
        squad2: bool = False,
    ) -> "Answer":
        """The scores follow SQuAD 2.0 where `squad2`: see `squad2_references`."""
        gold = squad2_references(references, normalize) if squad2 else references
        scores = (metric(prediction, gold, normalize) for metric in (exact_match, f1))
        return cls(source, prediction, references, *scores)


def comparison(task: str | Task, tokenizer: Tokenizer) -> Callable[[str], str]:
    """The form in which the answers of a task are compared: SQuAD's for qa, else `as_written`."""
    task = as_task(task)
    if task.name != "qa":
        return partial(as_written, tokenizer)
    none = normalize_answer(task.no_answer)

    def in_squad(text: str) -> str:
        """The text that stands for no answer becomes an empty one."""
        answer = normalize_answer(text)
        return "" if answer == none else answer

    return in_squad


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
    return {
        key + suffix if key.rpartition("/")[2] in DEFAULT_METRICS else key: value
        for key, value in metrics.items()
    }


def describe_answers(task: str | Task, *, num_beams: int, max_new_tokens: int, squad2: bool = False) -> str:
    """How `score_answers` searches for answers and compares them, in a line."""
    squad = f"as in SQuAD {'2.0' if squad2 else '1.1'}"
    how = squad if as_task(task).name == "qa" else "exactly, as the tokenizer writes them"
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
        autocast: context of the forward passes, see `optim.autocast`.
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
            loss = compute_loss(batch, 0.0)
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


def count_answers(dataset: ExampleDataset) -> int:
    """How many examples have gold answers."""
    return sum(bool(record.references) for record in dataset.records)


def is_squad2(task: str | Task, dataset: ExampleDataset) -> bool:
    """Whether some questions have no answer, so that all are scored as in SQuAD 2.0."""
    task = as_task(task)
    return task.name == "qa" and any(record.references == (task.no_answer,) for record in dataset.records)


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
    squad2 = is_squad2(task, dataset)
    return [
        Answer.scored(record.source, prediction, record.references, normalize, squad2=squad2)
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
    """The arithmetic mean; 0 of no values."""
    return sum(values) / max(1, len(values))


def answer_metrics(answers: Sequence[Answer], metrics: Sequence[str] | None) -> dict[str, float]:
    """Values of --metrics by their keys in metrics.jsonl; none without answers.

    Raises:
        MetricError: a user's metric fails, see `compute`, or two metrics have the same key.
    """
    predictions = [answer.prediction for answer in answers]
    references = [answer.references for answer in answers]
    values: dict[str, float] = {}
    for name in metric_names(metrics) if answers else ():
        if name in DEFAULT_METRICS:
            found = {name: mean([getattr(answer, name) for answer in answers])}
        else:
            found = compute(name, predictions, references)
        for key in found.keys() & values.keys():
            raise MetricError(f"`metrics` {name}: another metric has the name {key!r} too")
        values |= found
    return values


def try_metrics(metrics: Sequence[str] | None, records: Iterable[Record]) -> list[str]:
    """The keys of --metrics, which are computed of a few gold answers for their errors before a long run.

    Raises:
        ValueError: a metric fails, its package is not installed, or it needs gold answers and there are none.
    """
    gold = list(islice((record for record in records if record.references), 4))
    if metrics and not gold:
        raise ValueError(
            f"`metrics` {' '.join(metrics)}: the examples have no gold answers, which these metrics need "
            "(plain text has none, nor has task emotion for GPT-2, which learns the text)"
        )
    answers = [Answer(record.source, record.references[0], record.references, 1.0, 1.0) for record in gold]
    return list(answer_metrics(answers, metrics))


def no_answer_metrics(answers: Sequence[Answer], task: str | Task) -> dict[str, float]:
    """Exact match, F1 and number of questions with and without an answer, named as by SQuAD 2.0's script."""
    none = (as_task(task).no_answer,)
    values: dict[str, float] = {}
    for name, has_answer in (("HasAns", True), ("NoAns", False)):
        group = [answer for answer in answers if (answer.references != none) == has_answer]
        values[f"{name}_exact"] = mean([answer.exact_match for answer in group])
        values[f"{name}_f1"] = mean([answer.f1 for answer in group])
        values[f"{name}_total"] = len(group)
    return values
