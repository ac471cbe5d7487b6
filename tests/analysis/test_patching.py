"""Activation and path patching: exact restoration, paths without effect, and hooks by hand."""

import pytest
import torch
from hypothesis import given, settings

from ftcore.analysis.inputs import logits_of
from ftcore.analysis.patching import (
    activation_patching,
    draw_patched,
    logit_difference,
    path_patching,
)
from ftcore.study import record
from tests.helpers.oracle import error, seeds, tokens
from tests.helpers.tiny_models import FAMILIES, has_no_hooks, random_inputs, tiny

CLOSE = 1e-10  # in float64, of values around 1


def metric(logits):
    return logits[:, -1].square().mean(-1)  # (B)


def pair(family, seed=0):
    """Two inputs that differ in the third token, of T5's source."""
    clean = random_inputs(family, seed)
    corrupted = {name: ids.clone() for name, ids in clean.items()}
    corrupted["input_ids"][:, 2] = (clean["input_ids"][:, 2] + 11) % 90
    return clean, corrupted


# Activations that determine everything after them.
SUFFICIENT = {"gpt2": ["resid_pre.*", "resid_post.*"], "t5": ["encoder.resid_*.*", "decoder.resid_post.2"]}


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_clean_residual_stream_restores_clean_logits(family, seed):
    model, (clean, corrupted) = tiny(family, seed), pair(family, seed)
    want = logits_of(model, clean)
    assert not torch.equal(want, logits_of(model, corrupted))
    for name in SUFFICIENT[family]:
        patched = activation_patching(model, clean, corrupted, lambda logits: logits, name, progress=False)
        assert all(torch.equal(logits, want) for logits in patched.values), name
        assert torch.equal(patched.clean, want)
        assert torch.equal(patched.corrupted, logits_of(model, corrupted))


@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_block_only_the_changed_position_matters(family):
    model, (clean, corrupted) = tiny(family), pair(family)
    name = "resid_pre.*" if family == "gpt2" else "encoder.resid_pre.*"
    patched = activation_patching(model, clean, corrupted, metric, name, over=["positions"], progress=False)
    blocks, length = (3, 7) if family == "gpt2" else (2, 9)
    assert patched.values.shape == (blocks, length, 2)
    assert patched.restored.shape == (blocks, length)
    first = patched.values[0]
    assert torch.equal(first[2], patched.clean)
    others = [position for position in range(length) if position != 2]
    assert all(torch.equal(first[position], patched.corrupted) for position in others)
    assert torch.equal(patched.restored[0], torch.eye(length)[2])
    if family == "gpt2":  # causal
        assert torch.equal(patched.values[:, :2], patched.corrupted.expand(blocks, 2, 2))
    assert not torch.equal(patched.values[1][2], patched.clean)  # after one block, other positions differ too


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_patching_equals_a_hook_by_hand(family):
    model, (clean, corrupted) = tiny(family).double(), pair(family)
    if family == "gpt2":
        name, module = "z.1", model.transformer.h[1].attn.c_proj
    else:
        name, module = "cross.z.1", model.decoder.block[1].layer[1].EncDecAttention.o
    with record(model, name) as acts:
        model(**clean)
    mixed = acts[name].unflatten(-1, (3, -1))
    patched = activation_patching(
        model, clean, corrupted, metric, name, over=["heads", "positions"], progress=False
    )
    assert patched.values.shape == (1, 3, 7, 2)
    for head in range(3):
        for position in (0, 4, 6):

            def by_hand(_, inputs, head=head, position=position):
                changed = inputs[0].clone()
                changed.unflatten(-1, (3, -1))[:, position, head] = mixed[:, position, head]
                return (changed,)

            handle = module.register_forward_pre_hook(by_hand)
            want = metric(model(**corrupted))
            handle.remove()
            torch.testing.assert_close(patched.values[0, head, position], want, rtol=CLOSE, atol=CLOSE)
    whole = activation_patching(model, clean, corrupted, metric, name, over=["heads"], progress=False)
    assert whole.values.shape == (1, 3, 2)


def test_patching_of_attention_weights():
    model, (clean, corrupted) = tiny("gpt2").double(), pair("gpt2")
    patched = activation_patching(
        model, clean, corrupted, metric, "pattern.*", over=["positions", "heads"], progress=False
    )
    assert patched.values.shape == (3, 7, 3, 2)
    changes = (patched.values - patched.corrupted).abs().amax(-1)  # (block, position, head)
    assert (changes[:, :2] < CLOSE).all()  # before the position that differs
    assert (changes[1, 2:] > 1e-6).all()  # in block 2, only the last position affects the last logits


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_path_to_the_logits_equals_head_output(family):
    """With the last residual as the receiver, only the output of the head changes it."""
    model, (clean, corrupted) = tiny(family).double(), pair(family)
    prefix = "" if family == "gpt2" else "cross."
    last = "resid_post.2" if family == "gpt2" else "decoder.resid_post.2"
    senders = f"{prefix}z.*"
    patched = path_patching(model, clean, corrupted, lambda logits: logits, senders, last, progress=False)
    runs = []
    for inputs in (clean, corrupted):
        with record(model, senders, last) as acts:
            model(**inputs)
        runs.append(acts)
    for block in range(3):
        new, old = (acts[f"{prefix}z.{block}"].unflatten(-1, (3, -1)) for acts in runs)
        for head in range(3):
            change = torch.zeros_like(old)
            change[:, :, head] = new[:, :, head] - old[:, :, head]
            if family == "gpt2":
                wrote = change.flatten(2) @ model.transformer.h[block].attn.c_proj.weight
                hidden = model.transformer.ln_f(runs[1][last] + wrote)
            else:
                wrote = model.decoder.block[block].layer[1].EncDecAttention.o(change.flatten(2))
                hidden = model.decoder.final_layer_norm(runs[1][last] + wrote) * model.config.d_model**-0.5
            assert error(patched.values[block, head], model.lm_head(hidden)) < CLOSE


def test_no_path_to_an_earlier_block():
    model, (clean, corrupted) = tiny("gpt2"), pair("gpt2")
    receiver = "transformer.h.1.attn.c_attn"
    patched = path_patching(model, clean, corrupted, metric, "z.*", receiver, progress=False)
    assert patched.values.shape == (3, 3, 2)
    assert torch.equal(patched.values[1:], patched.corrupted.expand(2, 3, 2))
    assert all(not torch.equal(value, patched.corrupted) for value in patched.values[0])


@torch.no_grad()
def test_path_to_the_keys_of_one_head():
    """From head 1 of block 0 to the keys of head 2 in block 1."""
    model, (clean, corrupted) = tiny("gpt2").double(), pair("gpt2")
    keys = slice(24 + 2 * 8, 24 + 3 * 8)
    reader = "transformer.h.1.attn.c_attn"
    patched = path_patching(model, clean, corrupted, metric, "z.0", reader, columns=keys, progress=False)
    runs = []
    for inputs in (clean, corrupted):
        with record(model, "z.0", "mlp.0", "resid_pre.1") as acts:
            model(**inputs)
        runs.append(acts)
    change = torch.zeros_like(runs[1]["z.0"])
    change[..., 8:16] = (runs[0]["z.0"] - runs[1]["z.0"])[..., 8:16]
    wrote = change @ model.transformer.h[0].attn.c_proj.weight  # the feed-forward layer is held fixed
    block = model.transformer.h[1]

    def by_hand(_, __, output):
        changed = output.clone()
        changed[..., keys] = block.attn.c_attn.forward(block.ln_1(runs[1]["resid_pre.1"] + wrote))[..., keys]
        return changed

    handle = block.attn.c_attn.register_forward_hook(by_hand)
    want = metric(model(**corrupted))
    handle.remove()
    torch.testing.assert_close(patched.values[0, 1], want, rtol=CLOSE, atol=CLOSE)
    assert not torch.equal(want, metric(model(**corrupted)))


def test_path_from_the_encoder_to_the_decoder():
    model, (clean, corrupted) = tiny("t5"), pair("t5")
    receiver = "decoder.block.1.layer.1.EncDecAttention.v"
    patched = path_patching(model, clean, corrupted, metric, "encoder.z.*", receiver, progress=False)
    assert patched.values.shape == (2, 3, 2)
    assert all(not torch.equal(value, patched.corrupted) for value in patched.values.flatten(0, 1))


def test_logit_difference():
    logits = torch.arange(24.0).view(2, 3, 4).square()
    got = logit_difference(torch.tensor([3, 1]), torch.tensor([0, 2]), position=1)(logits)
    assert got.tolist() == [7.0**2 - 4**2, 17.0**2 - 18**2]


@pytest.mark.parametrize("family", FAMILIES)
def test_invalid_patching(family):
    model, (clean, corrupted) = tiny(family), pair(family)
    shorter = {name: ids[:, :-1] for name, ids in corrupted.items()}
    prefix = "" if family == "gpt2" else "decoder."
    with pytest.raises(ValueError, match="expected equal shapes"):
        activation_patching(model, clean, shorter, metric, f"{prefix}z.*")
    with pytest.raises(ValueError, match="has no heads: only z, pattern and scores"):
        activation_patching(model, clean, corrupted, metric, f"{prefix}mlp.*", over=["heads"], progress=False)
    with pytest.raises(ValueError, match="is not the output of heads"):
        path_patching(model, clean, corrupted, metric, f"{prefix}mlp.*", f"{prefix}resid_post.2")
    for held in (f"{prefix}z.1", f"{prefix}mlp.2"):
        with pytest.raises(ValueError, match="is held fixed"):
            path_patching(model, clean, corrupted, metric, f"{prefix}z.*", held)
    with pytest.raises(ValueError, match="matches several"):
        path_patching(model, clean, corrupted, metric, f"{prefix}z.*", f"{prefix}resid_post.*")
    assert has_no_hooks(model)


def test_draw_patched():
    pytest.importorskip("matplotlib")
    model, (clean, corrupted) = tiny("gpt2"), pair("gpt2")
    patched = activation_patching(
        model, clean, corrupted, metric, "resid_pre.*", over=["positions"], progress=False
    )
    figure = draw_patched(patched, ["0", "1", "2"], [str(token) for token in tokens(0, 1, 7)[0].tolist()])
    assert len(figure.axes[0].texts) == 21
    whole = activation_patching(model, clean, corrupted, metric, "resid_pre.*", progress=False)
    with pytest.raises(ValueError, match="expected two dimensions"):
        draw_patched(whole, ["0", "1", "2"])
