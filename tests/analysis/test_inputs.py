"""Inputs of an analysis, and masks of words."""

from pathlib import Path

import pytest
import torch

from ftcore import load_tokenizer
from ftcore.analysis.inputs import inputs_of, logits_of, token_names, word_mask
from tests.helpers.tiny_models import tiny

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def test_inputs_of():
    t5_tokens, gpt2_tokens = load_tokenizer(WEIGHTS / "t5-mini"), load_tokenizer(WEIGHTS / "gpt2-mini")
    inputs = inputs_of(tiny("t5"), t5_tokens, "The river", "the sea")
    target = t5_tokens.encode("the sea")
    assert inputs["input_ids"].tolist() == [t5_tokens.encode("The river")]
    assert inputs["decoder_input_ids"].tolist() == [[0, *target[:-1]]]
    assert list(inputs_of(tiny("gpt2"), gpt2_tokens, "The river")) == ["input_ids"]
    assert token_names(t5_tokens, target)[-1] == "</s>"
    with pytest.raises(ValueError, match="text has no tokens"):
        inputs_of(tiny("gpt2"), gpt2_tokens, "")


@pytest.mark.parametrize("name", ["t5-mini", "gpt2-mini"])
def test_word_mask(name):
    tokenizer = load_tokenizer(WEIGHTS / name)
    text = "The Nalweessa sails. Who saw the Nalweessa? Not Nalweessana, it is 84, not 847."
    ids = tokenizer.encode(text)
    assert masked_text(tokenizer, ids, "the nalweessa") == "TheNalweessatheNalweessa"
    assert masked_text(tokenizer, ids, "84") == "84"
    assert masked_text(tokenizer, ids, "Nal") == ""
    assert masked_text(tokenizer, ids, "a.b") == ""
    assert len(word_mask(tokenizer, ids, "84")) == len(ids)


def masked_text(tokenizer, ids, words):
    chosen = torch.tensor(ids)[word_mask(tokenizer, ids, words)]
    return "".join(tokenizer.decode(chosen).split())


def test_logits_of_runs_in_eval_mode():
    model = tiny("gpt2").train()
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(logits_of(model, {"input_ids": ids}), logits_of(model, {"input_ids": ids}))
    assert model.training and not logits_of(model, {"input_ids": ids}).requires_grad
