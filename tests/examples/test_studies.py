"""The studies run: each writes a picture and prints three sentences with numbers."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from ftcore import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "examples" / "study"
# Settings that make a study short enough for a test.
SMALL = {
    "attention_by_hand": {},
    "where_the_answer_comes_from": {"PASSAGES": 12, "PATCHED_PASSAGES": 1, "BEHIND_ANOTHER": 2},
    "how_beams_disagree": {"QUESTIONS": 10},
    "what_span_corruption_taught": {"PASSAGES": 4},
    "induction": {"PASSAGES": 3},
    "relative_bias_heads": {"PASSAGES": 3},
    "without_the_scale": {"TEXTS": 4},
}


@pytest.fixture
def study(monkeypatch):
    """Imports a study by name, with its folder first on sys.path, as when it is run as a script."""
    monkeypatch.setattr(sys, "path", [str(STUDIES), *sys.path])
    return importlib.import_module


@pytest.mark.parametrize("name", SMALL)
def test_a_study_writes_a_picture_and_prints_three_sentences(name, study, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)  # the adapter's base model is a relative path
    module = study(name)
    for setting, value in SMALL[name].items():
        monkeypatch.setattr(module, setting, value)
    picture = tmp_path / "pictures" / "study.png"
    module.main(["--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    first, blank, *sentences = capsys.readouterr().out.splitlines()
    assert first == f"picture    {picture}" and blank == ""
    assert len(sentences) == 3
    assert all(any(character.isdigit() for character in sentence) for sentence in sentences)


def test_gaps_can_be_filled_from_the_passage(study):
    module = study("gapped_passages")
    tokenizer = load_tokenizer(ROOT / "weights" / "t5-mini")
    for gapped in module.gapped_passages(tokenizer, 20, seed=3):
        source = tokenizer.decode(gapped.source, skip_special_tokens=False)
        assert source.count("<extra_id_") == 2
        passage = tokenizer.decode(gapped.source[gapped.passage :])
        assert "<extra_id_" not in passage
        for first, last in gapped.gaps:
            missing = tokenizer.decode(gapped.target[first:last])
            assert missing and missing.lower() in passage.lower()
    model = load_model(ROOT / "weights" / "t5-mini")
    flags = [
        flag for gapped in module.gapped_passages(tokenizer, 10) for flag in module.filled(model, gapped)
    ]
    assert len(flags) == 20 and sum(flags) > 10


def test_swapped_answers(study):
    question = study("where_the_answer_comes_from").Question(
        "Who sails?", "Ada sails the Ann. Bo owns a boat. Bo waits.", "Ada", "Bo"
    )
    assert question.swapped.context == "Bo sails the Ann. Ada owns a boat. Ada waits."
    assert (question.swapped.answer, question.swapped.other) == ("Bo", "Ada")


def test_the_end_token_is_not_part_of_the_answer(study):
    script = study("where_the_answer_comes_from")
    reader = script.Reader(str(ROOT / "weights" / "t5-mini-qa"))
    question = script.Question(
        "Who plays the cello?", "Marodan is a baker. Selorina plays the cello.", "Selorina", None
    )
    ids, tokens = reader.encode(question), reader.tokenizer.encode("Selorina")[:-1]
    _, maps = script.attention_while_generating(reader.model, torch.tensor([ids]), max_new_tokens=len(tokens))
    seen = reader.see(question)
    assert seen.is_right
    torch.testing.assert_close(seen.attention, maps["cross"][:, 0].mean(2) * (seen.attention[0, 0] > 0))


def test_one_question_about_each_passage(study):
    chosen = study("where_the_answer_comes_from").first_questions("test")
    assert len(chosen) == 200
    assert all(question.answer.lower() in question.context.lower() for question in chosen)
    others = [question.other for question in chosen if question.other]
    assert others and all(other not in (None, "") for other in others)
    document = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    assert len(document["data"][0]["paragraphs"]) == len(chosen)
