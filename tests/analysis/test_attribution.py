"""Direct logit attribution: contributions sum to logits, and equal the effect of their removal."""

import pytest
import torch
from hypothesis import given, settings

from ftcore.analysis.attribution import draw_attribution, logit_attribution, total
from ftcore.lora.lora import add_lora
from ftcore.models import GPT2LMHeadModel
from ftcore.study import record
from tests.helpers.oracle import (
    BOUND,
    VOCAB,
    error,
    gpt2_pair,
    gpt2_settings,
    padding,
    seeds,
    t5_pair,
    t5_settings,
    tokens,
)
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny

LIMIT = BOUND[torch.float64]


@settings(deadline=None, max_examples=8)
@given(drawn=gpt2_settings, seed=seeds)
@torch.no_grad()
def test_gpt2_contributions_sum_to_logits(drawn, seed):
    model = gpt2_pair(drawn, seed)[1].double()
    ids, mask = tokens(seed, 3, 7), padding(seed, 3, 7, "left")
    inputs = {"input_ids": ids, "attention_mask": mask}
    right, wrong = tokens(seed + 1, 3, 7), tokens(seed + 2, 3, 7)
    logits = model(**inputs)
    shares = logit_attribution(model, inputs, right)
    assert error(total(shares), logits.gather(-1, right[..., None])[..., 0]) < LIMIT
    difference = total(logit_attribution(model, inputs, right, wrong))
    want = (logits.gather(-1, right[..., None]) - logits.gather(-1, wrong[..., None]))[..., 0]
    assert error(difference, want) < LIMIT
    assert shares["heads"].shape == (drawn["n_layer"], drawn["n_head"], 3, 7)
    assert shares["mlps"].shape == (drawn["n_layer"], 3, 7)


@settings(deadline=None, max_examples=8)
@given(drawn=t5_settings, seed=seeds)
@torch.no_grad()
def test_t5_contributions_sum_to_logits(drawn, seed):
    model = t5_pair(drawn, seed)[1].double()
    source, mask, target = tokens(seed, 3, 9), padding(seed, 3, 9, "right"), tokens(seed + 1, 3, 5)
    inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
    right = tokens(seed + 2, 3, 5)
    logits = model(**inputs)
    shares = logit_attribution(model, inputs, right)
    assert error(total(shares), logits.gather(-1, right[..., None])[..., 0]) < LIMIT
    difference = total(logit_attribution(model, inputs, right, torch.tensor([[3]])))  # one for all positions
    assert error(difference, logits.gather(-1, right[..., None])[..., 0] - logits[..., 3]) < LIMIT
    depth, heads = drawn["num_decoder_layers"], drawn["num_heads"]
    assert shares["heads"].shape == shares["cross"].shape == (depth, heads, 3, 5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_contribution_is_the_loss_of_logit_without_it(family):
    """Subtract a head's output from the last residual, with the scale of the final norm held fixed."""
    model, inputs = tiny(family, 1).double(), random_inputs(family, 1)
    shares = logit_attribution(model, inputs, torch.tensor([[5]]))
    prefix, block = "" if family == "gpt2" else "cross.", 1
    last = "resid_post.2" if family == "gpt2" else "decoder.resid_post.2"
    norm = model.transformer.ln_f if family == "gpt2" else model.decoder.final_layer_norm
    with record(model, f"{prefix}z.{block}", last) as acts:
        logits = model(**inputs)[..., 5]
    width = acts[f"{prefix}z.{block}"].shape[-1] // 3
    for head in range(3):
        alone = torch.zeros_like(acts[f"{prefix}z.{block}"])
        own = slice(head * width, (head + 1) * width)
        alone[..., own] = acts[f"{prefix}z.{block}"][..., own]
        if isinstance(model, GPT2LMHeadModel):
            wrote = alone @ model.transformer.h[block].attn.c_proj.weight
            residual = acts[last] - wrote
            spread = (acts[last].var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
            normed = norm.weight * (residual - residual.mean(-1, keepdim=True)) / spread + norm.bias
        else:
            wrote = model.decoder.block[block].layer[1].EncDecAttention.o(alone)
            size = (acts[last].square().mean(-1, keepdim=True) + norm.eps).sqrt()
            normed = norm.weight * (acts[last] - wrote) / size * model.config.d_model**-0.5
        lost = logits - model.lm_head(normed)[..., 5]
        share = shares["heads" if family == "gpt2" else "cross"][block, head]
        assert error(share, lost) < 1e-10


def test_a_model_with_lora_is_refused():
    model = tiny("t5")
    add_lora(model)
    with pytest.raises(ValueError, match="merge_lora"):
        logit_attribution(model, random_inputs("t5"), torch.tensor([[5]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_draw_attribution(family):
    pytest.importorskip("matplotlib")
    shares = logit_attribution(tiny(family), random_inputs(family), torch.tensor([[VOCAB - 1]]))
    figure = draw_attribution(shares)
    assert len(figure.axes) == (2 if family == "gpt2" else 3)
    assert len(figure.axes[-1].patches) == (6 if family == "gpt2" else 4)
