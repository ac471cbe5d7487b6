"""GPT-2 against transformers, and against itself: cached, padded, hooked, in half precision, in training."""

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from ftcore.models import GPT2Config, GPT2LMHeadModel, KVCache
from ftcore.models.config import ACTIVATIONS
from tests.helpers.oracle import (
    BOUND,
    LENGTHS,
    VOCAB,
    distance,
    dropout_calls,
    error,
    gpt2_pair,
    gpt2_settings,
    padding,
    positions,
    record_outputs,
    seeds,
    sides,
    tokens,
)

SMALL = {"n_embd": 24, "n_head": 3, "n_layer": 2}
DTYPES = list(BOUND)
HALVES = [torch.bfloat16, torch.float16]

# Scores not divided by sqrt(K): the gradient of the key bias, exactly zero in theory, has the most rounding
# error.
UNSCALED_SCORES = {
    "n_embd": 48,
    "n_head": 1,
    "n_layer": 1,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-6,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}


def theirs(reference: nn.Module, ids: Tensor, mask: Tensor, **options: bool) -> ModelOutput:
    return reference(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, **options
    )


def loss_of(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(logits[mask.bool()], targets[mask.bool()])


# ------------------------------------------------------------------------------------ equal to transformers


@settings(deadline=None, max_examples=15)
@given(drawn=gpt2_settings, seed=seeds)
def test_state_dict(drawn, seed):
    reference, model = gpt2_pair(drawn, seed)
    want = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == want
    assert model.state_dict().keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    assert (model.lm_head.weight is model.transformer.wte.weight) == drawn["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
def test_logits(attention, dtype, drawn, seed, side):
    reference, model = (m.to(dtype) for m in gpt2_pair(drawn, seed, attention))
    with torch.no_grad():
        for length in LENGTHS:
            ids, mask = tokens(seed, 3, length), padding(seed, 3, length, side)
            want, real = theirs(reference, ids, mask).logits, mask.bool()
            assert error(model(ids, mask)[real], want[real]) < BOUND[dtype]
            assert error(model(ids[:1]), want[:1]) < BOUND[dtype]  # the full row, without a mask


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
def test_loss_and_every_gradient(dtype, drawn, seed, side):
    reference, model = (m.to(dtype) for m in gpt2_pair(drawn, seed))
    ids, mask, targets = tokens(seed, 3, 20), padding(seed, 3, 20, side), tokens(seed + 1, 3, 20)
    want = loss_of(theirs(reference, ids, mask).logits, targets, mask)
    got = loss_of(model(ids, mask), targets, mask)
    want.backward()
    got.backward()
    assert abs(got.item() - want.item()) < BOUND[dtype] * want.item()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in reference.named_parameters():
        assert distance(gradients.pop(name), parameter.grad) < BOUND[dtype], name
    assert not gradients


@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds)
def test_loss_from_labels(drawn, seed):
    reference, model = gpt2_pair(drawn, seed)
    labels = tokens(seed, 2, 12)
    labels[1, 8:] = -100
    ids = labels.clamp(min=0)
    want = reference(input_ids=ids, labels=labels, use_cache=False).loss
    got = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert abs(got.item() - want.item()) < BOUND[torch.float32] * want.item()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=8)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
@example(drawn=UNSCALED_SCORES, seed=0, side="left")
def test_weights_after_three_steps_of_adamw(dtype, drawn, seed, side):
    """Adam divides a gradient by its own size, so where the true gradient is zero it steps by rounding noise.

    A key's bias is such a parameter: it adds a constant to all scores of a query, to which softmax is
    invariant. Noise of about 1e-7 in float32 moves a weight by lr * 1e-7 / eps per step. Biases are about
    0.2 here, so float32 needs eps = 1e-3 for three steps to stay well below 1e-5 of that; float64, with
    noise of 1e-16, uses the usual 1e-8.
    """
    reference, model = (m.to(dtype) for m in gpt2_pair(drawn, seed))
    ids, mask, targets = tokens(seed, 3, 20), padding(seed, 3, 20, side), tokens(seed + 1, 3, 20)
    eps = 1e-8 if dtype == torch.float64 else 1e-3
    runs = {reference: lambda: theirs(reference, ids, mask).logits, model: lambda: model(ids, mask)}
    for trained, run in runs.items():
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, eps=eps)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(run(), targets, mask).backward()
            optimizer.step()
    weights = model.state_dict()
    for name, weight in reference.state_dict().items():
        assert distance(weights[name], weight) < 1e-5, name


@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
def test_attention_weights_and_hidden_states(drawn, seed, side):
    reference, model = gpt2_pair(drawn, seed)
    ids, mask = tokens(seed, 3, 20), padding(seed, 3, 20, side)
    blocks = [f"transformer.h.{layer}" for layer in range(drawn["n_layer"])]
    # transformers returns the embeddings, the output of each block but the last, and the final norm.
    stream = ["transformer.drop", *blocks[:-1], "transformer.ln_f"]
    seen = record_outputs(model, *stream, *(f"{block}.attn.softmax" for block in blocks))
    with torch.no_grad():
        want = theirs(reference, ids, mask, output_attentions=True, output_hidden_states=True)
        model(ids, mask)
    real = mask.bool()
    for name, hidden in zip(stream, want.hidden_states, strict=True):
        assert error(seen[name][real], hidden[real]) < BOUND[torch.float32], name
    for name, weights in zip(blocks, want.attentions, strict=True):
        got = seen[f"{name}.attn.softmax"].transpose(1, 2)[real]
        assert error(got, weights.transpose(1, 2)[real]) < BOUND[torch.float32], name


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    values = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    # gelu_fast has sqrt(2 / pi) to ten digits only.
    bound = 1e-10 if name == "gelu_fast" else BOUND[torch.float64]
    assert error(ACTIVATIONS[name]()(values), ACT2FN[name](values)) < bound


@pytest.mark.parametrize("switches", [{"scale_attn_by_inverse_layer_idx": True}, {}])
def test_reorder_and_upcast_in_bfloat16(switches):
    """Both compute scores and softmax in float32 and round to bfloat16 in the same places.

    But one may round up where the other rounds down; the bound is eps times the random walk of 2 x 2
    sublayers with 8 roundings each.
    """
    reference, model = gpt2_pair({**SMALL, **switches, "reorder_and_upcast_attn": True}, 0)
    exact = copy.deepcopy(model).double()
    reference, model = reference.bfloat16(), model.bfloat16()
    ids, mask = tokens(1, 3, 40), padding(1, 3, 40, "left")
    with torch.no_grad():
        got, want = model(ids, mask), theirs(reference, ids, mask).logits
    real, unit = mask.bool(), torch.finfo(torch.bfloat16).eps
    assert error(got[real].float(), want[real].float()) < unit * math.sqrt(4 * 8)
    # Neither is further than that from the truth.
    with torch.no_grad():
        truth = exact(ids, mask)[real]
    for logits in (got, want):
        assert error(logits[real].double(), truth) < unit * math.sqrt(4 * 8)


@pytest.mark.parametrize(
    "changed",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 1e-3},
    ],
)
def test_every_switch_changes_the_logits(changed):
    """Otherwise the comparisons above would not test it."""
    (_, plain), (_, switched) = gpt2_pair(SMALL, 0), gpt2_pair({**SMALL, **changed}, 0)
    ids = tokens(0, 2, 20)
    assert error(switched(ids), plain(ids)) > 2 * BOUND[torch.float32]


# ------------------------------------------------------------------------------------ cache and padding


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=15)
@given(
    drawn=gpt2_settings,
    seed=seeds,
    side=sides,
    chunks=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    masked=st.booleans(),
)
def test_cached_equals_uncached(dtype, drawn, seed, side, chunks, masked):
    _, model = gpt2_pair(drawn, seed)
    model.to(dtype)
    length = sum(chunks)
    ids = tokens(seed, 3, length)
    mask = padding(seed, 3, length, side) if masked else None
    cache, parts, end = KVCache(length + 2), [], 0
    with torch.no_grad():
        whole = model(ids, mask)
        for chunk in chunks:
            start, end = end, end + chunk
            parts.append(model(ids[:, start:end], None if mask is None else mask[:, :end], cache=cache))
            assert cache.length == end
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    assert error(torch.cat(parts, 1)[real], whole[real]) < BOUND[dtype]


@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds, index=st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_decoding_continues_from_reordered_rows(drawn, seed, index):
    _, model = gpt2_pair(drawn, seed)
    ids, mask, new = tokens(seed, 3, 7), padding(seed, 3, 7, "left"), tokens(seed + 1, len(index), 4)
    cache = KVCache(11)
    with torch.no_grad():
        model(ids, mask, cache=cache)
        cache.reorder(torch.tensor(index))
        whole_mask = torch.cat([mask[index], torch.ones_like(new)], 1)
        steps = [model(new[:, i : i + 1], whole_mask[:, : 8 + i], cache=cache) for i in range(4)]
        whole = model(torch.cat([ids[index], new], 1), whole_mask)[:, 7:]
    assert error(torch.cat(steps, 1), whole) < BOUND[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=15)
@given(drawn=gpt2_settings, seed=seeds, side=sides, pads=st.integers(1, 30))
def test_padded_equals_unpadded(dtype, drawn, seed, side, pads):
    _, model = gpt2_pair(drawn, seed)
    model.to(dtype)
    ids = tokens(seed, 1, 12)
    filler = tokens(seed + 1, 1, pads)  # ids under the padding must not matter
    ones, zeros = torch.ones_like(ids), torch.zeros_like(filler)
    parts = [(filler, zeros), (ids, ones)] if side == "left" else [(ids, ones), (filler, zeros)]
    padded, mask = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    with torch.no_grad():
        assert error(model(padded, mask)[mask.bool()], model(ids)[0]) < BOUND[dtype]


def test_explicit_position_ids():
    reference, model = gpt2_pair(SMALL, 0)
    ids, places = tokens(0, 2, 6), torch.tensor([[3, 1, 4, 1, 5, 9]])
    mask = torch.ones_like(ids)  # without one, transformers infers packed sequences from the position ids
    want = reference(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
    assert error(model(ids, position_ids=places), want) < BOUND[torch.float32]


def test_position_ids_follow_left_padding_unlike_the_reference():
    reference, model = gpt2_pair(SMALL, 0)
    ids, mask = tokens(0, 1, 10), torch.tensor([[0] * 4 + [1] * 6])
    alone = model(ids[:, 4:])
    assert error(model(ids, mask)[:, 4:], alone) < BOUND[torch.float32]
    assert error(reference(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 4:], alone) > 1e-2


# ---------------------------------------------------------------------------------------- hooked, dropout


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds, side=sides, masked=st.booleans())
def test_hooked_equals_fused(dtype, drawn, seed, side, masked):
    _, model = gpt2_pair(drawn, seed)
    model.to(dtype)
    hooked = copy.deepcopy(model)
    seen = record_outputs(
        hooked, *(f"transformer.h.{layer}.attn.softmax" for layer in range(drawn["n_layer"]))
    )
    ids, mask, targets = tokens(seed, 3, 15), padding(seed, 3, 15, side), tokens(seed + 1, 3, 15)
    for each in (model, hooked):
        loss_of(each(ids, mask if masked else None), targets, mask).backward()
    assert len(seen) == drawn["n_layer"]
    gradients = dict(hooked.named_parameters())
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, gradients[name].grad) < BOUND[dtype], name
    real = mask.bool() if masked else torch.ones_like(mask).bool()
    with torch.no_grad():
        mask = mask if masked else None
        assert error(model(ids, mask)[real], hooked(ids, mask)[real]) < BOUND[dtype]


@settings(deadline=None, max_examples=10)
@given(drawn=gpt2_settings, seed=seeds, hooked=st.booleans())
def test_dropout_calls(drawn, seed, hooked):
    """The same calls of dropout in the same order on the same shapes, so the same logits and gradients."""
    drawn = {**drawn, "embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}
    reference, model = gpt2_pair(drawn, seed)
    ids, mask, targets = tokens(seed, 3, 9), padding(seed, 3, 9, "right"), tokens(seed + 1, 3, 9)
    if hooked:  # the fused kernel draws random numbers in another order
        record_outputs(model, *(f"transformer.h.{layer}.attn.softmax" for layer in range(drawn["n_layer"])))
    results = []
    runs = {reference: lambda: theirs(reference, ids, mask).logits, model: lambda: model(ids, mask)}
    for each, run in runs.items():
        each.train()
        torch.manual_seed(seed)
        with dropout_calls() as calls:
            logits = run()
        loss_of(logits, targets, mask).backward()
        results.append((calls, logits[mask.bool()]))
    (want_calls, want), (calls, got) = results
    assert calls == want_calls
    assert len(calls) == 1 + 3 * drawn["n_layer"]
    if hooked:
        assert error(got, want) < BOUND[torch.float32]
        gradients = dict(model.named_parameters())
        for name, parameter in reference.named_parameters():
            assert distance(gradients[name].grad, parameter.grad) < BOUND[torch.float32], name
    model.eval()
    with dropout_calls() as calls:
        model(ids)
    assert calls == []


def test_hooks_on_attention_dropout_fire_and_it_may_be_replaced():
    _, model = gpt2_pair({**SMALL, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}, 0)
    ids = tokens(0, 2, 6)
    want = model.train()(ids)
    seen = record_outputs(model, "transformer.h.1.attn.attn_dropout")
    assert error(model(ids), want) < BOUND[torch.float32]
    assert seen["transformer.h.1.attn.attn_dropout"].shape == (2, 3, 6, 6)
    model.transformer.h[0].attn.attn_dropout = nn.Identity()
    assert error(model(ids), want) < BOUND[torch.float32]


# ------------------------------------------------------------------------------------------ half precision


@pytest.mark.parametrize("mode", ["bfloat16", "float16", "autocast bfloat16", "autocast float16"])
@pytest.mark.parametrize("hooked", [False, True])
def test_half_precision(mode, hooked):
    """Close to float64 and never NaN, including rows of padding alone and left padding."""
    _, model = gpt2_pair(SMALL, 0)
    dtype = getattr(torch, mode.removeprefix("autocast "))
    ids, mask = tokens(0, 4, 20), padding(0, 4, 20, "left")
    mask[2] = 0
    mask[3, -5:] = 0
    with torch.no_grad():
        truth = model.double()(ids, mask)[mask.bool()]
    model.to(torch.float32 if mode.startswith("autocast") else dtype)
    if hooked:
        record_outputs(model, "transformer.h.0.attn.softmax", "transformer.h.1.attn.softmax")
    with torch.autocast("cpu", dtype, enabled=mode.startswith("autocast")):
        logits = model(ids, mask)
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        with torch.no_grad():
            cache = KVCache(20)
            steps = [model(ids[:, i : i + 5], mask[:, : i + 5], cache=cache) for i in range(0, 20, 5)]
    loss.backward()
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    bound = torch.finfo(dtype).eps * math.sqrt(4 * 8)  # 4 sublayers, 8 roundings in each
    assert error(logits[mask.bool()].double(), truth) < bound
    assert error(torch.cat(steps, 1)[mask.bool()].double(), truth) < bound


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, VOCAB]], f"token id {VOCAB}, but the embedding has rows 0 to {VOCAB - 1}"),
        ([[-100, 1]], "token id -100, but the embedding has rows 0"),
        ([1, 2], r"int64 of shape \(2,\), expected whole numbers of shape \(rows, tokens\)"),
        ([[1.0, 2.0]], r"float32 of shape \(1, 2\), expected whole numbers"),
        ([[1] * 161], "161 tokens, but n_positions is 160"),
    ],
)
def test_invalid_ids_raise_before_any_kernel(ids, message):
    _, model = gpt2_pair(SMALL, 0)
    with mock.patch.object(F, "embedding", side_effect=AssertionError("a kernel ran")):
        with pytest.raises(ValueError, match=message):
            model(torch.tensor(ids))
        cache = KVCache(200)
        cache.advance(1)
        if "token id" in message:  # the second chunk of a prompt is checked too
            with pytest.raises(ValueError, match=message):
                model(torch.tensor(ids), cache=cache)


def test_more_than_n_positions_with_a_cache_raises():
    _, model = gpt2_pair({**SMALL, "n_positions": 8}, 0)
    cache = KVCache(20)
    model(tokens(0, 1, 8), cache=cache)
    with pytest.raises(ValueError, match="9 tokens, but n_positions is 8"):
        model(tokens(0, 1, 1), cache=cache)
    assert cache.length == 8


@pytest.mark.parametrize("covered", [1, 3, 5])
def test_a_mask_of_the_new_tokens_alone_raises(covered):
    _, model = gpt2_pair(SMALL, 0)
    cache = KVCache(10)
    model(tokens(0, 2, 5), torch.ones(2, 5), cache=cache)
    with pytest.raises(ValueError, match=f"attention_mask covers {covered} positions, expected 6"):
        model(tokens(0, 2, 1), torch.ones(2, covered), cache=cache)


def test_cross_attention_raises():
    with pytest.raises(ValueError, match="add_cross_attention is true"):
        GPT2Config(add_cross_attention=True)


# --------------------------------------------------------------------------------- initialization, copies


def test_initialization():
    """The standard error of a standard deviation is 1 / sqrt(2 n); allow six of them."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=500, n_positions=128, n_embd=96, n_layer=3, n_head=4)
    model = GPT2LMHeadModel(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            is_norm_weight = "ln_" in name and name.endswith("weight")
            assert bool((weight == (1 if is_norm_weight else 0)).all()), name
            continue
        want = 0.02 / math.sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
        assert abs(weight.std().item() / want - 1) < 6 / math.sqrt(2 * weight.numel()), name
        assert abs(weight.mean().item()) < 6 * want / math.sqrt(weight.numel()), name
    assert model.training


def test_forward_is_lm_head_of_last_hidden():
    _, model = gpt2_pair(SMALL, 0)
    ids, mask = tokens(0, 2, 5), padding(0, 2, 5, "left")
    hidden = model.last_hidden(ids, mask)
    assert hidden.shape == (2, 5, 24)
    assert torch.equal(model(ids, mask), model.lm_head(hidden))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_tied_and_independent(copied):
    _, model = gpt2_pair(SMALL, 0)
    twin = copied(model)
    ids = tokens(0, 2, 5)
    want = model(ids)
    assert torch.equal(twin(ids), want)
    assert twin.lm_head.weight is twin.transformer.wte.weight
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert torch.equal(model(ids), want)


def test_meta_device():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())  # GPT-2 small
    assert sum(weight.numel() for weight in model.parameters()) == 124_439_808  # as published
    assert model.lm_head.weight is model.transformer.wte.weight
    _, small = gpt2_pair(SMALL, 0)
    small = small.to("meta")
    small.tie_weights()  # moving to meta unties parameters
    assert small.lm_head.weight is small.transformer.wte.weight


@pytest.mark.study  # half a minute of compiling
def test_it_compiles_in_one_graph_except_for_the_id_check(monkeypatch):
    monkeypatch.setattr("ftcore.models.gpt2.check_ids", lambda *_: None)  # reads values: a graph break
    _, model = gpt2_pair(SMALL, 0)
    ids, mask = tokens(0, 2, 20), padding(0, 2, 20, "left")
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert error(compiled(ids, mask), model(ids, mask)) < BOUND[torch.float32]
