"""Scores are means over tokens and answers, independent of batching and of settings for writing; nothing else
changes."""

import math
import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.data import (
    TASKS,
    CausalLMDataset,
    DataLoader,
    Dataset,
    load_tokenizer,
    read_corpus,
    read_records,
)
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import SPECIAL_TOKENS, Arguments, arguments_for
from ftcore.metrics import exact_match, f1, normalize_answer
from ftcore.training.inputs import load_checkpoint
from ftcore.training.loss import batch_loss
from ftcore.training.scoring import (
    Answer,
    LossScore,
    as_written,
    comparison,
    mean,
    plain_search,
    score_answers,
    score_continuations,
    score_loss,
)
from tests.helpers import tiny_runs

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
TOKENIZERS = ("t5-mini", "t5-mini, spiece.model", "gpt2-mini", "bytes")


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def scored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Dataset]:
    """A model with dropout, its tokenizer and questions."""
    folder = tmp_path_factory.mktemp("scored")
    build = tiny_runs.tiny_t5 if request.param == "t5" else tiny_runs.tiny_gpt2
    model, tokenizer = load_checkpoint(str(build(folder / "model")))
    decoder_only = request.param == "gpt2"
    records = read_records("qa", tiny_runs.questions(folder / "qa.jsonl", 11), decoder_only=decoder_only)
    limits = {"max_source_length": 60, "max_target_length": 20}
    return model.train(), tokenizer, Dataset(records, tokenizer, decoder_only=decoder_only, **limits)


@settings(deadline=None, max_examples=15)
@given(batch_size=st.integers(1, 12), bucket=st.booleans(), fixed=st.booleans())
def test_loss_is_the_mean_over_tokens(scored: tuple, batch_size: int, bucket: bool, fixed: bool) -> None:
    model, tokenizer, data = scored
    options = {"pad_id": tokenizer.pad_id, "bucket": bucket, "pad_to_max_length": fixed}
    score = score_loss(model, DataLoader(data, batch_size, **options))
    model.eval()
    singles = [batch_loss(model, batch) for batch in DataLoader(data, 1, pad_id=tokenizer.pad_id)]
    model.train()
    tokens = sum(single.tokens for single in singles)
    assert score.tokens == tokens
    assert score.loss == pytest.approx(sum(single.total.item() for single in singles) / tokens, rel=1e-5)
    assert score.token_accuracy == sum(int(single.correct) for single in singles) / tokens
    assert score.perplexity == pytest.approx(math.exp(score.loss))


def generators() -> list[Any]:
    """States of all random number generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = [torch.get_rng_state(), *cuda]
    return [random.getstate(), repr(np.random.get_state()), *(state.tolist() for state in states)]


# Settings for writing: the answers are drawn at random, several for each prompt, and of other texts.
WRITING = {
    "do_sample": True,
    "temperature": 3.0,
    "num_beams": 4,
    "num_return_sequences": 2,
    "repetition_penalty": 1.9,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 3,
    "bad_words_ids": [[105], [114]],
    "forced_eos_token_id": 5,
    "max_length": 2,
}


def test_scoring_keeps_mode_gradients_and_random_states(
    scored: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, data = scored
    monkeypatch.setattr(model, "generation_config", WRITING)
    before = generators()
    score_loss(model, DataLoader(data, 4, pad_id=tokenizer.pad_id, num_workers=1))
    score_answers(model, tokenizer, data, task="qa", max_new_tokens=3, num_beams=2)
    score_answers(model, tokenizer, data, task="qa", max_new_tokens=3)
    score_continuations(model, tokenizer, data, count=2, max_new_tokens=3)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert generators() == before
    assert model.generation_config is WRITING


def test_answers_do_not_depend_on_settings_for_writing(
    scored: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, data = scored
    scores: list[list[Answer]] = []
    drawn = {"do_sample": True, "temperature": 9.0}
    for writing, old in ((None, {}), (WRITING, {}), (drawn, {}), (None, WRITING), (None, drawn)):
        monkeypatch.setattr(model, "generation_config", writing)
        monkeypatch.setattr(model.config, "extra", old)  # config.json of an old checkpoint
        answers = score_answers(model, tokenizer, data, task="qa", max_new_tokens=5)
        scores.append(answers + score_continuations(model, tokenizer, data, count=3, max_new_tokens=5))
    assert scores == scores[:1] * 5


def test_plain_search_keeps_special_tokens_alone(scored: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting that generation has is replaced by its default, also those that are yet to come."""
    model, special = scored[0], {"eos_token_id": [1, 7], "pad_token_id": 2, "decoder_start_token_id": 3}
    settings = {field.name: "not a valid value" for field in fields(Arguments)} | special
    settings |= {"bos_token_id": None, "unknown_setting": 1}
    monkeypatch.setattr(model, "generation_config", special)
    expected = arguments_for(model, {})
    monkeypatch.setattr(model, "generation_config", settings)
    with plain_search(model):
        assert arguments_for(model, {}) == expected
    assert set(special) < set(SPECIAL_TOKENS) and model.generation_config is settings


def test_answers_match_their_records(scored: tuple) -> None:
    model, tokenizer, data = scored
    answers = score_answers(model, tokenizer, data, task="qa", max_new_tokens=5, batch_size=4)
    assert [(a.source, a.references) for a in answers] == [(r.source, r.references) for r in data.records]
    for answer in answers:
        assert answer.exact_match == exact_match(answer.prediction, answer.references)
        assert answer.f1 == f1(answer.prediction, answer.references)
    first = score_answers(model, tokenizer, data, task="qa", max_new_tokens=5, limit=3, batch_size=4)
    assert first == answers[:3]
    assert score_answers(model, tokenizer, data, task="qa", max_new_tokens=5, limit=0) == []


def test_records_without_gold_answers_are_skipped(tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(str(tiny_runs.tiny_gpt2(tmp_path)))
    (tmp_path / "text.txt").write_text("just text " * 9)
    data = CausalLMDataset(read_corpus("lm", tmp_path / "text.txt", tokenizer, decoder_only=True), 16)
    assert score_answers(model, tokenizer, data, task="lm", max_new_tokens=4) == []


def test_gpt2s_answers_fit_its_positions(tmp_path: Path) -> None:
    """The targets fit, max_new_tokens does not."""
    model, tokenizer = load_checkpoint(str(tiny_runs.tiny_gpt2(tmp_path, n_positions=64)))
    records = read_records("qa", tiny_runs.questions(tmp_path / "qa.jsonl", 5), decoder_only=True)
    data = Dataset(records, tokenizer, decoder_only=True, max_source_length=60, max_target_length=50)
    answers = score_answers(model, tokenizer, data, task="qa", max_new_tokens=50)
    free = 64 - max(len(data.source(index)) for index in range(5))
    assert len(answers) == 5 and all(len(answer.prediction.encode()) <= 4 * free for answer in answers)


def test_a_loss_that_is_not_finite_names_the_weight(scored: tuple) -> None:
    model, tokenizer, data = scored
    loader = DataLoader(data, 4, pad_id=tokenizer.pad_id)
    for name, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(math.nan)
        with pytest.raises(FloatingPointError, match=f"the loss is nan: {re.escape(name)} holds NaN"):
            score_loss(model, loader)
        with torch.no_grad():
            weight.copy_(kept)
    assert math.isfinite(score_loss(model, loader).loss)
    assert all(module.training for module in model.modules())


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert LossScore(loss=1e6, token_accuracy=0.0, tokens=3).perplexity == math.inf


def test_mean_of_nothing_is_zero() -> None:
    assert (mean([]), mean([1.0, 0.0])) == (0.0, 0.5)


# --- how answers are compared


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bytes":
        return load_tokenizer(tiny_runs.tiny_t5(folder))
    if "spiece" not in request.param:
        return load_tokenizer(WEIGHTS / request.param)
    (folder / "spiece.model").write_bytes((WEIGHTS / "t5-mini" / "spiece.model").read_bytes())
    return load_tokenizer(folder)


LABELS = ("+", "-", "Yes", "yes", "yes.", "the", "a", "", "\N{SNOWMAN}", "\N{COMET}", "<extra_id_0>")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prediction", LABELS)
def test_no_constant_answer_is_right_for_two_labels(tokenizer: Tokenizer, task: str, prediction: str) -> None:
    """Outside qa: neither signs, nor case, nor what the vocabulary lacks, nor silence."""
    normalize = comparison(task, tokenizer)
    right = [
        label
        for label in LABELS
        if Answer.scored("", prediction, (label,), normalize).exact_match  # a label on its own
    ]
    if task == "qa":
        squad = normalize_answer(prediction)
        assert right == [label for label in LABELS if normalize_answer(label) == squad]
    else:
        assert right == [prediction]


UNICODE = (
    st.text(max_size=8) | st.text("\ufb01\u2460e\u0301\u00e9\uff59 \t\u00a0\u200b~\uff5eaA", max_size=8)
).filter(
    lambda text: "</s>" not in text  # ByT5 reads it as the end of the text
)


@settings(deadline=None, max_examples=150)
@given(prediction=UNICODE, reference=UNICODE)
def test_equal_means_that_the_tokenizer_cannot_tell_them_apart(
    tokenizer: Tokenizer, prediction: str, reference: str
) -> None:
    def same(one: str, other: str) -> float:
        return exact_match(one, (other,), comparison("text2text", tokenizer))

    same_ids = tokenizer.encode(prediction.strip()) == tokenizer.encode(reference.strip())
    is_known = tokenizer.unk_id not in tokenizer.encode(reference)[:-1]
    expected = prediction.strip() == reference.strip() or (same_ids and is_known)
    assert same(prediction, reference) == same(reference, prediction) == expected
    if tokenizer.decode(tokenizer.encode("\ufb01")) == "\ufb01":  # GPT-2 and ByT5: code point by code point
        assert same(prediction, reference) == (prediction.strip() == reference.strip())


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\ufb01n", "fin"),
        ("\u2460", "1"),
        ("\uff59\uff45\uff53", "yes"),
        ("New\u00a0York", "New York"),
        (" two\nlines ", "two lines"),
        ("\N{SNOWMAN} ok", "\N{SNOWMAN} ok"),  # unknown: what T5 can write of it is something else
    ],
)
def test_t5_writes_nfkc_and_single_spaces(text: str, written: str) -> None:
    t5, gpt2 = load_tokenizer(WEIGHTS / "t5-mini"), load_tokenizer(WEIGHTS / "gpt2-mini")
    assert as_written(t5, text) == written
    assert as_written(gpt2, text) == text.strip()


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_what_the_model_writes_is_compared(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that writes the ids of every target is right everywhere; one that writes nothing is not."""
    names = {"t5": "t5-mini", "gpt2": "gpt2-mini"}
    loaded, tokenizer = load_checkpoint(str(WEIGHTS / names[model]))
    rows = [{"source": f"{n}", "target": text} for n, text in enumerate(["+", "-", "\ufb01n", "Yes.", "yes"])]
    file = tiny_runs.write_lines(tmp_path / "pairs.jsonl", rows)
    decoder_only = model == "gpt2"
    records = read_records("text2text", file, decoder_only=decoder_only)
    data = Dataset(records, tokenizer, decoder_only=decoder_only, max_source_length=20, max_target_length=20)
    perfect = [tokenizer.decode([label for label in data[n]["labels"] if label >= 0]) for n in range(5)]
    for said, matches in ((perfect, [1] * 5), ([""] * 5, [0] * 5), (["+"] * 5, [1, 0, 0, 0, 0])):
        monkeypatch.setattr("ftcore.training.scoring.generate_from_ids", lambda *_, **__: said)  # noqa: B023
        answers = score_answers(loaded, tokenizer, data, task="text2text", max_new_tokens=5)
        assert [answer.exact_match for answer in answers] == matches
        assert [answer.f1 for answer in answers] == matches
