"""Relative-bias curves, residual norms, top activations, token losses, the lens as a picture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.analysis.attention import draw_relative_bias, relative_bias_curves
from ftcore.analysis.inputs import logits_of
from ftcore.analysis.residual import draw_lens, draw_residual_norms, residual_norms
from ftcore.analysis.tokens import draw_token_losses, draw_top_activations, token_losses, top_activations
from ftcore.study import logit_lens, record
from ftcore.training.loss import batch_loss
from tests.helpers.oracle import BOUND, error, padding, seeds, t5_pair, t5_settings, tokens
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny

STACKS = ("encoder", "decoder")

# ------------------------------------------------------------------------------------------- relative bias


@pytest.mark.parametrize("stack", STACKS)
@settings(deadline=None, max_examples=5)
@given(drawn=t5_settings, seed=seeds)
@torch.no_grad()
def test_the_curves_are_what_transformers_adds(stack, drawn, seed):
    reference, model = t5_pair(drawn, seed)
    curves = relative_bias_curves(model, stack, reach=150)
    attention = getattr(reference, stack).block[0].layer[0].SelfAttention
    theirs = attention.compute_bias(151, 151)[0]  # (H, T, S)
    both_ways = torch.cat([theirs[:, 150, :], theirs[:, 0, 1:]], 1)  # distances -150 ... 0, 1 ... 150
    assert curves.distances.tolist() == list(range(-150, 151 if stack == "encoder" else 1))
    assert torch.equal(curves.biases[0], both_ways[:, : len(curves.distances)])


@pytest.mark.parametrize("stack", STACKS)
def test_edges_are_where_another_bucket_begins(stack):
    curves = relative_bias_curves(tiny("t5"), stack)
    starts = [
        distance
        for distance, bucket, before in zip(
            curves.distances[1:].tolist(), curves.buckets[1:].tolist(), curves.buckets.tolist(), strict=False
        )
        if bucket != before
    ]
    assert curves.edges == starts
    assert len(starts) == 32 - 1 - (
        stack == "encoder"
    )  # the encoder has two buckets for distance 0, one unused
    assert curves.distances[0] == -136


def test_umt5_has_curves_for_each_block():
    drawn = {"model_type": "umt5", "d_model": 24, "d_kv": 8, "num_layers": 3, "num_heads": 2}
    _, model = t5_pair(drawn, 0)
    curves = relative_bias_curves(model, "encoder")
    assert curves.biases.shape[:2] == (3, 2)
    assert not torch.equal(curves.biases[0], curves.biases[1])


# ------------------------------------------------------------------------------------------- residual norms


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_of_the_stream_before_each_block_and_after_the_last(family):
    model, inputs = tiny(family), random_inputs(family)
    norms = residual_norms(model, inputs)
    stacks = (
        {"decoder": ("", 3)} if family == "gpt2" else {"encoder": ("encoder.", 2), "decoder": ("decoder.", 3)}
    )
    assert list(norms) == list(stacks)
    for stack, (prefix, blocks) in stacks.items():
        with torch.no_grad(), record(model, f"{prefix}resid_pre.*", f"{prefix}resid_post.*") as acts:
            model(**inputs)
        names = [
            *(f"{prefix}resid_pre.{block}" for block in range(blocks)),
            f"{prefix}resid_post.{blocks - 1}",
        ]
        want = torch.stack([acts[name].square().sum(-1).sqrt() for name in names])
        assert error(norms[stack], want) < BOUND[torch.float32]


# ------------------------------------------------------------------------------------------- neurons


@settings(deadline=None, max_examples=10)
@given(seed=seeds, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), k=st.integers(1, 6))
def test_the_highest_activations_of_a_data_set_however_it_is_batched(seed, sizes, k):
    model = tiny("gpt2", 1)
    ids, mask = tokens(seed, sum(sizes), 6), padding(seed, sum(sizes), 6, "right")
    batches = [
        {"input_ids": some, "attention_mask": its}
        for some, its in zip(ids.split(sizes), mask.split(sizes), strict=True)
    ]
    found = top_activations(model.double(), batches, "neurons.1", k)
    assert found.values.shape == found.texts.shape == found.positions.shape == (96, k)
    with torch.no_grad(), record(model, "neurons.1") as acts:
        model(ids, mask)
    everything = acts["neurons.1"]
    real = everything[mask.bool()]  # (tokens, F)
    count = min(k, len(real))
    torch.testing.assert_close(found.values[:, :count], real.topk(count, 0).values.T)
    assert (found.values[:, count:] == -torch.inf).all()
    there = everything[found.texts[:, :count], found.positions[:, :count], torch.arange(96)[:, None]]
    torch.testing.assert_close(there, found.values[:, :count])


def test_t5s_neurons_are_masked_by_their_own_stack():
    model, inputs = tiny("t5"), random_inputs("t5", rows=1)
    inputs["attention_mask"] = torch.tensor([[1] * 4 + [0] * 5])
    assert top_activations(model, [inputs], "encoder.neurons.1", 9).positions[0, :4].max() < 4
    decoder = top_activations(model, [inputs], "decoder.neurons.1", 7)
    assert sorted(decoder.positions[0].tolist()) == list(range(7))
    with pytest.raises(ValueError, match="batches is empty"):
        top_activations(model, [], "encoder.neurons.1")


# ------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=5)
@given(seed=seeds, side=st.sampled_from(["left", "right"]))
def test_token_losses_add_up_to_the_training_loss(family, seed, side):
    model = tiny(family, seed).double()
    ids, mask = tokens(seed, 3, 8), padding(seed, 3, 8, side)
    if family == "gpt2":
        labels = ids.masked_fill(mask == 0, -100)
        losses = token_losses(model, {"input_ids": ids, "attention_mask": mask})
        assert losses.shape == (3, 7)
    else:
        labels = tokens(seed + 1, 3, 5).masked_fill(padding(seed, 3, 5, "right") == 0, -100)
        losses = token_losses(model, {"input_ids": ids, "attention_mask": mask}, labels)
        assert losses.shape == (3, 5)
        assert torch.equal(losses == 0, labels == -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    torch.testing.assert_close(
        losses.double().sum(), batch_loss(model, batch).total.detach(), rtol=1e-6, atol=0
    )


def test_each_loss_is_of_its_own_token():
    model, inputs = tiny("gpt2"), random_inputs("gpt2")
    ids = inputs["input_ids"]
    log_probs = logits_of(model, inputs).log_softmax(-1)
    assert error(token_losses(model, inputs)[1, 3], -log_probs[1, 3, ids[1, 4]]) < BOUND[torch.float32]
    with pytest.raises(ValueError, match="labels are for T5"):
        token_losses(model, inputs, ids)
    with pytest.raises(ValueError, match="labels are missing"):
        token_losses(tiny("t5"), {"input_ids": ids})


# ------------------------------------------------------------------------------------------- pictures


def test_pictures():
    pytest.importorskip("matplotlib")
    gpt2, t5 = tiny("gpt2"), tiny("t5")
    ids = random_inputs("gpt2")["input_ids"]
    names = [f"${token}_" for token in ids[0].tolist()]
    lens = logit_lens(gpt2, ids)
    texts = [text.get_text() for text in draw_lens(lens[:, 0], names, str).axes[0].texts]
    assert texts == [str(token) for token in lens[:, 0].argmax(-1).flatten().tolist()]
    bars = draw_token_losses(token_losses(gpt2, {"input_ids": ids})[0], names[1:]).axes[0].patches
    assert len(bars) == 6
    top = top_activations(gpt2, [{"input_ids": ids}], "neurons.1", k=20)  # of 14 tokens
    axes = draw_top_activations(top, 3, [names, names]).axes[0]
    assert len(axes.patches) == 14
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0].split()[-1] == names[top.positions[3, 0]]
    assert len(draw_residual_norms(residual_norms(t5, random_inputs("t5"))).axes) == 2
    figure = draw_relative_bias(relative_bias_curves(t5, "decoder"))
    assert len(figure.axes[0].lines) == 31 + 3
    figure.canvas.draw()
