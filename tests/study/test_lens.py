"""The logit lens: it ends in the model's own logits, and reads earlier blocks as a shorter model would."""

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from ftcore.study import logit_lens
from tests.helpers.oracle import gpt2_pair, gpt2_settings, padding, seeds, t5_pair, t5_settings, tokens


@settings(deadline=None, max_examples=5)
@given(drawn=gpt2_settings, seed=seeds)
@torch.no_grad()
def test_gpt2s_lens_is_what_a_shorter_model_says(drawn, seed):
    _, model = gpt2_pair(drawn, seed)
    ids, mask = tokens(seed, 2, 7), padding(seed, 2, 7, "left")
    lens = logit_lens(model, ids, mask)
    blocks = list(model.transformer.h)
    for block in range(len(blocks)):
        model.transformer.h = nn.ModuleList(blocks[: block + 1])
        assert torch.equal(lens[block], model(ids, mask))


@settings(deadline=None, max_examples=5)
@given(drawn=t5_settings, seed=seeds)
@torch.no_grad()
def test_t5s_lens_is_what_a_shorter_decoder_says(drawn, seed):
    _, model = t5_pair(drawn, seed)
    ids, mask, target = tokens(seed, 2, 7), padding(seed, 2, 7, "right"), tokens(seed + 1, 2, 5)
    lens = logit_lens(model, ids, mask, target)
    blocks = list(model.decoder.block)
    for block in range(len(blocks)):
        model.decoder.block = nn.ModuleList(blocks[: block + 1])
        assert torch.equal(lens[block], model(ids, mask, target))


def test_dropout_is_off_and_the_mode_comes_back():
    _, model = gpt2_pair({"n_embd": 24, "n_head": 3, "n_layer": 2, "resid_pdrop": 0.5}, seed=0)
    ids = tokens(0, 2, 7)
    with torch.no_grad():
        want = model(ids)
    assert torch.equal(logit_lens(model.train(), ids)[-1], want)
    assert all(module.training for module in model.modules())


def test_inputs_of_the_other_family_are_refused():
    ids = tokens(0, 1, 4)
    with pytest.raises(ValueError, match="decoder_input_ids is for T5"):
        logit_lens(gpt2_pair({"n_embd": 24, "n_head": 3, "n_layer": 1}, 0)[1], ids, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="decoder_input_ids are missing"):
        logit_lens(t5_pair({"d_model": 24, "d_kv": 4, "num_layers": 1, "num_heads": 2}, 0)[1], ids)
