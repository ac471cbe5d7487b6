"""Losses of tokens, and top activations of neurons."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.analysis.inputs import logits_of
from ftcore.analysis.tokens import draw_token_losses, draw_top_activations, token_losses, top_activations
from ftcore.study import record
from ftcore.training.loss import batch_loss
from tests.helpers.oracle import BOUND, error, padding, seeds, tokens
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=5)
@given(seed=seeds, side=st.sampled_from(["left", "right"]))
def test_token_losses_sum_to_the_training_loss(family, seed, side):
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


def test_token_losses_equal_log_probabilities():
    model, inputs = tiny("gpt2"), random_inputs("gpt2")
    ids = inputs["input_ids"]
    log_probs = logits_of(model, inputs).log_softmax(-1)
    assert error(token_losses(model, inputs)[1, 3], -log_probs[1, 3, ids[1, 4]]) < BOUND[torch.float32]
    with pytest.raises(ValueError, match="labels are for T5"):
        token_losses(model, inputs, ids)
    with pytest.raises(ValueError, match="labels are missing"):
        token_losses(tiny("t5"), {"input_ids": ids})


@settings(deadline=None, max_examples=10)
@given(seed=seeds, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), k=st.integers(1, 6))
def test_top_activations_are_independent_of_batching(seed, sizes, k):
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
    at_top = everything[found.texts[:, :count], found.positions[:, :count], torch.arange(96)[:, None]]
    torch.testing.assert_close(at_top, found.values[:, :count])


def test_top_activations_use_the_mask_of_their_stack():
    model, inputs = tiny("t5"), random_inputs("t5", rows=1)
    inputs["attention_mask"] = torch.tensor([[1] * 4 + [0] * 5])
    assert top_activations(model, [inputs], "encoder.neurons.1", 9).positions[0, :4].max() < 4
    decoder = top_activations(model, [inputs], "decoder.neurons.1", 7)
    assert sorted(decoder.positions[0].tolist()) == list(range(7))
    with pytest.raises(ValueError, match="batches is empty"):
        top_activations(model, [], "encoder.neurons.1")


def test_draw_token_losses():
    pytest.importorskip("matplotlib")
    ids = random_inputs("gpt2")["input_ids"]
    figure = draw_token_losses(
        token_losses(tiny("gpt2"), {"input_ids": ids})[0], [f"${n}_" for n in range(6)]
    )
    assert len(figure.axes[0].patches) == 6
    figure.canvas.draw()


def test_draw_top_activations():
    pytest.importorskip("matplotlib")
    ids = random_inputs("gpt2")["input_ids"]
    names = [f"${token}_" for token in ids[0].tolist()]
    top = top_activations(tiny("gpt2"), [{"input_ids": ids}], "neurons.1", k=20)  # of 14 tokens
    figure = draw_top_activations(top, 3, [names, names])
    axes = figure.axes[0]
    assert len(axes.patches) == 14
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0].split()[-1] == names[top.positions[3, 0]]
    figure.canvas.draw()
