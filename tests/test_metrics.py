"""Metrics of answers: SQuAD's scripts, the texts as they are, and metrics from libraries."""

import re
import string
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.metrics import (
    accuracy,
    compute,
    exact_match,
    f1,
    normalize_answer,
    squad2_references,
)


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
        ("", [""], 1, 1),  # no answer, and none given
        (" The. ", [""], 1, 1),
        ("Denver", [""], 0, 0),
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
    assert match <= score or not normalize_answer(prediction)  # an exact match has all words
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


@given(
    texts | st.text(max_size=12), st.lists(texts.filter(bool) | st.text("a ., the", min_size=1), min_size=1)
)
def test_f1_is_that_of_squads_script(prediction: str, gold: list[str]) -> None:
    """Of version 1.1, which has no empty gold answers."""
    assert f1(prediction, gold) == pytest.approx(max(squad_f1(prediction, reference) for reference in gold))


def squad2_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """(exact match, F1) of a question by the rules of SQuAD 2.0's script.

    Gold answers that are empty after normalization do not count, and a question without others has the gold
    answer "". Where one side has no words, F1 is 1 if the other has none either, else 0.
    """

    def words(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def score(gold: str) -> float:
        ours, theirs = words(prediction), words(gold)
        if not ours or not theirs:
            return float(ours == theirs)
        shared = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
        precision, recall = shared / len(ours), shared / len(theirs)
        return 2 * precision * recall / (precision + recall) if shared else 0.0

    gold_answers = [answer for answer in answers if words(answer)]
    gold_answers = gold_answers if gold_answers else [""]
    exact = max(float(words(prediction) == words(gold)) for gold in gold_answers)
    return exact, max(score(gold) for gold in gold_answers)


@settings(max_examples=300)
@given(texts | st.text(max_size=12), st.lists(texts | st.text(max_size=12), max_size=3))
def test_scores_are_those_of_squad_2(prediction: str, answers: list[str]) -> None:
    gold = squad2_references(answers)
    expected = squad2_scores(prediction, answers)
    assert (exact_match(prediction, gold), f1(prediction, gold)) == pytest.approx(expected)


@given(texts | st.text(max_size=12), references)
def test_texts_as_they_are(prediction: str, gold: list[str]) -> None:
    """Case, punctuation, articles and inner white space count; white space at the ends does not."""
    match, score = exact_match(prediction, gold, str.strip), f1(prediction, gold, str.strip)
    assert match == (prediction.strip() in [reference.strip() for reference in gold])
    assert match <= score or not prediction.strip()
    assert exact_match(f" {prediction}\n", gold, str.strip) == match


@given(texts.filter(bool), texts.filter(bool))
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


# --- accuracy, and metrics from libraries

PREDICTIONS = ["the cat sat on the mat", "a dog", "", "nothing in common"]
REFERENCES = [["the cat sat on a mat", "a cat"], ["a dog"], ["not empty"], ["x", "y", "z"]]


def test_accuracy_compares_texts_without_white_space_at_the_ends() -> None:
    assert accuracy(["joy ", "Joy", "fear"], [["joy"], ["joy"], ["love", "\nfear"]]) == pytest.approx(2 / 3)
    assert accuracy([], []) == 0


def test_rouge_is_the_mean_of_the_library() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(names)
    found = compute("rouge", PREDICTIONS, REFERENCES)
    assert list(found) == names
    for name in names:
        best = [
            max(scorer.score(reference, prediction)[name].fmeasure for reference in gold)
            for prediction, gold in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert found[name] == pytest.approx(sum(best) / len(best)) and 0 < found[name] < 1
    assert compute("rouge", [], []) == dict.fromkeys(names, 0)


@pytest.mark.parametrize(("name", "function"), [("bleu", "corpus_bleu"), ("chrf", "corpus_chrf")])
def test_bleu_and_chrf_are_of_the_whole_corpus(name: str, function: str) -> None:
    """Not means over answers; with a gold answer for each prediction, they do not depend on the others."""
    library = getattr(pytest.importorskip("sacrebleu"), function)
    first = [gold[0] for gold in REFERENCES]
    single = library(PREDICTIONS, [first]).score
    assert compute(name, PREDICTIONS, [[gold] for gold in first]) == {name: pytest.approx(single)}
    means = [
        library([prediction], [[gold]]).score for prediction, gold in zip(PREDICTIONS, first, strict=True)
    ]
    assert abs(single - sum(means) / len(means)) > 1
    assert compute(name, PREDICTIONS, REFERENCES)[name] >= single > 0
    assert compute(name, first, REFERENCES) == {name: pytest.approx(100)}
    assert compute(name, [], []) == {name: 0}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.text(max_size=9), st.lists(st.text(max_size=9), min_size=1, max_size=3)), max_size=4
    )
)
def test_any_text_has_scores(pairs: list[tuple[str, list[str]]]) -> None:
    pytest.importorskip("rouge_score"), pytest.importorskip("sacrebleu")
    for name in ("accuracy", "rouge", "bleu", "chrf"):
        values = compute(name, [prediction for prediction, _ in pairs], [gold for _, gold in pairs]).values()
        assert all(0 <= value <= 100 + 1e-6 for value in values)


@pytest.mark.parametrize(
    ("metric", "module", "package"),
    [
        ("rouge", "rouge_score", "rouge-score"),
        ("bleu", "sacrebleu", "sacrebleu"),
        ("chrf", "sacrebleu", "sacrebleu"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, metric: str, module: str, package: str
) -> None:
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    with pytest.raises(ValueError, match=f"^{package} is not installed: pip install {package}$"):
        compute(metric, ["a"], [["a"]])
