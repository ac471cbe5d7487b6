"""What a run is about to learn from, in figures, before its first step.

Fine-tuning goes wrong in silence: answers are cut off, letters are missing from the vocabulary, the end token
is never learnt, half of each batch is padding, labels are shifted twice. All of this can be seen beforehand.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ftcore.data import CausalLMDataset, Corpus, DataLoader, ExampleDataset, SpanCorruption
from ftcore.data.corpus import END_OF_DOCUMENT
from ftcore.data.tokenizer import IGNORED_LABEL, Tokenizer
from ftcore.models import Model, T5ForConditionalGeneration
from ftcore.training.loss import target_labels

SAMPLE = 500  # examples, drawn at random, that are read; lengths and padding are those of all
_MOST_LETTERS = 200_000  # of their texts
_EXCERPT = 2000  # bytes of a running text that stand for the text of one example
_ROWS, _BAR = 8, 40  # of a histogram: its rows, and the characters of its longest bar
_WIDTH, _SHOWN = 110, 10  # of the aligned example: characters of a line, positions


@dataclass(frozen=True)
class Lengths:
    """How long the examples are on one side, in tokens.

    Bin i of the histogram holds `counts[i]` examples of `edges[i]` to `edges[i + 1] - 1` tokens.
    """

    side: str  # "source" or "target"; of GPT-2 "text", which is both
    edges: list[int]
    counts: list[int]
    median: int
    high: int  # 95% of the examples are no longer
    longest: int

    @classmethod
    def of(cls, side: str, lengths: np.ndarray) -> "Lengths":
        """`lengths` (examples,), of at least one example."""
        first, last = int(lengths.min()), int(lengths.max())
        width = -(-(last + 1 - first) // _ROWS)
        counts = np.bincount((lengths - first) // width)
        edges = [first + width * number for number in range(len(counts) + 1)]
        median, high = (int(np.percentile(lengths, q, method="inverted_cdf")) for q in (50, 95))
        return cls(side, edges, counts.tolist(), median, high, last)

    def summary(self) -> str:
        if self.edges[0] == self.longest:
            return f"{self.longest} tokens, all of them"
        return f"{self.edges[0]} to {self.longest} tokens, half up to {self.median}, 95% up to {self.high}"

    def bars(self) -> list[str]:
        """The histogram, a line a bin."""
        most, digits = max(self.counts), len(str(self.longest))
        lines = []
        for first, end, count in zip(self.edges[:-1], self.edges[1:], self.counts, strict=True):
            last = f" - {min(end - 1, self.longest)}" if end - first > 1 else ""
            bar = "#" * -(-count * _BAR // most)
            lines.append(f"{first:{digits}}{last:<{digits + 3}}  {bar:{_BAR}}  {count:,}")
        return lines


@dataclass(frozen=True)
class RoundTrip:
    """What the tokenizer makes of texts, and of that again."""

    texts: int
    tokens: int
    unknown: int | None  # tokens for what the vocabulary lacks; None where it can write everything
    changed: int  # texts that come back with other letters
    respaced: int  # texts that come back with other white space, but the same letters
    lost: list[tuple[str, int]]  # letters that do not come back, and how often, the most frequent first


@dataclass(frozen=True)
class Alignment:
    """One example as the loss sees it: each token that is read, and the label that is asked for behind it."""

    number: int  # of the example, from 1
    source: str | None  # what T5's encoder reads
    skipped: int  # positions in front of those that are shown
    reads: list[str]
    labels: list[str | None]  # None where nothing is asked for
    length: int  # of all positions


@dataclass(frozen=True)
class Preview:
    """Figures about the examples of a run; `lines` has them in words."""

    examples: int
    lengths: list[Lengths]
    cut: dict[str, int]  # records that lost a part of their source, of their target
    padding: dict[str, float]  # share of all positions in an epoch's batches, by where they are
    round_trip: RoundTrip
    read: int  # examples that were drawn and read
    ended: int  # those whose target ends with the end token; of blocks: those that a document ends in
    running: bool  # the examples are blocks of a running text, which end anywhere
    alignment: Alignment

    def lines(self, *, bars: bool = True) -> list[str]:
        """A screen for people; without `bars` half of one."""
        lines = []
        for lengths in self.lengths:
            lines.append(f"{lengths.side:<11}{lengths.summary()}")
            lines += [f"  {bar}" for bar in lengths.bars()] if bars else []
        padding = [f"{share:.1%} of {where}" for where, share in self.padding.items()]
        lines.append(f"cut        {self._cut()}")
        lines.append(f"padding    {', '.join(padding)}")
        lines.append(f"unknown    {_unknown(self.round_trip)}")
        lines.append(f"round trip {_lost(self.round_trip)}")
        lines.append(f"end        {self._end()}")
        return lines + _aligned(self.alignment)

    def _cut(self) -> str:
        cut = [
            f"{count:,} of {self.examples:,} {side}s ({count / self.examples:.1%})"
            for side, count in self.cut.items()
            if count
        ]
        return ", ".join(cut) or "nothing"

    def _end(self) -> str:
        if self.running:
            return f"in {self.ended:,} of {self.read:,} blocks a document ends"
        if self.ended == self.read:
            return f"every target of {self.read:,} ends with the end token, so the model learns to stop"
        return f"{self.read - self.ended:,} of {self.read:,} targets lack the end token: they are cut"


def preview(loader: DataLoader, model: Model, tokenizer: Tokenizer) -> Preview:
    """Look at the examples of a training loader. Nothing changes: no random number is drawn from torch's
    generators, and the loader stays where it is."""
    dataset: ExampleDataset = loader.dataset  # type: ignore[assignment]
    sides = ["text"] if dataset.decoder_only else ["source", "target"]
    places = ["all positions"] if dataset.decoder_only else ["the encoder's positions", "the decoder's"]
    drawn = random.Random(0).sample(range(len(dataset)), min(SAMPLE, len(dataset)))
    running = isinstance(dataset, CausalLMDataset)
    targets = [dataset[index]["labels"] for index in drawn]
    return Preview(
        examples=len(dataset),
        lengths=[Lengths.of(side, column) for side, column in zip(sides, dataset.lengths.T, strict=False)],
        cut={"source": dataset.truncated_sources, "target": dataset.truncated_targets},
        padding={place: padding_share(loader, side) for side, place in enumerate(places)},
        round_trip=round_trip(_texts(dataset, drawn), tokenizer),
        read=len(drawn),
        ended=sum(tokenizer.eos_id in (target if running else target[-1:]) for target in targets),
        running=running,
        alignment=align(dataset, 0, model, tokenizer),
    )


def padding_share(loader: DataLoader, side: int) -> float:
    """The share of positions in an epoch's batches that hold no token; of inputs (side 0) or labels (1)."""
    rows, widths = loader.shapes()[:, [0, 1 + side]].T
    return 1 - int(loader.batch_sampler.lengths[:, side].sum(dtype=np.int64)) / int((rows * widths).sum())


def round_trip(texts: Iterator[str], tokenizer: Tokenizer) -> RoundTrip:
    """Encode and decode texts, and see what has become of them; a few hundred thousand letters."""
    count = letters = tokens = unknown = changed = respaced = 0
    lost: Counter[str] = Counter()
    for text in texts:
        if letters >= _MOST_LETTERS:
            break
        count, letters = count + 1, letters + len(text)
        ids = tokenizer.encode(text)
        ids = ids[:-1] if ids[-1:] == [tokenizer.eos_id] else ids  # T5's
        tokens, unknown = tokens + len(ids), unknown + sum(one == tokenizer.unk_id for one in ids)
        if (back := tokenizer.decode(ids)) == text:
            continue
        before, after = "".join(text.split()), "".join(back.split())
        changed, respaced = changed + (before != after), respaced + (before == after)
        lost += Counter(before) - Counter(after)
    # GPT-2 names its end token as the unknown one too, but can write every byte.
    can_lack = tokenizer.unk_id not in (None, tokenizer.eos_id)
    return RoundTrip(count, tokens, unknown if can_lack else None, changed, respaced, lost.most_common())


def align(dataset: ExampleDataset, index: int, model: Model, tokenizer: Tokenizer) -> Alignment:
    """An example's labels beside what is read at their positions, by the functions that the loss uses."""
    example = dataset[index]
    batch = {name: torch.tensor([example[name]]) for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    labels = target_labels(model, batch)
    if isinstance(model, T5ForConditionalGeneration):
        source, reads = tokenizer.decode(example["input_ids"], False), model.shift_right(labels)
    else:
        source, reads = None, batch["input_ids"][:, :-1]
    asked = (labels[0] != IGNORED_LABEL).nonzero().flatten().tolist() or [0]
    shown = slice(max(0, asked[0] - 2), asked[0] + _SHOWN)
    label_row, read_row = labels[0, : shown.stop].tolist(), reads[0, : shown.stop].tolist()
    names = _pieces([label for label in label_row if label != IGNORED_LABEL], tokenizer)
    return Alignment(
        number=index + 1,
        source=source,
        skipped=shown.start,
        reads=list(_pieces(read_row, tokenizer))[shown],
        labels=[None if label == IGNORED_LABEL else next(names) for label in label_row][shown],
        length=labels.shape[1],
    )


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each id, with the space before it that some tokenizers write only inside a text."""
    text = ""
    for end, one in enumerate(ids, start=1):
        longer = tokenizer.decode(ids[:end], skip_special_tokens=False)
        fits = longer.startswith(text) and longer != text  # not where it is a part of a letter
        yield longer[len(text) :] if fits else tokenizer.decode([one], skip_special_tokens=False)
        text = longer


def _texts(dataset: ExampleDataset, drawn: Sequence[int]) -> Iterator[str]:
    """The texts of examples as they stand in the file: sources and targets, or pieces of a running text."""
    if isinstance(dataset, CausalLMDataset | SpanCorruption):
        yield from _excerpts(dataset.corpus, len(drawn))
        return
    for index in drawn:
        record = dataset.records[index]
        yield from filter(None, (record.source, record.target))


def _excerpts(corpus: Corpus, count: int) -> Iterator[str]:
    """Pieces of a text of any size, from word to word, drawn at random."""
    draw, size = random.Random(0), corpus.text.stat().st_size
    with corpus.text.open("rb") as file:
        for _ in range(min(count, -(-size // _EXCERPT))):
            file.seek(draw.randrange(max(1, size - _EXCERPT)))
            piece = file.read(_EXCERPT).decode(errors="ignore")
            whole_words = piece.partition(" ")[2].rpartition(" ")[0]
            yield from filter(None, whole_words.split(END_OF_DOCUMENT))


def _unknown(trip: RoundTrip) -> str:
    if trip.unknown is None:
        return "nothing: the vocabulary can write every text"
    return f"{trip.unknown / max(1, trip.tokens):.2%} of the {trip.tokens:,} tokens of {trip.texts:,} texts"


def _lost(trip: RoundTrip) -> str:
    parts = []
    if trip.changed:
        letters = ", ".join(f"{letter!r} ({count:,})" for letter, count in trip.lost[:4])
        without = f", without {letters}" if letters else ""
        parts.append(
            f"{trip.changed:,} of {trip.texts:,} texts ({trip.changed / trip.texts:.1%}) change{without}"
        )
    if trip.respaced:
        parts.append(f"the white space of {trip.respaced:,} of {trip.texts:,} texts changes")
    return "; ".join(parts) or f"{trip.texts:,} texts come back from the tokenizer as they were"


def _aligned(alignment: Alignment) -> list[str]:
    """What is read above what is asked for, position by position."""
    reads = [repr(piece) for piece in alignment.reads]
    labels = ["-" if piece is None else repr(piece) for piece in alignment.labels]
    widths = [max(map(len, pair)) for pair in zip(reads, labels, strict=True)]
    before = "... " if alignment.skipped else ""
    behind = alignment.length - alignment.skipped - len(reads)
    lines = [
        f"example    number {alignment.number}: what is read, and below it the label that is asked for there"
    ]
    if alignment.source is not None:
        text = repr(alignment.source)
        lines.append(f"  encoder  {text if len(text) < _WIDTH - 11 else text[: _WIDTH - 14] + '...'}")
    for name, cells in (("decoder" if alignment.source is not None else "reads", reads), ("labels", labels)):
        row = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        line = f"  {name:<9}{before}{row}"
        lines.append(line[: _WIDTH - 3] + "..." if behind or len(line) > _WIDTH else line)
    return lines
