"""The text that gpt2-mini learns from, and what it learned."""

import json
import sys
from itertools import islice, pairwise, repeat
from pathlib import Path
from random import Random

import pytest

from ftcore import load_model, load_tokenizer
from ftcore.analysis.heads import induction_scores, repeated_tokens
from ftcore.analysis.tokens import token_losses

WEIGHTS = Path(__file__).parents[2] / "weights"
sys.path.insert(0, str(WEIGHTS))

import pretrain_gpt2_mini as script  # noqa: E402  (not in a package)

DIRECTORY = WEIGHTS / "gpt2-mini"


@pytest.mark.parametrize("seed", range(20))
def test_names_of_a_roll_call_are_repeated_whole(seed):
    ids = script.roll_call(list(range(500)), list(range(1, 501)), Random(seed))
    assert len(ids) >= script.ROLL_CALL
    successors: dict[int, set[int]] = {}
    for token, following in pairwise(ids):
        successors.setdefault(token, set()).add(following)
    # Within a name there is one successor; only the last token of each of up to five names has more.
    assert sum(len(following) > 1 for following in successors.values()) <= 5
    assert max(map(ids.count, set(ids))) > 2


def test_rows_are_consecutive_within_a_stage(monkeypatch):
    stages = (script.Stage(2, 3, 4, roll_calls=7), script.Stage(1, 2, 6, roll_calls=1))
    monkeypatch.setattr(script, "STAGES", stages)
    monkeypatch.setattr(script, "documents", lambda tokenizer, roll_calls, rng: repeat([roll_calls] * 5))
    first, second, third = script.batches(load_tokenizer(DIRECTORY), Random(0))
    eos = load_tokenizer(DIRECTORY).eos_id
    assert (first.shape, second.shape, third.shape) == ((3, 4), (3, 4), (2, 6))
    assert [*first.flatten().tolist(), *second.flatten().tolist()] == ([7] * 5 + [eos]) * 4
    assert third.flatten().tolist() == ([1] * 5 + [eos]) * 2


def test_no_document_is_a_line_of_the_emotion_test_set():
    tokenizer = load_tokenizer(DIRECTORY)
    test = (script.DATA / "emotion" / "test.txt").read_text(encoding="utf-8").splitlines()
    held_out = {line.rpartition(";")[0] for line in test}
    documents = islice(script.documents(tokenizer, 1, Random(0)), 3000)
    texts = {tokenizer.decode(ids).removeprefix("Emotion: ") for ids in documents}
    assert len(texts) > 2500 and not texts & held_out


def test_gpt2_mini_has_induction_heads():
    model = load_model(DIRECTORY)
    assert (induction_scores(model, rows=32) >= 0.5).sum() >= 2
    losses = token_losses(model, {"input_ids": repeated_tokens(model.config.vocab_size, rows=32)})
    assert losses[:, 25:].mean() <= losses[:, :24].mean() / 2


def test_the_curve_is_of_these_weights():
    last = json.loads((DIRECTORY / "curve.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    measured = script.induction(load_model(DIRECTORY))
    assert last["second_half"] == pytest.approx(measured["second_half"], abs=0.01)
    assert last["prefix_matching"][1] == pytest.approx(measured["prefix_matching"][1], abs=0.01)
