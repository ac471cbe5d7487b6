"""Metrics of a data set's answers: SQuAD 2.0's rules for questions without an answer, and --metrics."""

from pathlib import Path
from typing import Any

import pytest

from ftcore.data import Dataset, Record, Task, read_records
from ftcore.metrics import MetricError
from ftcore.training.inputs import load_checkpoint
from ftcore.training.scoring import (
    Answer,
    answer_metrics,
    is_squad2,
    named,
    no_answer_metrics,
    score_answers,
    try_metrics,
)
from tests.helpers import tiny_runs


def squad2_answers(tmp_path: Path, said: dict[str, str], no_answer: str = "") -> tuple[list[Answer], Any]:
    """Answers to questions, where the model says these texts; the third question has no answer."""
    rows: list[dict[str, Any]] = [
        {"context": "c", "question": "who", "answers": ["The", "The Who"]},
        {"context": "c", "question": "when", "answers": ["1970", "in 1970"]},
        {"context": "c", "question": "why", "answers": [], "is_impossible": True},
    ]
    file = tiny_runs.write_lines(tmp_path / "squad2.jsonl", [row for row in rows if row["question"] in said])
    model, tokenizer = load_checkpoint(str(tiny_runs.tiny_t5(tmp_path / "t5")))
    task = Task("qa", no_answer=no_answer)
    records = read_records(task, file, decoder_only=False)
    data = Dataset(records, tokenizer, decoder_only=False, max_source_length=60, max_target_length=60)
    with pytest.MonkeyPatch.context() as patch:
        texts = list(said.values())
        patch.setattr("ftcore.training.scoring.generate_from_ids", lambda *_, **__: texts)
        return score_answers(model, tokenizer, data, task=task, max_new_tokens=5), (task, data)


@pytest.mark.parametrize("no_answer", ["", "Not in the text."])
def test_a_question_without_an_answer_is_scored_as_in_squad_2(tmp_path: Path, no_answer: str) -> None:
    for said, expected in (
        ("", [0, 1, 1]),
        ("the!", [0, 1, 1]),  # nothing after normalization
        (no_answer, [0, 1, 1]),
        ("1970", [0, 1, 0]),
    ):
        # Beside a question without an answer, "The" is no gold answer: it is empty after normalization.
        answers, parts = squad2_answers(tmp_path, {"who": "the", "when": "1970.", "why": said}, no_answer)
        assert [answer.exact_match for answer in answers] == expected
        assert [answer.f1 for answer in answers] == expected
        assert answers[2].references == (no_answer,) and is_squad2(*parts)
    task, _ = parts
    mean_of_answered = {"HasAns_exact": 0.5, "HasAns_f1": 0.5, "HasAns_total": 2}
    assert no_answer_metrics(answers, task) == mean_of_answered | {
        "NoAns_exact": 0,
        "NoAns_f1": 0,
        "NoAns_total": 1,
    }


def test_without_such_questions_answers_are_scored_as_in_squad_1(tmp_path: Path) -> None:
    answers, parts = squad2_answers(tmp_path, {"who": "the", "when": "1970"})
    assert [(answer.exact_match, answer.f1) for answer in answers] == [(1, 0), (1, 1)]
    assert not is_squad2(*parts)


# --- metrics of answers


def test_metrics_are_of_the_answers_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        Answer("s", " A ", ("A", "B"), exact_match=1.0, f1=1.0),
        Answer("s", "a", ("A",), exact_match=1.0, f1=0.5),
    ]
    assert answer_metrics(answers, None) == {"exact_match": 1, "f1": 0.75}
    assert answer_metrics(answers, ["accuracy,f1"]) == {"accuracy": 0.5, "f1": 0.75}
    assert answer_metrics([], ["accuracy"]) == {}
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scoring_metrics.py").write_text(
        "def gold(predictions, references):\n    return {'count': len(sum(references, []))}\n"
        "def count(predictions, references):\n    return len(predictions)\n"
    )
    assert answer_metrics(answers, ["scoring_metrics:gold"]) == {"count": 3}
    both = ["scoring_metrics:gold", "scoring_metrics:count"]
    with pytest.raises(MetricError, match="scoring_metrics:count: another metric has the name 'count' too"):
        answer_metrics(answers, both)


def test_metrics_are_tried_on_gold_answers() -> None:
    records = [Record("s", "t"), *(Record("s", f"{n}", (f"{n}",)) for n in range(9))]
    assert try_metrics(None, records) == ["exact_match", "f1"]
    assert try_metrics(["accuracy"], records) == ["accuracy"]
    assert try_metrics(None, records[:1]) == try_metrics(None, []) == []
    with pytest.raises(ValueError, match="`metrics` f1 rouge: the examples have no gold answers"):
        try_metrics(["f1", "rouge"], records[:1])


def test_named_metrics_say_how_answers_are_compared() -> None:
    metrics = {"step": 1, "f1": 0.5, "dev/exact_match": 0.5, "dev/rougeL": 0.5}
    named_qa = ["step", "f1 (SQuAD)", "dev/exact_match (SQuAD)", "dev/rougeL"]
    assert list(named(metrics, "qa")) == named_qa and named(metrics, "text2text") == metrics
