"""Scores are means over tokens and answers, independent of batching; the model is not changed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.data import CausalLMDataset, DataLoader, Dataset, read_corpus, read_records
from ftcore.metrics import exact_match, f1
from ftcore.training.inputs import load_checkpoint
from ftcore.training.loss import batch_loss
from ftcore.training.scoring import LossScore, mean, score_answers, score_loss
from tests.helpers import tiny_runs


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


def test_scoring_keeps_mode_gradients_and_random_state(scored: tuple) -> None:
    model, tokenizer, data = scored
    random = torch.get_rng_state()
    score_loss(model, DataLoader(data, 4, pad_id=tokenizer.pad_id))
    score_answers(model, tokenizer, data, max_new_tokens=3, num_beams=2)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_answers_match_their_records(scored: tuple) -> None:
    model, tokenizer, data = scored
    answers = score_answers(model, tokenizer, data, max_new_tokens=5, batch_size=4)
    assert [(a.source, a.references) for a in answers] == [(r.source, r.references) for r in data.records]
    for answer in answers:
        assert answer.exact_match == exact_match(answer.prediction, answer.references)
        assert answer.f1 == f1(answer.prediction, answer.references)
    assert score_answers(model, tokenizer, data, max_new_tokens=5, limit=3, batch_size=4) == answers[:3]
    assert score_answers(model, tokenizer, data, max_new_tokens=5, limit=0) == []


def test_records_without_gold_answers_are_skipped(tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(str(tiny_runs.tiny_gpt2(tmp_path)))
    (tmp_path / "text.txt").write_text("just text " * 9)
    data = CausalLMDataset(read_corpus("lm", tmp_path / "text.txt", tokenizer, decoder_only=True), 16)
    assert score_answers(model, tokenizer, data, max_new_tokens=4) == []


def test_gpt2s_answers_fit_its_positions(tmp_path: Path) -> None:
    """The targets fit, max_new_tokens does not."""
    model, tokenizer = load_checkpoint(str(tiny_runs.tiny_gpt2(tmp_path, n_positions=64)))
    records = read_records("qa", tiny_runs.questions(tmp_path / "qa.jsonl", 5), decoder_only=True)
    data = Dataset(records, tokenizer, decoder_only=True, max_source_length=60, max_target_length=50)
    answers = score_answers(model, tokenizer, data, max_new_tokens=50)
    free = 64 - max(len(data.source(index)) for index in range(5))
    assert len(answers) == 5 and all(len(answer.prediction.encode()) <= 4 * free for answer in answers)


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert LossScore(loss=1e6, token_accuracy=0.0, tokens=3).perplexity == math.inf


def test_mean_of_nothing_is_zero() -> None:
    assert (mean([]), mean([1.0, 0.0])) == (0.0, 0.5)
