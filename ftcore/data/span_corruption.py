"""Span corruption: the objective that T5 is pretrained with (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

Random spans of the text are cut out, and the model writes them. Each span leaves a sentinel of its own
behind, and the target names the sentinel before it gives the span:

    text     The town where Mirela lives is Belford .
    source   The town <extra_id_0> lives is <extra_id_1> </s>
    target   <extra_id_0> where Mirela <extra_id_1> Belford . </s>

The spans are drawn as the published preprocessor draws them: their number and their total length follow from
the length of the text and only their places are random; the first token always stays, the last is always cut
out. Hence no sentinel closes the target: the paper's figure has one, the published code, whose last span ends
the text, has none.

Number and length of the spans, and with them the lengths of source and target, are the same for all texts of
one length. So a text that is cut into chunks of the right length gives batches without any padding:
`unpadded_lengths` works it out. Published T5 reads 568 tokens at a time, which give a source of 512 and a
target of 114.
"""

from collections.abc import Callable, Sequence

import numpy as np


def corrupt_spans(
    ids: Sequence[int],
    rng: np.random.Generator,
    *,
    sentinel_id: Callable[[int], int],
    eos_id: int,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tuple[list[int], list[int]]:
    """Tokens without </s> -> (source, target), both with `eos_id` at the end.

    `sentinel_id(i)` is the id of <extra_id_i>: the method of a T5 tokenizer.

    Raises:
        ValueError: fewer than two tokens; something must be cut out and something must stay.
    """
    noise = noise_mask(len(ids), rng, noise_density, mean_span_length)
    return cut_spans(ids, noise, sentinel_id=sentinel_id, eos_id=eos_id)


def cut_spans(
    ids: Sequence[int], noise: np.ndarray, *, sentinel_id: Callable[[int], int], eos_id: int
) -> tuple[list[int], list[int]]:
    """Tokens and a mask (length,) of those to cut out -> (source, target), both with `eos_id` at the end."""
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
    """(length,) bool, True where a token is cut out: `noise_density` of all, `mean_span_length` at a time."""
    if length < 2:
        raise ValueError(f"span corruption needs at least 2 tokens, got {length}")
    noisy, spans = noise_size(length, noise_density, mean_span_length)
    kept_lengths = _random_segments(length - noisy, spans, rng)
    noise_lengths = _random_segments(noisy, spans, rng)
    lengths = np.stack([kept_lengths, noise_lengths], axis=1).reshape(-1)  # kept, noise, kept, noise ...
    return np.repeat(np.tile([False, True], spans), lengths)


def noise_size(length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """How many of `length` tokens are cut out, and in how many spans."""
    noisy = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(noisy / mean_span_length), 1), noisy, length - noisy)
    return noisy, spans


def unpadded_lengths(source_length: int) -> tuple[int, int]:
    """How many tokens a text must have so that its corrupted source has `source_length`: (text, target).

    Source and target count their sentinels and </s>. This is the published `random_spans_helper`, for the
    paper's noise.

    Raises:
        ValueError: no text has so short a source.
    """
    if source_length < 3:
        raise ValueError(f"a corrupted source has at least 3 tokens, got {source_length}")
    length = 2
    while _corrupted_lengths(length + 1)[0] <= source_length:
        length += 1
    return length, _corrupted_lengths(length)[1]


def _corrupted_lengths(length: int) -> tuple[int, int]:
    """Tokens of the source and of the target that a text of `length` tokens becomes."""
    noisy, spans = noise_size(length)
    return length - noisy + spans + 1, noisy + spans + 1


def _random_segments(total: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `segments` parts of `total`, none empty, every way to cut equally likely."""
    cuts = np.sort(rng.choice(total - 1, segments - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
