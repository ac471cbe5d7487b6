import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.data.span_corruption import corrupt_spans, cut_spans, noise_mask, unpadded_lengths

EOS, LOWEST_SENTINEL, SENTINELS = 1, 10_000, 600


def sentinel_id(i: int) -> int:
    return LOWEST_SENTINEL + SENTINELS - 1 - i


def is_sentinel(token: int) -> bool:
    return token >= LOWEST_SENTINEL


def corrupt(ids: list[int], seed: int = 0, **options: float) -> tuple[list[int], list[int]]:
    return corrupt_spans(ids, np.random.default_rng(seed), sentinel_id=sentinel_id, eos_id=EOS, **options)


def restore(source: list[int], target: list[int]) -> list[int]:
    """Put the spans of the target where their sentinels stand in the source."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if is_sentinel(token):
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    return [part for token in source[:-1] for part in spans.get(token, [token])]


texts = st.lists(st.integers(3, 9_999), min_size=2, max_size=600)


@settings(deadline=None, max_examples=100)
@given(texts, st.integers(0, 2**32), st.floats(0.01, 0.9), st.floats(1.0, 10.0))
def test_source_and_target_hold_the_text(ids, seed, noise_density, mean_span_length):
    options = {"noise_density": noise_density, "mean_span_length": mean_span_length}
    source, target = corrupt(ids, seed, **options)
    assert restore(source, target) == ids


@settings(deadline=None, max_examples=100)
@given(texts, st.integers(0, 2**32))
def test_sentinels_come_in_order_and_both_sides_end(ids, seed):
    source, target = corrupt(ids, seed)
    used = [token for token in source if is_sentinel(token)]
    assert used == [sentinel_id(i) for i in range(len(used))]
    assert used == [token for token in target if is_sentinel(token)]
    assert source[-1] == target[-1] == EOS
    assert source[0] == ids[0]  # the first token stays
    assert is_sentinel(source[-2])  # the last is cut out
    assert target[0] == sentinel_id(0)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 2000), st.integers(0, 2**32), st.floats(0.01, 0.99), st.floats(1.0, 10.0))
def test_the_number_of_noise_tokens_and_spans_follows_from_the_length(
    length, seed, noise_density, mean_span_length
):
    mask = noise_mask(length, np.random.default_rng(seed), noise_density, mean_span_length)
    noisy = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(noisy / mean_span_length), 1), length - noisy)
    assert mask.shape == (length,) and mask.dtype == bool
    assert mask.sum() == noisy
    assert np.count_nonzero(np.diff(mask.astype(int)) == 1) == spans


def test_defaults_are_the_papers():
    """15 % of the tokens, in spans of 3 on average (Raffel et al. 2020, section 3.1.4)."""
    mask = noise_mask(400, np.random.default_rng(0))
    assert mask.sum() == 60
    assert np.count_nonzero(np.diff(mask.astype(int)) == 1) == 20


def test_ten_thousand_texts_can_be_restored_and_have_the_papers_noise():
    rng = np.random.default_rng(0)
    tokens = noisy = spans = 0
    for seed in range(10_000):
        ids = rng.integers(3, 10_000, rng.integers(50, 600)).tolist()
        source, target = corrupt(ids, seed)
        assert restore(source, target) == ids
        tokens += len(ids)
        spans += sum(map(is_sentinel, target))
        noisy += sum(not is_sentinel(token) for token in target[:-1])
    assert noisy / tokens == pytest.approx(0.15, rel=0.01)
    assert noisy / spans == pytest.approx(3.0, rel=0.01)


def test_published_lengths():
    """Sources of 512 tokens come from 568 and have targets of 114 (random_spans_helper of t5.data)."""
    assert unpadded_lengths(512) == (568, 114)


@settings(deadline=None, max_examples=100)
@given(st.integers(3, 3000), st.integers(0, 2**32))
def test_chunks_of_the_right_length_leave_nothing_to_pad(source_length, seed):
    length, target_length = unpadded_lengths(source_length)
    source, target = corrupt(list(range(3, 3 + length)), seed)
    assert (len(source), len(target)) == (source_length, target_length)
    longer, _ = corrupt(list(range(3, 4 + length)), seed)
    assert len(longer) > source_length


def test_no_source_is_shorter_than_a_token_a_sentinel_and_the_end():
    with pytest.raises(ValueError, match="at least 3 tokens, got 2"):
        unpadded_lengths(2)


def test_every_place_can_be_cut_out():
    masks = np.stack([noise_mask(40, np.random.default_rng(seed)) for seed in range(2000)])
    share = masks.mean(0)
    assert share[0] == 0 and share[-1] == 1
    assert (share[1:-1] > 0.02).all()


def test_an_example_by_hand():
    source, target = corrupt(list(range(100, 110)), seed=0, noise_density=0.2, mean_span_length=1.0)
    assert len(source) == 10 - 2 + 2 + 1  # two tokens out, two sentinels in, </s>
    assert len(target) == 2 + 2 + 1
    assert re.fullmatch(
        r"Xn+Xn+e", "".join("X" if is_sentinel(t) else "e" if t == EOS else "n" for t in target)
    )


def test_any_mask_can_be_cut():
    mask = np.array([True, True, False, True, False])
    source, target = cut_spans([10, 11, 12, 13, 14], mask, sentinel_id=sentinel_id, eos_id=EOS)
    assert source == [sentinel_id(0), 12, sentinel_id(1), 14, EOS]
    assert target == [sentinel_id(0), 10, 11, sentinel_id(1), 13, EOS]


def test_the_generator_decides():
    ids = list(range(3, 300))
    assert corrupt(ids, 1) == corrupt(ids, 1)
    assert corrupt(ids, 1) != corrupt(ids, 2)


@pytest.mark.parametrize("length", [0, 1])
def test_too_short_a_text_is_an_error(length):
    with pytest.raises(ValueError, match=f"at least 2 tokens, got {length}"):
        corrupt([5] * length)
