"""Statistics of a run's data before its first step.

They show the silent errors of fine-tuning: truncated answers, characters missing from the vocabulary, targets
without an end token, batches that are mostly padding, labels shifted twice.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ftcore.data import CausalLMDataset, DataLoader, ExampleDataset, SpanCorruption
from ftcore.data.corpus import END_OF_DOCUMENT, is_plain_text, read_documents
from ftcore.data.tokenizer import IGNORED_LABEL, Tokenizer
from ftcore.models import Model, T5ForConditionalGeneration
from ftcore.training.loss import target_labels

SAMPLE = 500  # random examples whose texts are read; lengths and padding are those of all examples
_MAX_CHARACTERS = 200_000  # of these texts
_EXCERPT = 2000  # bytes of a corpus read per sampled example
_BINS, _BAR = 8, 40  # histogram: bins, and characters of the longest bar
_LINE, _POSITIONS = 110, 10  # aligned example: characters per line, labels


@dataclass(frozen=True)
class Lengths:
    """Distribution of the examples' lengths in tokens."""

    side: str  # "source" or "target"; "text" for GPT-2, which has both in one sequence
    values: np.ndarray  # (examples,)

    def percentile(self, percent: int) -> int:
        """The smallest length that at least this share of the examples does not exceed."""
        return int(np.percentile(self.values, percent, method="inverted_cdf"))

    def summary(self) -> str:
        """Range, median and 95th percentile in words."""
        first, last = self.values.min(), self.values.max()
        if first == last:
            return f"{last} tokens each"
        median, p95 = self.percentile(50), self.percentile(95)
        return f"{first} to {last} tokens, median {median}, 95th percentile {p95}"

    def bins(self) -> list[tuple[int, int, int]]:
        """(first, last, examples) of each bin of a histogram."""
        first, last = int(self.values.min()), int(self.values.max())
        width = -(-(last + 1 - first) // _BINS)
        counts = np.bincount((self.values - first) // width).tolist()
        starts = range(first, last + 1, width)
        return [
            (start, min(start + width - 1, last), count) for start, count in zip(starts, counts, strict=True)
        ]

    def histogram(self) -> list[str]:
        """One line per bin."""
        bins = self.bins()
        most, digits = max(count for *_, count in bins), len(str(self.values.max()))
        lines = []
        for first, last, count in bins:
            span = f"{first:{digits}} - {last:<{digits}}" if last > first else f"{first:<{2 * digits + 3}}"
            lines.append(f"  {span}  {'#' * -(-count * _BAR // most):{_BAR}}  {count:,}")
        return lines


@dataclass(frozen=True)
class RoundTrip:
    """Texts after encoding and decoding."""

    texts: int
    tokens: int
    unknown: int | None  # tokens outside of the vocabulary; None for byte-level vocabularies
    changed: int  # texts with other characters than before
    respaced: int  # texts with other white space, but the same characters
    lost: list[tuple[str, int]]  # characters that are lost, and how often, the most frequent first

    def lines(self) -> list[str]:
        """Two lines: unknown tokens, and changed texts; none without texts."""
        if not self.texts:
            return []
        unknown = "none: the vocabulary covers every text"
        if self.unknown is not None:
            share = self.unknown / max(1, self.tokens)
            unknown = f"{share:.2%} of {self.tokens:,} tokens in {self.texts:,} texts"
        changes = []
        if self.changed:
            lost = ", ".join(f"{character!r} ({count:,})" for character, count in self.lost[:4])
            share = self.changed / self.texts
            changes.append(
                f"{self.changed:,} of {self.texts:,} texts ({share:.1%}) change"
                + (f", losing {lost}" if lost else "")
            )
        if self.respaced:
            changes.append(f"white space changes in {self.respaced:,} of {self.texts:,} texts")
        unchanged = f"{self.texts:,} texts are the same after encoding and decoding"
        return [f"unknown    {unknown}", f"round trip {'; '.join(changes) or unchanged}"]


@dataclass(frozen=True)
class Alignment:
    """The first example as the loss sees it: input tokens and the label of each position."""

    source: str | None  # the encoder's input; None for GPT-2
    start: int  # first position shown
    inputs: list[str]
    labels: list[str | None]  # None where the loss ignores the position
    length: int  # number of all positions

    def lines(self) -> list[str]:
        """Inputs above labels, position by position."""
        lines = ["example    number 1: input tokens and the label of each position"]
        if self.source is not None:
            lines.append(_shortened(f"  encoder  {self.source!r}"))
        inputs = [repr(token) for token in self.inputs]
        labels = ["-" if token is None else repr(token) for token in self.labels]
        widths = [max(map(len, pair)) for pair in zip(inputs, labels, strict=True)]
        is_cut = self.start + len(inputs) < self.length
        for name, cells in (("inputs" if self.source is None else "decoder", inputs), ("labels", labels)):
            row = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
            lines.append(_shortened(f"  {name:<9}{'... ' if self.start else ''}{row}", always=is_cut))
        return lines


@dataclass(frozen=True)
class Preview:
    """Statistics of a training set; `lines` formats them."""

    examples: int
    lengths: list[Lengths]
    truncated: dict[str, int]  # records with a truncated source, target
    padding: dict[str, float]  # share of padding positions in an epoch's batches, by stack
    round_trip: RoundTrip
    sampled: int  # examples that were read
    ended: int  # those whose target ends with the end token; of blocks, those that contain one
    is_blocks: bool  # the examples are blocks of a corpus, which end anywhere
    alignment: Alignment

    def lines(self, *, histograms: bool = True) -> list[str]:
        """Lines of text for the console."""
        lines = []
        for lengths in self.lengths:
            lines.append(f"{lengths.side:<11}{lengths.summary()}")
            lines += lengths.histogram() if histograms else []
        truncated = [
            f"{count:,} of {self.examples:,} {side}s ({count / self.examples:.1%})"
            for side, count in self.truncated.items()
            if count
        ]
        padding = [f"{share:.1%} of {where}" for where, share in self.padding.items()]
        if self.is_blocks:
            ended = f"{self.ended:,} of {self.sampled:,} blocks contain the end of a document"
        elif self.ended == self.sampled:
            ended = f"all of {self.sampled:,} targets end with the end token"
        else:
            ended = f"{self.sampled - self.ended:,} of {self.sampled:,} targets lack the end token: truncated"
        return [
            *lines,
            f"truncated  {', '.join(truncated) or 'none'}",
            f"padding    {', '.join(padding)}",
            *self.round_trip.lines(),
            f"end        {ended}",
            *self.alignment.lines(),
        ]


def preview(loader: DataLoader, model: Model, tokenizer: Tokenizer) -> Preview:
    """Examine the examples of a training loader.

    Neither torch's random state nor the loader's position changes.
    """
    dataset = loader.dataset
    sides = ["text"] if dataset.decoder_only else ["source", "target"]
    stacks = ["all positions"] if dataset.decoder_only else ["the encoder's positions", "the decoder's"]
    sample = random.Random(0).sample(range(len(dataset)), min(SAMPLE, len(dataset)))
    is_blocks = isinstance(dataset, CausalLMDataset)
    targets = [dataset[index]["labels"] for index in sample]
    return Preview(
        examples=len(dataset),
        lengths=[Lengths(side, column) for side, column in zip(sides, dataset.lengths.T, strict=False)],
        truncated={"source": dataset.truncated_sources, "target": dataset.truncated_targets},
        padding={stack: padding_share(loader, side) for side, stack in enumerate(stacks)},
        round_trip=round_trip(_texts(dataset, sample), tokenizer),
        sampled=len(sample),
        ended=sum(tokenizer.eos_id in (target if is_blocks else target[-1:]) for target in targets),
        is_blocks=is_blocks,
        alignment=align(dataset, model, tokenizer),
    )


def padding_share(loader: DataLoader, side: int) -> float:
    """Share of padding in an epoch's batches, in the inputs (side 0) or the labels (side 1)."""
    rows, widths = loader.shapes()[:, [0, 1 + side]].T
    return 1 - int(loader.batch_sampler.lengths[:, side].sum(dtype=np.int64)) / int((rows * widths).sum())


def round_trip(texts: Iterator[str], tokenizer: Tokenizer) -> RoundTrip:
    """Encode and decode the first texts, up to a few hundred thousand characters."""
    count = characters = tokens = unknown = changed = respaced = 0
    lost: Counter[str] = Counter()
    for text in texts:
        if characters >= _MAX_CHARACTERS:
            break
        count, characters = count + 1, characters + len(text)
        ids = tokenizer.encode(text)
        ids = ids[:-1] if ids[-1:] == [tokenizer.eos_id] else ids  # T5's tokenizer appends it
        tokens, unknown = tokens + len(ids), unknown + sum(one == tokenizer.unk_id for one in ids)
        decoded = tokenizer.decode(ids)
        if decoded == text:
            continue
        before, after = "".join(text.split()), "".join(decoded.split())
        changed, respaced = changed + (before != after), respaced + (before == after)
        lost += Counter(before) - Counter(after)
    # GPT-2's byte-level vocabulary has no unknown token: its unk_id is the end token.
    has_unknown = tokenizer.unk_id not in (None, tokenizer.eos_id)
    return RoundTrip(count, tokens, unknown if has_unknown else None, changed, respaced, lost.most_common())


def align(dataset: ExampleDataset, model: Model, tokenizer: Tokenizer) -> Alignment:
    """The first example's inputs and labels, from the same functions that the loss uses."""
    example = dataset[0]
    batch = {name: torch.tensor([example[name]]) for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    labels = target_labels(model, batch)
    if isinstance(model, T5ForConditionalGeneration):
        source, inputs = tokenizer.decode(example["input_ids"], False), model.shift_right(labels)
    else:
        source, inputs = None, batch["input_ids"][:, :-1]
    labeled = (labels[0] != IGNORED_LABEL).nonzero().flatten().tolist() or [0]
    shown = slice(max(0, labeled[0] - 2), labeled[0] + _POSITIONS)
    label_row, input_row = labels[0, : shown.stop].tolist(), inputs[0, : shown.stop].tolist()
    names = _pieces([label for label in label_row if label != IGNORED_LABEL], tokenizer)
    return Alignment(
        source=source,
        start=shown.start,
        inputs=list(_pieces(input_row, tokenizer))[shown],
        labels=[None if label == IGNORED_LABEL else next(names) for label in label_row][shown],
        length=labels.shape[1],
    )


def _shortened(line: str, *, always: bool = False) -> str:
    return line[: _LINE - 3] + "..." if always or len(line) > _LINE else line


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each id in context, with the space before it that some tokenizers drop at the start."""
    text = ""
    for end, one in enumerate(ids, start=1):
        longer = tokenizer.decode(ids[:end], skip_special_tokens=False)
        is_whole = longer.startswith(text) and longer != text  # false within a multi-token character
        yield longer[len(text) :] if is_whole else tokenizer.decode([one], skip_special_tokens=False)
        text = longer


def _texts(dataset: ExampleDataset, sample: Sequence[int]) -> Iterator[str]:
    """Raw texts of examples: sources and targets, or excerpts of a corpus."""
    if isinstance(dataset, CausalLMDataset | SpanCorruption):
        texts = dataset.corpus.texts
        for text in texts:
            yield from _excerpts(text, dataset.corpus.column, -(-len(sample) // len(texts)))
        return
    for index in sample if dataset.records else ():  # a data set of token ids has none
        record = dataset.records[index]
        yield from filter(None, (record.source, record.target))


def _excerpts(text: Path, column: str, count: int) -> Iterator[str]:
    """Random excerpts of a text file of any size, cut at words; of a compressed file or rows, the first."""
    if not is_plain_text(text, compressed=False):
        for document in islice(read_documents(text, _EXCERPT, column), 2 * count):
            yield from filter(None, document.split(END_OF_DOCUMENT))
        return
    generator, size = random.Random(0), text.stat().st_size
    with text.open("rb") as file:
        for _ in range(min(count, -(-size // _EXCERPT))):
            file.seek(generator.randrange(max(1, size - _EXCERPT)))
            excerpt = file.read(_EXCERPT).decode(errors="ignore")
            whole_words = excerpt.partition(" ")[2].rpartition(" ")[0]
            yield from filter(None, whole_words.split(END_OF_DOCUMENT))
