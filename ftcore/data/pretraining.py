"""Pretraining on a corpus: blocks of text for GPT-2, span corruption for T5.

Span corruption (Raffel et al. 2020, sections 3.1.4 and 3.3.4) removes random spans of the text, and the model
generates them. Each span is replaced by its own sentinel, which also precedes the span in the target:

    text     The town where Mirela lives is Belford .
    source   The town <extra_id_0> lives is <extra_id_1> </s>
    target   <extra_id_0> where Mirela <extra_id_1> Belford . </s>

The spans are sampled as in the published preprocessor. Their number and total length are functions of the
length of the text; only their positions are random. The first token is always kept and the last one always
removed, so no sentinel ends the target (the paper's figure has one, the published code has none). Hence
chunks of one length (`unpadded_lengths`) give batches without padding. Published T5 reads chunks of 568
tokens, with sources of 512 and targets of 114.

Both datasets read the ids of an example from disk when it is indexed; only its two lengths are in memory.
Blocks and chunks ignore the boundaries of documents, as in the training of GPT-2 and T5.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftcore.data.corpus import Corpus
from ftcore.data.dataset import ExampleDataset
from ftcore.data.tokenizer import Tokenizer

_LONGEST = 2**31 - 1  # tokens of an example; lengths are int32


class CausalLMDataset(ExampleDataset):
    """Causal language modelling: a corpus in blocks of `length` tokens, the last one shorter.

    Consecutive blocks share one token, the last of the first and the first of the second. So every token of
    the text but the first is predicted exactly once, and the perplexity is that of the whole text.
    """

    decoder_only = True

    def __init__(self, corpus: Corpus, length: int) -> None:
        if not 2 <= length <= _LONGEST:
            raise ValueError(
                f"the length of a block is {length}; expected 2, a token and the next, to {_LONGEST}"
            )
        self.corpus, self.length = corpus, length
        count = -(-(len(corpus) - 1) // (length - 1))
        self.lengths = np.full((count, 2), length, dtype=np.int32)
        self.lengths[-1] = len(corpus) - (count - 1) * (length - 1)
        self.max_input_length = self.max_label_length = length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        start = index * (self.length - 1)
        ids = self.corpus.read(start, start + self.length)
        return {"input_ids": ids, "labels": ids, "index": index}

    def source(self, index: int) -> list[int]:
        return []


class SpanCorruption(ExampleDataset):
    """Span corruption: the text in chunks, each with a source of exactly `source_length` tokens.

    All targets have the length `max_label_length`, so no batch has padding. A remainder of the text
    that is shorter than a chunk is dropped.

    The spans of a chunk are a pure function of (seed, epoch, chunk), and differ from epoch to epoch.

    Raises:
        ValueError: the corpus is shorter than a chunk, or a chunk has more spans than there are sentinels.
    """

    decoder_only = False

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, source_length: int, *, seed: int = 0) -> None:
        self.corpus, self.seed = corpus, seed
        self.chunk_length, target_length = unpadded_lengths(source_length)
        count = len(corpus) // self.chunk_length
        if not count:
            raise ValueError(
                f"{corpus.name}: {len(corpus)} tokens, but a source of {source_length} needs "
                f"{self.chunk_length}: use more text, or shorter sources"
            )
        self.lengths = np.tile(np.array([source_length, target_length], dtype=np.int32), (count, 1))
        self.max_input_length, self.max_label_length = source_length, target_length
        self._eos_id = tokenizer.eos_id
        _, spans = noise_size(self.chunk_length)
        try:
            self._sentinels = [tokenizer.sentinel_id(number) for number in range(spans)]
        except ValueError as error:
            raise ValueError(
                f"chunks of {self.chunk_length} tokens have {spans} spans, but {error}; "
                "shorter sources have fewer"
            ) from None

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        start = index * self.chunk_length
        # The spawn key separates these streams from the one that shuffles the epoch.
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch), spawn_key=(index,)))
        ids = self.corpus.read(start, start + self.chunk_length)
        source, target = corrupt_spans(ids, rng, sentinel_id=self._sentinels.__getitem__, eos_id=self._eos_id)
        return {"input_ids": source, "labels": target, "index": index}

    def source(self, index: int) -> list[int]:
        return self[index]["input_ids"]


def make_pretraining_dataset(
    corpus: Corpus, tokenizer: Tokenizer, *, max_source_length: int, max_target_length: int, seed: int = 0
) -> CausalLMDataset | SpanCorruption:
    """The dataset of a corpus, for the family of models that it was tokenized for.

    Args:
        max_source_length: the length of T5's sources.
        max_target_length: the length of GPT-2's blocks, or the maximum for T5's targets.
        seed: seed of T5's spans.

    Raises:
        ValueError: the lengths or the corpus are too small.
    """
    if corpus.decoder_only:
        return CausalLMDataset(corpus, max_target_length)
    _, target_length = unpadded_lengths(max_source_length)
    if target_length > max_target_length:
        raise ValueError(
            f"`max_source_length` {max_source_length} has targets of {target_length} tokens, but "
            f"`max_target_length` is {max_target_length}: raise it, or lower `max_source_length`"
        )
    return SpanCorruption(corpus, tokenizer, max_source_length, seed=seed)


# ------------------------------------------------------------------------------------------- span corruption


def corrupt_spans(
    ids: Sequence[int],
    rng: np.random.Generator,
    *,
    sentinel_id: Callable[[int], int],
    eos_id: int,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tuple[list[int], list[int]]:
    """Corrupt random spans of `ids`, which have no </s>: (source, target), both ending in `eos_id`.

    `sentinel_id(i)` is the id of <extra_id_i>: the method of a T5 tokenizer.

    Raises:
        ValueError: fewer than two tokens; at least one is removed and one kept.
    """
    noise = noise_mask(len(ids), rng, noise_density, mean_span_length)
    return cut_spans(ids, noise, sentinel_id=sentinel_id, eos_id=eos_id)


def cut_spans(
    ids: Sequence[int], noise: np.ndarray, *, sentinel_id: Callable[[int], int], eos_id: int
) -> tuple[list[int], list[int]]:
    """Remove the tokens of a mask (length,): (source, target), both ending in `eos_id`."""
    source: list[int] = []
    target: list[int] = []
    spans = 0
    for token, is_noise, was_noise in zip(ids, noise, [False, *noise[:-1]], strict=True):
        if is_noise and not was_noise:
            sentinel = sentinel_id(spans)
            source.append(sentinel)
            target.append(sentinel)
            spans += 1
        (target if is_noise else source).append(token)
    return [*source, eos_id], [*target, eos_id]


def noise_mask(
    length: int, rng: np.random.Generator, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> np.ndarray:
    """Sample a mask (length,) of tokens to remove: `noise_density` of all, in spans of `mean_span_length`.

    Raises:
        ValueError: fewer than 2 tokens.
    """
    if length < 2:
        raise ValueError(f"span corruption needs at least 2 tokens, got {length}")
    noisy, spans = noise_size(length, noise_density, mean_span_length)
    kept_lengths = _random_segments(length - noisy, spans, rng)
    noise_lengths = _random_segments(noisy, spans, rng)
    lengths = np.stack([kept_lengths, noise_lengths], axis=1).reshape(-1)  # kept, noise, kept, noise, ...
    return np.repeat(np.tile([False, True], spans), lengths)


def noise_size(length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """(removed tokens, spans) for a text of `length` tokens."""
    noisy = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(noisy / mean_span_length), 1), noisy, length - noisy)
    return noisy, spans


def unpadded_lengths(source_length: int) -> tuple[int, int]:
    """(text length, target length) for corrupted sources of exactly `source_length` tokens.

    Source and target include sentinels and </s>. This is the published `random_spans_helper`, with the
    paper's noise density and span length.

    Raises:
        ValueError: `source_length` is less than 3, or beyond the range of lengths.
    """
    if not 3 <= source_length <= _LONGEST:
        raise ValueError(f"a corrupted source has 3 to {_LONGEST} tokens, got {source_length}")
    lengths = range(2 * source_length)  # corrupted, the longest of these would exceed the source
    length = bisect_right(lengths, source_length, key=lambda length: _corrupted_lengths(length)[0]) - 1
    return length, _corrupted_lengths(length)[1]


def _corrupted_lengths(length: int) -> tuple[int, int]:
    """(source length, target length) for a text of `length` tokens."""
    noisy, spans = noise_size(length)
    return length - noisy + spans + 1, noisy + spans + 1


def _random_segments(total: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Split `total` into non-empty segments, uniformly at random; returns their lengths."""
    cuts = np.sort(rng.choice(total - 1, segments - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
