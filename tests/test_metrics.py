"""Exact match and F1, as SQuAD's script computes them and of the texts as they are."""

import string
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.metrics import exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Eiffel\tTower.", "eiffel tower"),
        ("an apple, a pear and the rest", "apple pear and rest"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("theatre", "theatre"),  # articles are whole words
        ("The", ""),
        ("\u201cquoted\u201d", "\u201cquoted\u201d"),  # SQuAD's script removes ASCII punctuation only
        ("Émile Zola", "émile zola"),
    ],
)
def test_normalize_answer(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "match", "score"),
    [
        ("the Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("in the city of Denver", ["Denver Broncos"], 0, 2 * (1 / 4 * 1 / 2) / (1 / 4 + 1 / 2)),
        ("red red blue", ["red green"], 0, 2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2)),  # a word counts once
        ("Carolina", ["Denver Broncos"], 0, 0),
        ("", ["Denver"], 0, 0),
        ("the", ["a"], 1, 0),  # both empty after normalization: no shared word
        ("", ["."], 1, 0),
        ("Broncos Denver", ["Denver Broncos"], 0, 1),
        ("Panthers of Carolina", ["Broncos", "Carolina Panthers"], 0, 0.8),  # the best of the gold answers
    ],
)
def test_known_values(prediction: str, references: list[str], match: float, score: float) -> None:
    assert exact_match(prediction, references) == match
    assert f1(prediction, references) == pytest.approx(score)


texts = st.lists(st.sampled_from(["a", "The", "red", "Red.", "blue", "green-ish", "", "-"]), max_size=6).map(
    " ".join
)
references = st.lists(texts | st.text(max_size=12), min_size=1, max_size=4)


@given(texts | st.text(max_size=12), references)
def test_bounds(prediction: str, gold: list[str]) -> None:
    match, score = exact_match(prediction, gold), f1(prediction, gold)
    assert match in (0, 1) and 0 <= score <= 1
    assert match <= score or not normalize_answer(prediction)  # an exact match has every word
    assert exact_match(gold[0], gold) == 1
    assert (match, score) == (exact_match(prediction, gold[::-1]), f1(prediction, gold[::-1]))


def squad_f1(prediction: str, reference: str) -> float:
    """As SQuAD's script writes it, by precision and recall."""
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(reference).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if shared == 0:
        return 0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


@given(texts | st.text(max_size=12), references)
def test_f1_is_that_of_squads_script(prediction: str, gold: list[str]) -> None:
    assert f1(prediction, gold) == pytest.approx(max(squad_f1(prediction, reference) for reference in gold))


@given(texts | st.text(max_size=12), references)
def test_texts_as_they_are(prediction: str, gold: list[str]) -> None:
    """Case, punctuation, articles and inner white space count; white space at the ends does not."""
    match, score = exact_match(prediction, gold, str.strip), f1(prediction, gold, str.strip)
    assert match == (prediction.strip() in [reference.strip() for reference in gold])
    assert match <= score or not prediction.strip()
    assert exact_match(f" {prediction}\n", gold, str.strip) == match


@given(texts, texts)
def test_symmetry_and_invariance_to_form(one: str, other: str) -> None:
    assert f1(one, [other]) == f1(other, [one])
    assert f1(one.upper() + "!", [other]) == f1(one, [other])
    assert exact_match(f"  the {one}", [other]) == exact_match(one, [other])


@given(texts, references, texts)
def test_scores_grow_with_gold_answers(prediction: str, gold: list[str], more: str) -> None:
    assert f1(prediction, [*gold, more]) >= f1(prediction, gold)
    assert exact_match(prediction, [*gold, more]) >= exact_match(prediction, gold)


@given(st.text(max_size=30))
def test_normalized_answers_have_no_punctuation(text: Any) -> None:
    normalized = normalize_answer(text)
    assert not set(normalized) & set(string.punctuation)
    assert " ".join(normalize_answer(normalized).split()) == normalized
