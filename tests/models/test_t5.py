"""T5 against transformers, and against itself: cached, padded, hooked, in half precision, in training."""

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.t5 import modeling_t5
from transformers.utils import ModelOutput

from ftcore.models import KVCache, T5Config, T5ForConditionalGeneration
from ftcore.models.t5 import (
    T5LayerNorm,
    clamp_overflow,
    relative_position_bias,
    relative_position_bucket,
)
from tests.helpers.oracle import (
    BOUND,
    LENGTHS,
    VOCAB,
    distance,
    dropout_calls,
    error,
    float64_reference,
    padding,
    record_outputs,
    seeds,
    sides,
    t5_pair,
    t5_settings,
    tokens,
)

SMALL = {"d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
DTYPES = list(BOUND)


def theirs(
    reference: nn.Module,
    source: Tensor,
    mask: Tensor | None,
    target: Tensor,
    target_mask: Tensor | None = None,
    **options: bool,
) -> ModelOutput:
    with float64_reference():
        return reference(
            input_ids=source,
            attention_mask=mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
            **options,
        )


def softmaxes(model: T5ForConditionalGeneration) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith(".softmax")]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


# ------------------------------------------------------------------------------------ equal to transformers


@settings(deadline=None, max_examples=15)
@given(drawn=t5_settings, seed=seeds)
def test_state_dict(drawn, seed):
    reference, model = t5_pair(drawn, seed)
    want = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == want
    assert model.state_dict().keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    assert model.encoder.embed_tokens is model.decoder.embed_tokens is model.shared
    assert (model.lm_head.weight is model.shared.weight) == drawn["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, side=sides, target_side=st.sampled_from(["left", "right", None]))
def test_logits(attention, dtype, drawn, seed, side, target_side):
    reference, model = (m.to(dtype) for m in t5_pair(drawn, seed, attention))
    with torch.no_grad():
        for length in LENGTHS:
            source, mask = tokens(seed, 3, 150 - length), padding(seed, 3, 150 - length, side)
            target, target_mask, real = tokens(seed + 1, 3, length), None, torch.ones(3, length).bool()
            if target_side:
                target_mask = padding(seed + 1, 3, length, target_side)
                real = target_mask.bool()
            want = theirs(reference, source, mask, target, target_mask).logits
            got = model(source, mask, target, target_mask)
            assert error(got[real], want[real]) < BOUND[dtype]
            # The full source, without a mask.
            assert error(model(source[:1], None, target[:1]), want[:1]) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, side=sides)
def test_encoder_output(dtype, drawn, seed, side):
    reference, model = (m.to(dtype) for m in t5_pair(drawn, seed))
    source, mask = tokens(seed, 3, 30), padding(seed, 3, 30, side)
    with torch.no_grad(), float64_reference():
        want = reference.encoder(input_ids=source, attention_mask=mask).last_hidden_state[mask.bool()]
        assert error(model.encode(source, mask)[mask.bool()], want) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, side=sides)
def test_loss_and_every_gradient(dtype, drawn, seed, side):
    reference, model = (m.to(dtype) for m in t5_pair(drawn, seed))
    source, mask, labels = tokens(seed, 3, 25), padding(seed, 3, 25, side), tokens(seed + 1, 3, 20)
    labels[1, 15:] = -100
    with float64_reference():
        want = reference(input_ids=source, attention_mask=mask, labels=labels).loss
    got = loss_of(model(source, mask, model.shift_right(labels)), labels)
    want.backward()
    got.backward()
    assert abs(got.item() - want.item()) < BOUND[dtype] * want.item()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in reference.named_parameters():
        assert distance(gradients.pop(name), parameter.grad) < BOUND[dtype], name
    assert not gradients


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=8)
@given(drawn=t5_settings, seed=seeds, side=sides)
def test_weights_after_three_steps_of_adamw(dtype, drawn, seed, side):
    """See the test of GPT-2 for the choice of eps."""
    reference, model = (m.to(dtype) for m in t5_pair(drawn, seed))
    source, mask, target = tokens(seed, 3, 25), padding(seed, 3, 25, side), tokens(seed + 1, 3, 20)
    runs = {
        reference: lambda: theirs(reference, source, mask, target).logits,
        model: lambda: model(source, mask, target),
    }
    for trained, run in runs.items():
        optimizer = torch.optim.AdamW(
            trained.parameters(), lr=1e-3, eps=1e-8 if dtype == torch.float64 else 1e-3
        )
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(run(), target.roll(-1, 1)).backward()
            optimizer.step()
    weights = model.state_dict()
    for name, weight in reference.state_dict().items():
        assert distance(weights[name], weight) < 1e-5, name


@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, side=sides)
def test_attention_weights_and_hidden_states(drawn, seed, side):
    reference, model = t5_pair(drawn, seed)
    source, mask, target = tokens(seed, 3, 25), padding(seed, 3, 25, side), tokens(seed + 1, 3, 20)
    # transformers returns the embeddings, the output of each block but the last, and the final norm.
    encoder_stream = [f"encoder.block.{layer}" for layer in range(drawn["num_layers"] - 1)]
    decoder_stream = [f"decoder.block.{layer}" for layer in range(drawn["num_decoder_layers"] - 1)]
    seen = record_outputs(
        model,
        *encoder_stream,
        *decoder_stream,
        "encoder.final_layer_norm",
        "decoder.final_layer_norm",
        *softmaxes(model),
    )
    with torch.no_grad():
        want = theirs(reference, source, mask, target, output_attentions=True, output_hidden_states=True)
        model(source, mask, target)
    bound, real, every = BOUND[torch.float32], mask.bool(), torch.ones(3, 20).bool()
    streams = [
        ([*encoder_stream, "encoder.final_layer_norm"], want.encoder_hidden_states[1:], real),
        ([*decoder_stream, "decoder.final_layer_norm"], want.decoder_hidden_states[1:], every),
    ]
    for names, states, read in streams:
        for name, hidden in zip(names, states, strict=True):
            assert error(seen[name][read], hidden[read]) < bound, name
    maps = [
        ("encoder.block.{}.layer.0.SelfAttention.softmax", want.encoder_attentions, real),
        ("decoder.block.{}.layer.0.SelfAttention.softmax", want.decoder_attentions, every),
        ("decoder.block.{}.layer.1.EncDecAttention.softmax", want.cross_attentions, every),
    ]
    for name, attentions, read in maps:
        for layer, weights in enumerate(attentions):
            got = seen[name.format(layer)].transpose(1, 2)[read]  # the queries that are tokens
            assert error(got, weights.transpose(1, 2)[read]) < bound, name.format(layer)


@pytest.mark.parametrize(
    "changed",
    [
        {"feed_forward_proj": "gated-silu"},
        {"scale_decoder_outputs": False},
        {"layer_norm_epsilon": 1e-3},
        {"relative_attention_max_distance": 9},
    ],
)
def test_every_switch_changes_the_logits(changed):
    """Otherwise the comparisons above would not test it."""
    base = {**SMALL, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}
    (_, plain), (_, switched) = t5_pair(base, 0), t5_pair({**base, **changed}, 0)
    ids = tokens(0, 2, 20)
    assert error(switched(ids, None, ids), plain(ids, None, ids)) > 2 * BOUND[torch.float32]


# ---------------------------------------------------------------------------------------- relative positions


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_buckets", [4, 5, 7, 8, 9, 10, 16, 17, 18, 19, 31, 32, 64])
def test_buckets(bidirectional, num_buckets):
    """All distances and maximum distances. With 9, 10, 17, 18 or 19 buckets some distances are so close to a
    bucket's edge that a float64 logarithm would choose another bucket.
    """
    distances = torch.arange(-300, 301)
    for max_distance in [*range(num_buckets // 2 + 1, 161), 256, 300, 512, 1000]:
        want = modeling_t5.T5Attention._relative_position_bucket(
            distances, bidirectional, num_buckets, max_distance
        )
        got = relative_position_bucket(
            distances, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
        )
        assert torch.equal(got, want)
        assert got.min() >= 0
        assert got.max() < num_buckets


def test_buckets_by_hand():
    """Key minus query, 32 buckets up to 128. Bidirectional buckets differ by side; else the future is 0."""
    distances = torch.tensor([-200, -127, -16, -8, -7, -1, 0, 1, 7, 8, 200])
    both = relative_position_bucket(distances, bidirectional=True, num_buckets=32, max_distance=128)
    assert both.tolist() == [15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 31]
    back = relative_position_bucket(distances, bidirectional=False, num_buckets=32, max_distance=128)
    assert back.tolist() == [31, 31, 16, 8, 7, 1, 0, 0, 0, 0, 0]


@settings(deadline=None, max_examples=20)
@given(drawn=t5_settings, seed=seeds, queries=st.integers(1, 30), past=st.integers(0, 120))
def test_relative_position_bias(drawn, seed, queries, past):
    reference, model = t5_pair(drawn, seed)
    for stack, bidirectional in (("encoder", True), ("decoder", False)):
        name = f"{stack}.block.0.layer.0.SelfAttention"
        want = reference.get_submodule(name).compute_bias(queries, past + queries, past_seen_tokens=past)
        table = model.get_submodule(f"{name}.relative_attention_bias")
        got = relative_position_bias(
            table,
            queries,
            past + queries,
            drawn["relative_attention_max_distance"],
            bidirectional=bidirectional,
        )
        assert torch.equal(got, want)


def test_one_table_per_stack_and_none_for_cross_attention():
    _, model = t5_pair(SMALL, 0)
    tables = [name for name, _ in model.named_parameters() if "relative_attention_bias" in name]
    assert tables == [
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        for stack in ("encoder", "decoder")
    ]


# ------------------------------------------------------------------------------- cache, beams and padding


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=15)
@given(
    drawn=t5_settings,
    seed=seeds,
    side=sides,
    chunks=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    target_side=st.sampled_from(["left", "right", None]),
)
def test_cached_equals_uncached(dtype, drawn, seed, side, chunks, target_side):
    _, model = t5_pair(drawn, seed)
    model.to(dtype)
    length = sum(chunks)
    source, mask, target = tokens(seed, 3, 15), padding(seed, 3, 15, side), tokens(seed + 1, 3, length)
    target_mask = padding(seed + 1, 3, length, target_side) if target_side else None
    cache, parts, end = KVCache(length + 2), [], 0
    with torch.no_grad():
        output = model.encode(source, mask)
        whole = model.decode(target, output, mask, target_mask)
        assert torch.equal(whole, model(source, mask, target, target_mask))
        for chunk in chunks:
            start, end = end, end + chunk
            seen = None if target_mask is None else target_mask[:, :end]
            parts.append(model.decode(target[:, start:end], output, mask, seen, cache=cache))
            assert cache.length == end
    real = torch.ones_like(target).bool() if target_mask is None else target_mask.bool()
    assert error(torch.cat(parts, 1)[real], whole[real]) < BOUND[dtype]


def test_cross_attention_keys_are_computed_once():
    _, model = t5_pair(SMALL, 0)
    source, target, cache = tokens(0, 2, 9), tokens(1, 2, 4), KVCache(4)
    output = model.encode(source)
    calls = []
    model.get_submodule("decoder.block.1.layer.1.EncDecAttention.k").register_forward_hook(
        lambda *_: calls.append(1)
    )
    for step in range(4):
        model.decode(target[:, step : step + 1], output, cache=cache)
    assert len(calls) == 1


@pytest.mark.parametrize("cached", [False, True])
@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, side=sides, beams=st.integers(1, 4), hooked=st.booleans())
def test_beams_share_the_row_of_their_source(cached, drawn, seed, side, beams, hooked):
    _, model = t5_pair(drawn, seed)
    if hooked:
        record_outputs(model, *softmaxes(model))
    source, mask, target = tokens(seed, 3, 12), padding(seed, 3, 12, side), tokens(seed + 1, 3 * beams, 5)
    with torch.no_grad():
        output = model.encode(source, mask)
        copies, mask_copies = (t.repeat_interleave(beams, 0) for t in (output, mask))
        want = model.decode(target, copies, mask_copies)
        if cached:
            cache = KVCache(5)
            steps = (slice(0, 2), slice(2, 3), slice(3, 5))
            got = torch.cat([model.decode(target[:, step], output, mask, cache=cache) for step in steps], 1)
            assert cache.layer(0).cross[0].shape[0] == 3  # never copied
        else:
            got = model.decode(target, output, mask)
    assert error(got, want) < BOUND[torch.float32]


@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, data=st.data())
def test_rows_and_sources_may_be_selected_while_decoding(drawn, seed, data):
    """As in beam search: beams are reordered within their source, and finished sources are dropped."""
    _, model = t5_pair(drawn, seed)
    sources, beams = 3, 2
    source, mask = tokens(seed, sources, 12), padding(seed, sources, 12, "right")
    target, new = tokens(seed + 1, sources * beams, 4), tokens(seed + 2, sources * beams, 3)
    stay = data.draw(st.lists(st.sampled_from(range(sources)), min_size=1, unique=True))
    rows = [b * beams + data.draw(st.integers(0, beams - 1)) for b in stay for _ in range(beams)]
    new, cache = new[: len(rows)], KVCache(7)
    with torch.no_grad():
        output = model.encode(source, mask)
        model.decode(target, output, mask, cache=cache)
        cache.reorder(torch.tensor(rows))
        cache.select_sources(torch.tensor(stay))
        steps = [model.decode(new[:, i : i + 1], output[stay], mask[stay], cache=cache) for i in range(3)]
        whole = model.decode(torch.cat([target[rows], new], 1), output[stay], mask[stay])[:, 4:]
    assert error(torch.cat(steps, 1), whole) < BOUND[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=15)
@given(drawn=t5_settings, seed=seeds, side=sides, target_side=sides, pads=st.integers(1, 30))
def test_padded_equals_unpadded(dtype, drawn, seed, side, target_side, pads):
    _, model = t5_pair(drawn, seed)
    model.to(dtype)

    def padded(ids: Tensor, where: str) -> tuple[Tensor, Tensor]:
        filler = tokens(seed + 2, 1, pads)  # ids under the padding must not matter
        parts = [(filler, torch.zeros_like(filler)), (ids, torch.ones_like(ids))]
        wide, mask = zip(*(parts if where == "left" else reversed(parts)), strict=True)
        return torch.cat(wide, 1), torch.cat(mask, 1)

    source, target = tokens(seed, 1, 12), tokens(seed + 1, 1, 9)
    (wide_source, mask), (wide_target, target_mask) = padded(source, side), padded(target, target_side)
    with torch.no_grad():
        got = model(wide_source, mask, wide_target, target_mask)[target_mask.bool()]
        assert error(got, model(source, None, target)[0]) < BOUND[dtype]


# ---------------------------------------------------------------------------------------- hooked, dropout


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, side=sides, masked=st.booleans())
def test_hooked_equals_fused(dtype, drawn, seed, side, masked):
    _, model = t5_pair(drawn, seed)
    model.to(dtype)
    hooked = copy.deepcopy(model)
    seen = record_outputs(hooked, *softmaxes(model))
    source, target = tokens(seed, 3, 15), tokens(seed + 1, 3, 12)
    mask = padding(seed, 3, 15, side) if masked else None
    results = [each(source, mask, target) for each in (model, hooked)]
    assert len(seen) == drawn["num_layers"] + 2 * drawn["num_decoder_layers"]
    assert error(*(logits.detach() for logits in results)) < BOUND[dtype]
    for logits in results:
        loss_of(logits, target.roll(-1, 1)).backward()
    gradients = dict(hooked.named_parameters())
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, gradients[name].grad) < BOUND[dtype], name


@settings(deadline=None, max_examples=10)
@given(drawn=t5_settings, seed=seeds, hooked=st.booleans())
def test_dropout_calls(drawn, seed, hooked):
    """The same calls of dropout in the same order on the same shapes, so the same logits and gradients."""
    reference, model = t5_pair({**drawn, "dropout_rate": 0.2}, seed)
    source, mask, target = tokens(seed, 3, 9), padding(seed, 3, 9, "right"), tokens(seed + 1, 3, 7)
    if hooked:  # the fused kernel draws random numbers in another order
        record_outputs(model, *softmaxes(model))
    results = []
    runs = {
        reference: lambda: theirs(reference, source, mask, target).logits,
        model: lambda: model(source, mask, target),
    }
    for each, run in runs.items():
        each.train()
        torch.manual_seed(seed)
        with dropout_calls() as calls:
            logits = run()
        loss_of(logits, target.roll(-1, 1)).backward()
        results.append((calls, logits.detach()))
    (want_calls, want), (calls, got) = results
    assert calls == want_calls
    # Per stack: embeddings, final norm. Per attention: weights, residual branch. Per feed-forward layer:
    # before wo, residual branch.
    assert len(calls) == 4 + 4 * drawn["num_layers"] + 6 * drawn["num_decoder_layers"]
    if hooked:
        assert error(got, want) < BOUND[torch.float32]
        gradients = dict(model.named_parameters())
        for name, parameter in reference.named_parameters():
            assert distance(gradients[name].grad, parameter.grad) < BOUND[torch.float32], name
    model.eval()
    with dropout_calls() as calls:
        model(source, mask, target)
    assert calls == []


def test_hooks_on_attention_dropout_fire_and_it_may_be_replaced():
    _, model = t5_pair({**SMALL, "dropout_rate": 0.0}, 0)
    source, target = tokens(0, 2, 6), tokens(1, 2, 4)
    want = model.train()(source, None, target)
    names = [name.replace(".softmax", ".dropout") for name in softmaxes(model)]
    seen = record_outputs(model, *names)
    assert error(model(source, None, target), want) < BOUND[torch.float32]
    assert list(seen) == names
    for name in names:
        model.set_submodule(name, nn.Identity())
    assert error(model(source, None, target), want) < BOUND[torch.float32]


# ------------------------------------------------------------------------------------------ half precision


def halved(model: T5ForConditionalGeneration, dtype: torch.dtype) -> T5ForConditionalGeneration:
    """As loaded by `load_model`: under float16, `wo` stays float32."""
    model.to(dtype)
    for name, module in model.named_modules():
        if dtype == torch.float16 and name.endswith(".wo"):
            module.float()
    return model


@pytest.mark.parametrize("proj", ["relu", "gated-gelu"])
@pytest.mark.parametrize("mode", ["bfloat16", "float16", "autocast bfloat16", "autocast float16"])
@pytest.mark.parametrize("hooked", [False, True])
def test_half_precision(proj, mode, hooked):
    """Close to float64 and never NaN, including a source of padding alone and left padding."""
    _, model = t5_pair({**SMALL, "feed_forward_proj": proj}, 0)
    dtype = getattr(torch, mode.removeprefix("autocast "))
    source, mask, target = tokens(0, 4, 20), padding(0, 4, 20, "left"), tokens(1, 4, 12)
    mask[2] = 0
    target_mask = padding(1, 4, 12, "left")
    target_mask[3] = 0
    with torch.no_grad():
        truth = model.double()(source, mask, target, target_mask)
    model = model.float() if mode.startswith("autocast") else halved(model, dtype)
    if hooked:
        record_outputs(model, *softmaxes(model))
    with torch.autocast("cpu", dtype, enabled=mode.startswith("autocast")):
        logits = model(source, mask, target, target_mask)
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        with torch.no_grad():
            cache, output = KVCache(12), model.encode(source, mask)
            steps = [
                model.decode(target[:, i : i + 4], output, mask, target_mask[:, : i + 4], cache=cache)
                for i in range(0, 12, 4)
            ]
    loss.backward()
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    real = target_mask.bool()
    real[2] = False  # undefined without a source
    bound = torch.finfo(dtype).eps * math.sqrt(13 * 8)  # 13 sublayers, 8 roundings in each
    assert error(logits[real].double(), truth[real]) < bound
    assert error(torch.cat(steps, 1)[real].double(), truth[real]) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_theirs(dtype):
    """Rounded, clamped and widened in the same places."""
    reference, model = t5_pair(SMALL, 0)
    reference, model = halved(reference, dtype), halved(model, dtype)
    source, mask, target = tokens(0, 3, 20), padding(0, 3, 20, "left"), tokens(1, 3, 12)
    with torch.no_grad():
        want = reference(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        got = model(source, mask, target)
    assert got.dtype == want.dtype
    assert error(got.float(), want.float()) < torch.finfo(dtype).eps * math.sqrt(13 * 8)


def test_float16_overflow_in_feed_forward():
    """The feed-forward sums exceed 65504; in float32 they return to range with the next norm."""
    reference, model = t5_pair({**SMALL, "feed_forward_proj": "gated-gelu"}, 0)
    with torch.no_grad():
        for each in (reference, model):
            for name, weight in each.named_parameters():
                if name.endswith((".wi_0.weight", ".wi_1.weight", ".wo.weight")):
                    weight.mul_(50)
    source, target = tokens(0, 3, 20), tokens(1, 3, 12)
    with torch.no_grad():
        truth = model.double()(source, None, target)
    reference, model = halved(reference, torch.float16), halved(model.float(), torch.float16)
    seen = record_outputs(model, "encoder.block.0.layer.1.DenseReluDense")
    with torch.no_grad():
        logits = model(source, None, target)
        want = reference(input_ids=source, decoder_input_ids=target).logits
    assert seen["encoder.block.0.layer.1.DenseReluDense"].dtype == torch.float32
    assert seen["encoder.block.0.layer.1.DenseReluDense"].abs().max() > torch.finfo(torch.float16).max
    assert logits.isfinite().all()
    bound = torch.finfo(torch.float16).eps * math.sqrt(13 * 8)
    assert error(logits.float(), want.float()) < bound
    assert error(logits.double(), truth) < bound


def test_float16_infinities_are_clamped():
    """The sums of attention's output projection, which is float16, exceed 65504 too."""
    reference, model = t5_pair(SMALL, 0)
    name = "encoder.block.0.layer.0.SelfAttention.o"
    with torch.no_grad():
        for each in (reference, model):
            each.get_submodule(name).weight.mul_(60_000)
    reference, model = halved(reference, torch.float16), halved(model, torch.float16)
    seen = record_outputs(model, name)
    source, target = tokens(0, 3, 20), tokens(1, 3, 12)
    with torch.no_grad():
        got = model(source, None, target)
        want = reference(input_ids=source, decoder_input_ids=target).logits
    assert seen[name].isinf().any()
    assert got.isfinite().all()
    assert error(got.float(), want.float()) < torch.finfo(torch.float16).eps * math.sqrt(13 * 8)


def test_wo_stays_in_float32_under_float16_autocast():
    _, model = t5_pair(SMALL, 0)
    seen = record_outputs(
        model, "encoder.block.0.layer.1.DenseReluDense", "encoder.block.0.layer.1.DenseReluDense.wi"
    )
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        model.encode(tokens(0, 1, 5))
    assert [output.dtype for output in seen.values()] == [torch.float16, torch.float32]


@pytest.mark.parametrize("place", [None, "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_clamping(place, dtype):
    largest = torch.finfo(torch.float16).max
    hidden = torch.tensor([[1.0, -2.0, 65000.0, -65504.0]]).to(dtype)
    if place:
        hidden[0, 0] = float(place)
    clamped = clamp_overflow(hidden)
    if dtype != torch.float16:
        assert clamped is hidden
    elif place is None:
        assert torch.equal(clamped, hidden)
    else:  # headroom for the next sublayer
        assert clamped.abs().max() == torch.tensor(largest - 1000).half()
        assert clamped[0, 0].sign() == hidden[0, 0].sign()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norm(dtype):
    torch.manual_seed(0)
    norm = T5LayerNorm(8, 1e-6).to(dtype)
    hidden = 300 * torch.randn(5, 8, dtype=torch.float64)  # whose squares overflow float16
    hidden = hidden.to(dtype)
    want = hidden.double() / (hidden.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(hidden).dtype == dtype
    assert error(norm(hidden).double(), want) < 2 * torch.finfo(dtype).eps
    if dtype in (torch.float16, torch.bfloat16):  # a float32 residual stream returns to the weights' dtype
        assert norm(hidden.float()).dtype == dtype


# -------------------------------------------------------------------------------- labels, errors


@settings(deadline=None, max_examples=20)
@given(seed=seeds, start=st.integers(0, 5), pad=st.integers(0, 5))
def test_shift_right(seed, start, pad):
    reference, model = t5_pair({**SMALL, "decoder_start_token_id": start, "pad_token_id": pad}, 0)
    labels = tokens(seed, 3, 8)
    labels[1, 5:] = -100
    labels[2] = -100
    before = labels.clone()
    assert torch.equal(model.shift_right(labels), reference._shift_right(labels))
    assert torch.equal(labels, before)
    assert model.shift_right(labels)[2].tolist() == [start] + 7 * [pad]


@pytest.mark.parametrize("missing", ["decoder_start_token_id", "pad_token_id"])
def test_shift_right_needs_both_ids(missing):
    config = T5Config(
        **SMALL, vocab_size=VOCAB, **{"decoder_start_token_id": 0, "pad_token_id": 0, missing: None}
    )
    with pytest.raises(ValueError, match=f"config.json has no {missing}"):
        T5ForConditionalGeneration(config).shift_right(tokens(0, 1, 3))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, VOCAB]], f"token id {VOCAB}, but the embedding has rows 0 to {VOCAB - 1}"),
        ([[-100, 1]], "token id -100, but the embedding has rows 0"),
        ([1, 2], r"int64 of shape \(2,\), expected whole numbers of shape \(rows, tokens\)"),
        ([[1.0, 2.0]], r"float32 of shape \(1, 2\), expected whole numbers"),
    ],
)
def test_invalid_ids_raise_before_any_kernel(ids, message):
    _, model = t5_pair(SMALL, 0)
    output = model.encode(tokens(0, 1, 4))
    cache = KVCache(9)
    model.decode(tokens(0, 1, 2), output, cache=cache)
    with mock.patch.object(F, "embedding", side_effect=AssertionError("a kernel ran")):
        with pytest.raises(ValueError, match=message):
            model.encode(torch.tensor(ids))
        with pytest.raises(ValueError, match=message):
            model.decode(torch.tensor(ids), output)
        with pytest.raises(ValueError, match=message):
            model.decode(torch.tensor(ids), output, cache=cache)


def test_masks_that_do_not_cover_the_keys_raise():
    _, model = t5_pair(SMALL, 0)
    source, target = tokens(0, 2, 6), tokens(1, 2, 3)
    output, ones = model.encode(source), torch.ones
    with pytest.raises(ValueError, match="attention_mask covers 1 positions, expected 6"):
        model.encode(source, ones(2, 1))
    with pytest.raises(ValueError, match="attention_mask covers 1 positions, expected 6"):
        model.decode(target, output, ones(2, 1))
    with pytest.raises(ValueError, match="attention_mask covers 1 positions, expected 3"):
        model.decode(target, output, None, ones(2, 1))
    cache = KVCache(9)
    model.decode(target, output, cache=cache)
    with pytest.raises(ValueError, match="attention_mask covers 1 positions, expected 4"):
        model.decode(target[:, :1], output, None, ones(2, 1), cache)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_rows_that_are_not_a_multiple_of_the_sources_raise(rows):
    _, model = t5_pair(SMALL, 0)
    with pytest.raises(ValueError, match=f"{rows} decoder rows for 2 sources"):
        model.decode(tokens(0, rows, 3), model.encode(tokens(0, 2, 4)))


def test_missing_decoder_input_ids_raise():
    _, model = t5_pair(SMALL, 0)
    with pytest.raises(ValueError, match=r"decoder_input_ids are missing.*shift_right\(labels\)"):
        model(tokens(0, 1, 3))


# --------------------------------------------------------------------------------- initialization, copies


@pytest.mark.parametrize("proj", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_initialization(proj, tied, factor):
    """The standard error of a standard deviation is 1 / sqrt(2 n); allow six of them."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=500, d_model=64, d_kv=12, d_ff=100, num_layers=2, num_heads=5, feed_forward_proj=proj,
        tie_word_embeddings=tied, initializer_factor=factor,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    fan_in = {"q": 64 * 12, "k": 64, "v": 64, "o": 5 * 12, "relative_attention_bias": 64}
    fan_in |= {"wi": 64, "wi_0": 64, "wi_1": 64, "wo": 100, "shared": 1, "lm_head": 64}
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert bool((weight == 1).all()), name
            continue
        want = factor * fan_in[name.split(".")[-2]] ** -0.5
        assert abs(weight.std().item() / want - 1) < 6 / math.sqrt(2 * weight.numel()), name
        assert abs(weight.mean().item()) < 6 * want / math.sqrt(weight.numel()), name
    assert model.training


def test_forward_is_lm_head_of_last_hidden():
    _, model = t5_pair(SMALL, 0)
    source, mask, target = tokens(0, 2, 5), padding(0, 2, 5, "left"), tokens(1, 2, 3)
    hidden = model.last_hidden(source, mask, target)
    assert hidden.shape == (2, 3, 24)
    assert torch.equal(model(source, mask, target), model.lm_head(hidden))
    assert torch.equal(model.decode_hidden(target, model.encode(source, mask), mask), hidden)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_tied_and_independent(copied):
    _, model = t5_pair(SMALL, 0)
    twin = copied(model)
    ids = tokens(0, 2, 5)
    want = model(ids, None, ids)
    assert torch.equal(twin(ids, None, ids), want)
    assert twin.lm_head.weight is twin.shared.weight is twin.encoder.embed_tokens.weight
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert torch.equal(model(ids, None, ids), want)


def test_meta_device():
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config())  # T5-small
    assert sum(weight.numel() for weight in model.parameters()) == 60_506_624  # as published
    assert model.lm_head.weight is model.shared.weight
    _, small = t5_pair(SMALL, 0)
    small = small.to("meta")
    small.tie_weights()  # moving to meta unties parameters
    assert small.lm_head.weight is small.shared.weight is small.decoder.embed_tokens.weight


@pytest.mark.study  # half a minute of compiling
def test_it_compiles_in_one_graph_except_for_the_id_check(monkeypatch):
    monkeypatch.setattr("ftcore.models.t5.check_ids", lambda *_: None)  # reads values: a graph break
    _, model = t5_pair(SMALL, 0)
    source, mask, target = tokens(0, 2, 20), padding(0, 2, 20, "left"), tokens(1, 2, 9)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert error(compiled(source, mask, target), model(source, mask, target)) < BOUND[torch.float32]
