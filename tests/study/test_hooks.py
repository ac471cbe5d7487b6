"""record and patch: what they show is what transformers shows, and what they change is all that changes."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore.decoding import generate
from ftcore.lora.lora import add_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel, KVCache, T5Config, T5ForConditionalGeneration
from ftcore.models.attention import Softmax, has_hooks
from ftcore.study import patch, randomize_weights, record
from ftcore.study.names import short_names
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from tests.helpers.oracle import (
    BOUND,
    VOCAB,
    error,
    float64_reference,
    gpt2_pair,
    gpt2_settings,
    padding,
    positions,
    seeds,
    sides,
    t5_pair,
    t5_settings,
    tokens,
)

DTYPES = list(BOUND)
GPT2 = {"n_embd": 24, "n_head": 3, "n_layer": 3, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
T5 = {"d_model": 24, "d_kv": 4, "d_ff": 40, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3}
T5 |= {"dropout_rate": 0.0}
FAMILIES = ["gpt2", "t5"]


def tiny(family: str, seed: int = 0) -> GPT2LMHeadModel | T5ForConditionalGeneration:
    if family == "gpt2":
        config = GPT2Config(vocab_size=VOCAB, n_positions=32, bos_token_id=1, eos_token_id=1, **GPT2)
        return randomize_weights(GPT2LMHeadModel(config), seed).eval()
    config = T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **T5)
    return randomize_weights(T5ForConditionalGeneration(config), seed).eval()


def run(model: nn.Module, seed: int = 0, rows: int = 2, length: int = 7) -> Tensor:
    """Logits for random tokens; T5 gets sources of another length."""
    ids = tokens(seed, rows, length)
    if isinstance(model, GPT2LMHeadModel):
        return model(ids)
    return model(tokens(seed + 1, rows, length + 2), decoder_input_ids=ids)


def untouched(model: nn.Module) -> bool:
    """No hook on any module, and attention takes the fused kernel again."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    kinds += ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    left = [kind for module in model.modules() for kind in kinds if getattr(module, kind)]
    watched = [module for module in model.modules() if isinstance(module, Softmax) and has_hooks(module)]
    return not left and not watched


def kind_of(name: str) -> str:
    return name.rpartition(".")[0]


@pytest.fixture(params=FAMILIES)
def model(request):
    """A tiny model, which has no hooks left when the test is done."""
    model = tiny(request.param)
    yield model
    assert untouched(model)


KINDS = {family: {kind_of(name) for name in short_names(tiny(family))} for family in FAMILIES}

# ------------------------------------------------------------------------------------ equal to transformers


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=5)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
def test_gpt2s_hidden_states_and_attentions_are_transformers(dtype, drawn, seed, side):
    reference, model = (m.to(dtype) for m in gpt2_pair(drawn, seed))
    ids, mask = tokens(seed, 3, 9), padding(seed, 3, 9, side)
    options = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    with torch.no_grad():
        want = reference(input_ids=ids, attention_mask=mask, position_ids=positions(mask), **options)
        with record(model, "resid_*.*", "pattern.*", "transformer.ln_f") as acts:
            model(ids, mask)
    real = mask.bool()
    *streams, last = want.hidden_states
    for layer, hidden in enumerate(streams):
        assert error(acts[f"resid_pre.{layer}"][real], hidden[real]) < BOUND[dtype]
        if layer:
            assert torch.equal(acts[f"resid_post.{layer - 1}"], acts[f"resid_pre.{layer}"])
        weights, theirs = acts[f"pattern.{layer}"], want.attentions[layer]
        assert error(weights.transpose(1, 2)[real], theirs.transpose(1, 2)[real]) < BOUND[dtype]
    assert error(acts["transformer.ln_f"][real], last[real]) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=5)
@given(drawn=t5_settings, seed=seeds, side=sides)
def test_t5s_hidden_states_and_attentions_are_transformers(dtype, drawn, seed, side):
    reference, model = (m.to(dtype) for m in t5_pair(drawn, seed))
    source, mask, target = tokens(seed, 3, 9), padding(seed, 3, 9, side), tokens(seed + 1, 3, 7)
    options = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    with torch.no_grad(), float64_reference():
        want = reference(input_ids=source, attention_mask=mask, decoder_input_ids=target, **options)
        with record(model, "*.resid_*.*", "*.pattern.*", "*.final_layer_norm") as acts:
            model(source, mask, target)
    real = {"encoder": mask.bool(), "decoder": torch.ones_like(target).bool()}
    for stack, states in (
        ("encoder", want.encoder_hidden_states),
        ("decoder", want.decoder_hidden_states),
    ):
        names = [f"{stack}.resid_pre.{layer}" for layer in range(len(states) - 1)]
        for name, hidden in zip([*names, f"{stack}.final_layer_norm"], states, strict=True):
            assert error(acts[name][real[stack]], hidden[real[stack]]) < BOUND[dtype], name
    for kind, stack, attentions in (
        ("encoder.pattern", "encoder", want.encoder_attentions),
        ("decoder.pattern", "decoder", want.decoder_attentions),
        ("cross.pattern", "decoder", want.cross_attentions),
    ):
        for layer, theirs in enumerate(attentions):
            got = acts[f"{kind}.{layer}"].transpose(1, 2)[real[stack]]
            assert error(got, theirs.transpose(1, 2)[real[stack]]) < BOUND[dtype], (kind, layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_while_generating_is_transformers(family):
    reference, model = (
        gpt2_pair(GPT2, 1) if family == "gpt2" else t5_pair(T5 | {"num_layers": 3}, 1)
    )  # its cache needs equal depths
    ids = tokens(1, 2, 5)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    theirs = reference.generate(
        ids, **options, use_cache=True, output_attentions=True, return_dict_in_generate=True
    )
    with record(model, "*pattern.*" if family == "gpt2" else "*.pattern.*") as acts:
        assert torch.equal(generate(model, ids, **options), theirs.sequences)
    kinds = {"pattern": "attentions"} if family == "gpt2" else {
        "decoder.pattern": "decoder_attentions",
        "cross.pattern": "cross_attentions",
    }  # fmt: skip
    for kind, attribute in kinds.items():
        for layer in range(3):
            steps = [step[layer] for step in getattr(theirs, attribute)]  # each (B, H, T, S so far)
            keys = steps[-1].shape[-1]
            want = torch.cat([F.pad(step, (0, keys - step.shape[-1])) for step in steps], 2)
            assert error(acts[f"{kind}.{layer}"], want) < BOUND[torch.float32]


# ------------------------------------------------------------------------------------------- while generating

SEARCHES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "temperature": 3.0},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "temperature": 3.0},
}


@pytest.mark.parametrize("search", SEARCHES)
@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_gpt2s_steps_are_one_pass_over_what_was_read(search, seed):
    model = tiny("gpt2", seed).double()
    ids, mask = tokens(seed, 2, 6), padding(seed, 2, 6, "left")
    names = [*(f"{kind}.*" for kind in KINDS["gpt2"]), "transformer.wte@in"]
    torch.manual_seed(seed)
    with record(model, *names) as steps:
        out = generate(model, ids, mask, max_new_tokens=5, pad_token_id=0, **SEARCHES[search])
    read = steps["transformer.wte@in"]  # (R, T)
    rows_per_source = len(read) // len(ids)
    mask = F.pad(mask.repeat_interleave(rows_per_source, 0), (0, read.shape[1] - 6), value=1)
    if search == "greedy" and not (out == 1).any():
        assert torch.equal(read, out[:, :-1])
    assert torch.equal(read[:, :6], ids.repeat_interleave(rows_per_source, 0))
    with torch.no_grad(), record(model, *names) as at_once:
        model(read, mask)
    same_at_tokens(steps, at_once, mask)


@pytest.mark.parametrize("search", SEARCHES)
@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_t5s_steps_are_one_pass_over_what_was_read(search, seed):
    model = tiny("t5", seed).double()
    ids, mask = tokens(seed, 2, 6), padding(seed, 2, 6, "left")
    names = [*(f"{kind}.*" for kind in KINDS["t5"] if "encoder" not in kind), "decoder.embed_tokens@in"]
    torch.manual_seed(seed)
    with record(model, *names, "encoder.embed_tokens@in", "encoder") as steps:
        generate(model, ids, mask, max_new_tokens=5, pad_token_id=0, **SEARCHES[search])
    read = steps["decoder.embed_tokens@in"]  # (R, T)
    assert torch.equal(steps["encoder.embed_tokens@in"], ids)
    with torch.no_grad(), record(model, *names) as at_once:
        model.decode(read, steps["encoder"], mask)  # N rows a source
    same_at_tokens(steps, at_once, torch.ones_like(read))
    repeated = (tensor.repeat_interleave(len(read) // 2, 0) for tensor in (ids, mask))
    with torch.no_grad(), record(model, *names) as row_by_row:
        model(*repeated, decoder_input_ids=read)
    same_at_tokens(steps, row_by_row, torch.ones_like(read))


def same_at_tokens(got: Any, want: Any, mask: Tensor) -> None:
    """Equal to rounding wherever a token stands; where one is -inf, both are."""
    real = mask.bool()
    assert list(want) == [name for name in got if name in want]
    for name, expected in want.items():
        along = 2 if expected.dim() == 4 else 1
        assert got[name].shape == expected.shape, name
        ours, theirs = (tensor.movedim(along, 1)[real] for tensor in (got[name], expected))
        hidden = theirs == -torch.inf
        assert torch.equal(ours == -torch.inf, hidden), name
        if theirs.is_floating_point():
            assert error(ours[~hidden], theirs[~hidden]) < BOUND[torch.float64], name
        else:
            assert torch.equal(ours, theirs), name


def test_a_pass_replaces_the_one_before(model):
    name = next(name for name in short_names(model) if "resid_pre" in name)
    with record(model, name, "lm_head") as acts:
        run(model, seed=1, rows=3, length=5)
        logits = run(model, seed=2)
    assert torch.equal(acts["lm_head"], logits)
    assert len(acts[name]) == 2


def test_two_texts_with_a_cache_each_are_not_mixed():
    model, ids = tiny("gpt2"), tokens(0, 2, 6)
    with record(model, "transformer.wte@in") as acts:
        first, second = KVCache(8), KVCache(8)
        model(ids[:1, :3], cache=first)
        model(ids[:, :2], cache=second)
        model(ids[:1, 3:5], cache=first)
        assert torch.equal(acts["transformer.wte@in"], ids[:1, 3:5])  # what was read since the other text
        model(ids[:1, 5:], cache=first)
        assert torch.equal(acts["transformer.wte@in"], ids[:1, 3:])


def test_rows_of_a_cache_that_is_reordered_take_their_past_along():
    model, ids = tiny("gpt2"), tokens(0, 3, 4)
    cache = KVCache(8)
    model(ids[:, :1], cache=cache)  # before anybody looks
    cache.reorder(torch.tensor([2, 0, 1]))
    with record(model, "transformer.wte@in") as outer:
        model(ids[:, 1:2], cache=cache)
        cache.reorder(torch.tensor([0, 0, 2, 1]))
        with record(model, "transformer.wte@in") as inner:
            model(ids[[2, 2, 0, 1], 2:3], cache=cache)
            cache.reorder(torch.tensor([3, 1]))
            model(ids[:2, 3:], cache=cache)
    want = torch.stack([ids[1, 1], ids[1, 2], ids[0, 3], ids[0, 1], ids[2, 2], ids[1, 3]]).view(2, 3)
    assert torch.equal(outer["transformer.wte@in"], want)
    assert torch.equal(inner["transformer.wte@in"], want[:, 1:])


def test_steps_that_are_no_rows_of_a_text_are_refused():
    model = tiny("t5")
    name = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    with record(model, name) as acts:
        generate(model, tokens(0, 1, 4), max_new_tokens=3, pad_token_id=0)
    with pytest.raises(ValueError, match=f"{name} has the shape .* cannot be joined"):
        acts[name]


def test_what_generate_showed_can_take_part_in_training(model):
    name = next(name for name in short_names(model) if "resid_pre" in name)
    with record(model, name) as acts:
        generate(model, tokens(0, 2, 4), max_new_tokens=3, pad_token_id=0)
    weight = torch.ones(24, requires_grad=True)
    (acts[name] * weight).sum().backward()
    torch.testing.assert_close(weight.grad, acts[name].sum((0, 1)))


# --------------------------------------------------------------------------------------------------- recorded


def test_activations_are_a_mapping(model):
    names = [name for name in short_names(model) if kind_of(name).endswith("z")]
    with record(model, *names, "lm_head") as acts:
        assert not acts and repr(acts) == "nothing yet"
        with pytest.raises(KeyError, match="not run that far"):
            acts["lm_head"]
        logits = run(model)
    assert list(acts) == [*names, "lm_head"] and len(acts) == len(names) + 1
    assert acts["lm_head"] is acts["lm_head"] and torch.equal(acts["lm_head"], logits)
    assert f"lm_head {tuple(logits.shape)}" in repr(acts)
    for short in names:
        assert acts[short_names(model)[short]] is acts[short]
    with pytest.raises(KeyError, match=r"lm_heat was not recorded, only .*lm_head"):
        acts["lm_heat"]


def test_nothing_that_happens_later_changes_what_was_recorded():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    inputs = torch.randn(2, 3)
    with torch.no_grad(), record(module, "0", "1", "0@in") as acts:
        module(inputs)
        inputs.zero_()
    assert (acts["0"] < 0).any()
    assert torch.equal(acts["0"].relu(), acts["1"])
    assert torch.equal(module(acts["0@in"]), acts["1"])


def test_a_name_is_needed(model):
    with pytest.raises(ValueError, match="needs the name"), record(model):
        pass
    with pytest.raises(ValueError, match="nothing called 'nothing'"), record(model, "lm_head", "nothing"):
        pass


def test_modules_that_give_several_tensors_count_by_the_first_and_cannot_be_patched():
    module = nn.Sequential(nn.LSTM(3, 3))
    with record(module, "0") as acts:
        output, _ = module(torch.ones(2, 3))
    assert torch.equal(acts["0"], output)
    with pytest.raises(ValueError, match="a LSTM gives a tuple"), patch(module, "0", lambda x: x):
        module(torch.ones(2, 3))


def test_lora_layers_are_seen_whole():
    model = tiny("t5")
    add_lora(model, targets=["q"])
    with record(model, "encoder.block.0.layer.0.SelfAttention.q*", "encoder.z.0") as acts:
        run(model)
    assert list(acts) == ["encoder.block.0.layer.0.SelfAttention.q", "encoder.z.0"]
    assert acts["encoder.block.0.layer.0.SelfAttention.q"].shape == (2, 9, 12)


# --------------------------------------------------------------------------------------------- with gradients


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=1)
@given(seed=seeds)
def test_gradients_are_those_of_a_leaf_in_the_activations_place(family, seed):
    model = tiny(family, seed).double()
    names = list(short_names(model))
    with record(model, *names, grad=True) as acts:
        run(model, seed).square().mean().backward()
    with record(model, *names, grad=True) as again:
        want = torch.autograd.grad(run(model, seed).square().mean(), list(again.values()))
    for name, gradient in zip(names, want, strict=True):
        assert torch.equal(acts[name].grad, gradient), name
        leaf = acts[name].detach().requires_grad_()
        with patch(model, name, leaf):
            run(model, seed).square().mean().backward()
        assert error(leaf.grad, gradient) < BOUND[torch.float64], name


def test_gradients_where_all_weights_are_frozen(model):
    name = next(name for name in short_names(model) if "resid_pre.0" in name)
    model.double()
    with record(model, name, grad=True) as want:
        run(model).square().mean().backward()
    model.requires_grad_(False)
    with record(model, name, grad=True) as got:
        run(model).square().mean().backward()
    assert error(got[name].grad, want[name].grad) < BOUND[torch.float64]


def test_gradients_with_gradient_checkpointing(model):
    names = list(short_names(model))
    with record(model, *names, grad=True) as want:
        run(model).square().mean().backward()
    checkpoint_blocks(model)
    with record(model, *names, grad=True) as got:
        run(model).square().mean().backward()
        for name in names:
            assert torch.equal(got[name], want[name]), name
            assert torch.equal(got[name].grad, want[name].grad), name


def test_what_can_have_no_gradient_is_named(model):
    switched_off = pytest.raises(ValueError, match="lm_head has none, gradients are switched off")
    with torch.no_grad(), switched_off, record(model, "lm_head", grad=True):
        run(model)
    name = "transformer.wte@in" if isinstance(model, GPT2LMHeadModel) else "encoder.embed_tokens@in"
    no_floats = pytest.raises(ValueError, match=f"{name} has none, it is torch.int64")
    with no_floats, record(model, name, grad=True):
        run(model)


# ---------------------------------------------------------------------------------------------------- patched


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=2)
@given(seed=seeds)
@torch.no_grad()
def test_an_activation_in_its_own_place_changes_no_bit(family, seed):
    model = tiny(family, seed)
    plain = run(model, seed)
    for name in short_names(model):
        with record(model, name) as acts:
            want = run(model, seed)
        with patch(model, name, acts[name]):
            assert torch.equal(run(model, seed), want), name
        if "pattern" not in name and "scores" not in name:  # those take the textbook path
            assert torch.equal(plain, want), name
        with patch(model, name, torch.zeros_like(acts[name])):
            assert not torch.equal(run(model, seed), want), name


@pytest.mark.parametrize("stack", ["", "encoder.", "decoder.", "cross."])
@settings(deadline=None, max_examples=2)
@given(seed=seeds)
@torch.no_grad()
def test_a_clean_residual_stream_restores_the_clean_logits(stack, seed):
    """All that comes after the stream of one layer depends on that stream alone, and on the other stack."""
    model = tiny("t5" if stack else "gpt2", seed)
    clean, corrupted, other = (tokens(seed + number, 2, 6) for number in range(3))

    def logits(ids: Tensor) -> Tensor:
        if not stack:
            return model(ids)
        source, target = (ids, other) if stack == "encoder." else (other, ids)
        return model(source, decoder_input_ids=target)

    want = logits(clean)
    assert not torch.equal(logits(corrupted), want)
    for name in short_names(model):
        if name.startswith(f"{stack}resid"):
            with record(model, name) as acts:
                logits(clean)
            with patch(model, name, acts[name]):
                assert torch.equal(logits(corrupted), want), name


@settings(deadline=None, max_examples=3)
@given(layer=st.integers(0, 2), seed=seeds)
def test_a_residual_stream_from_elsewhere_is_a_run_from_that_state(layer, seed):
    model, state = tiny("gpt2", seed), torch.randn(2, 6, 24)
    with torch.no_grad(), patch(model, f"resid_post.{layer}", state):
        got = model(tokens(seed, 2, 6))
    hidden = state
    with torch.no_grad():
        for block in model.transformer.h[layer + 1 :]:
            hidden = block(hidden, None, None)
        assert torch.equal(got, model.lm_head(model.transformer.ln_f(hidden)))


def test_what_a_norm_reads_is_not_the_stream_beside_it():
    model, ids = tiny("gpt2"), tokens(0, 2, 6)
    names = ["resid_mid.1", "mlp.1", "resid_post.1"]
    with torch.no_grad():
        with record(model, *names) as clean:
            model(ids)
        with record(model, *names) as read, patch(model, "transformer.h.1.ln_2@in", lambda x: x.roll(1, 0)):
            model(ids)
        with record(model, *names) as stream, patch(model, "resid_mid.1", lambda x: x.roll(1, 0)):
            model(ids)
    assert torch.equal(read["mlp.1"], stream["mlp.1"])
    assert error(stream["mlp.1"], clean["mlp.1"].roll(1, 0)) < BOUND[torch.float32]
    assert torch.equal(read["resid_post.1"], clean["resid_mid.1"] + read["mlp.1"])
    assert torch.equal(stream["resid_post.1"], clean["resid_mid.1"].roll(1, 0) + stream["mlp.1"])


def test_one_head_of_a_pattern(model):
    prefix = "" if isinstance(model, GPT2LMHeadModel) else "cross."

    def without_head_1(weights: Tensor) -> Tensor:  # (B, H, T, S)
        weights[:, 1] = 0
        return weights

    with torch.no_grad(), record(model, f"{prefix}z.1") as before:
        logits = run(model)
    knocked_out = patch(model, f"{prefix}pattern.1", without_head_1)
    with torch.no_grad(), record(model, f"{prefix}z.1") as after, knocked_out:
        assert not torch.equal(run(model), logits)
    before, after = (acts[f"{prefix}z.1"].unflatten(-1, (3, -1)) for acts in (before, after))  # (B, T, H, K)
    assert not after[:, :, 1].any()
    for head in (0, 2):
        assert error(after[:, :, head], before[:, :, head]) < BOUND[torch.float32]


def test_patches_apply_from_the_outside_in_and_are_recorded(model):
    with torch.no_grad():
        logits = run(model)
        with (
            record(model, "lm_head") as outside,
            patch(model, "lm_head", lambda x: x + 1),
            patch(model, "lm_head", lambda x: x * 2),
            record(model, "lm_head") as inside,
        ):
            result = run(model)
        assert torch.equal(result, (logits + 1) * 2)
        assert torch.equal(outside["lm_head"], result) and torch.equal(inside["lm_head"], result)
        with patch(model, "lm_head@in", torch.zeros(2, 7, 24)), record(model, "lm_head@in") as acts:
            assert not run(model).any()
        assert not acts["lm_head@in"].any()


def test_a_pattern_patches_every_place_that_it_matches():
    model = tiny("gpt2")
    no_attention = patch(model, "attn.*", torch.zeros_like)
    with torch.no_grad(), record(model, "attn.*", "resid_*.*") as acts, no_attention:
        run(model)
    for layer in range(3):
        assert not acts[f"attn.{layer}"].any()
        assert torch.equal(acts[f"resid_mid.{layer}"], acts[f"resid_pre.{layer}"])


def test_patches_work_on_every_step_of_generate(model):
    name = "pattern.0" if isinstance(model, GPT2LMHeadModel) else "cross.pattern.0"

    def first_key(weights: Tensor) -> Tensor:
        return torch.zeros_like(weights).index_fill(3, torch.tensor([0]), 1.0)

    for search in SEARCHES.values():
        with record(model, name) as acts, patch(model, name, first_key):
            generate(model, tokens(0, 2, 4), max_new_tokens=4, pad_token_id=0, **search)
        assert (acts[name][..., 0] == 1).all() and not acts[name][..., 1:].any()


def test_a_patch_learns(model):
    """A tensor that requires gradients is one more parameter; the caller's tensor is not written to."""
    name = next(name for name in short_names(model) if "resid_pre.1" in name)
    shift = nn.Linear(24, 24)
    steering = torch.randn(24, requires_grad=True)
    with patch(model, name, shift), patch(model, name, lambda hidden: hidden + steering):
        run(model).square().mean().backward()
    assert steering.grad.any() and shift.weight.grad.any()


def test_a_patch_comes_in_the_activations_own_dtype():
    model = tiny("gpt2").double()
    with record(model, "resid_pre.1") as acts, patch(model, "resid_pre.1", torch.ones(2, 7, 24)):
        run(model)
    assert acts["resid_pre.1"].dtype == torch.float64 and (acts["resid_pre.1"] == 1).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 7, 5), r"lm_head@in: .* has the shape \(2, 7, 5\), expected \(2, 7, 24\)"),
        (lambda hidden: hidden[:, :1], r"the new tensor has the shape \(2, 1, 24\), expected \(2, 7, 24\)"),
        (lambda hidden: None, "the function gave a NoneType, expected a tensor"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(model, value, message):
    with pytest.raises(ValueError, match=message), patch(model, "lm_head@in", value):
        run(model)


def test_a_function_that_runs_what_it_patches_is_told_so(model):
    refused = pytest.raises(ValueError, match="record what it needs")
    with refused, patch(model, "lm_head", lambda logits: run(model)):
        run(model)


# --------------------------------------------------------------------------------------- nothing is left over


def fail(_: Tensor) -> Tensor:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("where", ["in the block", "on the way in", "on the way out"])
def test_nothing_is_left_after_an_exception(model, where):
    with torch.no_grad():
        want = run(model)
        purpose = pytest.raises(RuntimeError, match="on purpose")
        with purpose, record(model, *short_names(model)) as acts, patch(model, "lm_head", torch.zeros_like):
            assert not untouched(model)
            if where == "in the block":
                fail(want)
            broken = "lm_head@in" if where == "on the way in" else "lm_head"
            with patch(model, broken, fail), record(model, "lm_head"):
                run(model)
        assert untouched(model)
        assert len(acts) == (0 if where == "in the block" else len(short_names(model)))
        assert torch.equal(run(model), want)


def test_blocks_end_in_any_order(model):
    """As they do when generators or notebooks hold them open."""
    first, second = record(model, "lm_head"), record(model, "lm_head", "lm_head@in")
    acts = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    logits = run(model)
    second.__exit__(None, None, None)
    assert not acts[0] and torch.equal(acts[1]["lm_head"], logits)


def test_a_copy_made_inside_is_not_watched_and_is_free_afterwards(model):
    name = next(name for name in short_names(model) if "pattern" in name)
    with record(model, name, "lm_head") as acts, patch(model, "lm_head", torch.zeros_like):
        copied = copy.deepcopy(model)
        twice = copy.deepcopy(copied)
        assert run(copied).any() and run(twice).any()
        assert not acts
        assert not run(model).any()
    assert untouched(copied) and untouched(twice)
    assert torch.equal(run(copied), run(model))


def test_a_model_moved_inside_is_still_watched(model):
    with record(model, "lm_head") as acts:
        model.double()
        run(model)
    assert acts["lm_head"].dtype == torch.float64


def test_the_fused_kernel_runs_where_nobody_watches():
    model = tiny("gpt2")
    with record(model, "resid_*.*", "z.*", "mlp.*", "attn.*", "neurons.*", "pattern.1"):
        watched = [has_hooks(block.attn.softmax) for block in model.transformer.h]
    assert watched == [False, True, False]
    assert untouched(model)
