"""record equals transformers and a single pass; patch changes nothing else; the logit lens."""

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
from ftcore.models import GPT2LMHeadModel, KVCache
from ftcore.models.attention import has_hooks
from ftcore.study import logit_lens, patch, record
from ftcore.study.names import kind_of, short_names
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from tests.helpers.oracle import (
    BOUND,
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
from tests.helpers.tiny_models import FAMILIES, GPT2, T5, has_no_hooks, random_inputs, tiny

DTYPES = list(BOUND)


def run(model: nn.Module, *args: int, **sizes: int) -> Tensor:
    """Logits for random inputs."""
    family = "gpt2" if isinstance(model, GPT2LMHeadModel) else "t5"
    return model(**random_inputs(family, *args, **sizes))


def without_block(name: str) -> str:
    return name.rpartition(".")[0]


@pytest.fixture(params=FAMILIES)
def model(request):
    """A tiny model; the test must not leave hooks on it."""
    model = tiny(request.param)
    yield model
    assert has_no_hooks(model)


PER_SOURCE = ("cross.k", "cross.v")  # (B, S, H * K)


def patchable(model: nn.Module) -> list[str]:
    """Short names except those that can only be recorded."""
    only_recorded = ("encoder.embed", "decoder.embed")
    return [name for name in short_names(model) if kind_of(name) != "head_out" and name not in only_recorded]


def with_gradient(model: nn.Module) -> list[str]:
    """Short names of tensors that are part of the computation."""
    derived = ("q", "k", "v") if isinstance(model, GPT2LMHeadModel) else ()
    return [name for name in short_names(model) if kind_of(name) not in ("head_out", *derived)]


# ------------------------------------------------------------------------------------ equal to transformers


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=5)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
def test_gpt2_hidden_states_and_attentions_equal_transformers(dtype, drawn, seed, side):
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
def test_t5_hidden_states_and_attentions_equal_transformers(dtype, drawn, seed, side):
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
def test_attention_during_generation_equals_transformers(family):
    reference, model = (
        gpt2_pair(GPT2, 1) if family == "gpt2" else t5_pair(T5 | {"num_layers": 3}, 1)
    )  # the reference's cache requires equal depths
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
            steps = [step[layer] for step in getattr(theirs, attribute)]  # each (B, H, T, S of that step)
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
def test_gpt2_steps_equal_a_single_pass(search, seed):
    model = tiny("gpt2", seed).double()
    ids, mask = tokens(seed, 2, 6), padding(seed, 2, 6, "left")
    names = ["all", "transformer.wte@in"]
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
    assert_equal_at_tokens(steps, at_once, mask)


@pytest.mark.parametrize("search", SEARCHES)
@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_t5_steps_equal_a_single_pass(search, seed):
    model = tiny("t5", seed).double()
    ids, mask = tokens(seed, 2, 6), padding(seed, 2, 6, "left")
    names = [name for name in short_names(model) if "encoder" not in name] + ["decoder.embed_tokens@in"]
    torch.manual_seed(seed)
    with record(model, *names, "encoder.embed_tokens@in", "encoder") as steps:
        generate(model, ids, mask, max_new_tokens=5, pad_token_id=0, **SEARCHES[search])
    read = steps["decoder.embed_tokens@in"]  # (R, T)
    assert torch.equal(steps["encoder.embed_tokens@in"], ids)
    with torch.no_grad(), record(model, *names) as at_once:
        model.decode(read, steps["encoder"], mask)  # N rows per source
    assert_equal_at_tokens(steps, at_once, torch.ones_like(read))
    repeated = (tensor.repeat_interleave(len(read) // 2, 0) for tensor in (ids, mask))
    with torch.no_grad(), record(model, *names) as row_by_row:
        model(*repeated, decoder_input_ids=read)
    assert_equal_at_tokens(steps, row_by_row, torch.ones_like(read))


def assert_equal_at_tokens(got: Any, want: Any, mask: Tensor) -> None:
    """Equal up to rounding, except at padding; -inf equals -inf."""
    real = mask.bool()
    assert list(want) == [name for name in got if name in want]
    for name, expected in want.items():
        along = 2 if expected.dim() == 4 else 1
        if name == "pos_embed":
            expected = expected.expand_as(got[name])  # the same in every row
        assert got[name].shape == expected.shape, name
        both = (tensor.movedim(along, 1) for tensor in (got[name], expected))
        ours, theirs = both if without_block(name) in PER_SOURCE else (tensor[real] for tensor in both)
        hidden = theirs == -torch.inf
        assert torch.equal(ours == -torch.inf, hidden), name
        if theirs.is_floating_point():
            assert error(ours[~hidden], theirs[~hidden]) < BOUND[torch.float64], name
        else:
            assert torch.equal(ours, theirs), name


def test_pass_replaces_the_previous_one(model):
    name = next(name for name in short_names(model) if "resid_pre" in name)
    with record(model, name, "lm_head") as acts:
        run(model, seed=1, rows=3, length=5)
        logits = run(model, seed=2)
    assert torch.equal(acts["lm_head"], logits)
    assert len(acts[name]) == 2


def test_interleaved_caches_are_kept_apart():
    model, ids = tiny("gpt2"), tokens(0, 2, 6)
    with record(model, "transformer.wte@in") as acts:
        first, second = KVCache(8), KVCache(8)
        model(ids[:1, :3], cache=first)
        model(ids[:, :2], cache=second)
        model(ids[:1, 3:5], cache=first)
        assert torch.equal(acts["transformer.wte@in"], ids[:1, 3:5])  # since the other cache was used
        model(ids[:1, 5:], cache=first)
        assert torch.equal(acts["transformer.wte@in"], ids[:1, 3:])


def test_recording_follows_cache_reordering():
    model, ids = tiny("gpt2"), tokens(0, 3, 4)
    cache = KVCache(8)
    model(ids[:, :1], cache=cache)  # not recorded
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


def test_steps_without_token_dimension_cannot_be_joined():
    model = tiny("t5")
    name = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    with record(model, name) as acts:
        generate(model, tokens(0, 1, 4), max_new_tokens=3, pad_token_id=0)
    with pytest.raises(ValueError, match=f"{name} has the shape .* cannot be joined"):
        acts[name]


def test_activations_of_generate_support_autograd(model):
    name = next(name for name in short_names(model) if "resid_pre" in name)
    with record(model, name) as acts:
        generate(model, tokens(0, 2, 4), max_new_tokens=3, pad_token_id=0)
    weight = torch.ones(24, requires_grad=True)
    (acts[name] * weight).sum().backward()
    torch.testing.assert_close(weight.grad, acts[name].sum((0, 1)))


# --------------------------------------------------------------------------------------------------- recorded


def test_activations_are_a_mapping(model):
    names = [name for name in short_names(model) if without_block(name).endswith("z")]
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


def test_recordings_are_copies():
    torch.manual_seed(0)  # some outputs are negative
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    inputs = torch.randn(2, 3)
    with torch.no_grad(), record(module, "0", "1", "0@in") as acts:
        module(inputs)
        inputs.zero_()
    assert (acts["0"] < 0).any()
    assert torch.equal(acts["0"].relu(), acts["1"])
    assert torch.equal(module(acts["0@in"]), acts["1"])


def test_missing_and_unknown_names(model):
    with pytest.raises(ValueError, match="needs the name"), record(model):
        pass
    with pytest.raises(ValueError, match="nothing called 'nothing'"), record(model, "lm_head", "nothing"):
        pass


def test_tuple_outputs_record_the_first_tensor_and_cannot_be_patched():
    module = nn.Sequential(nn.LSTM(3, 3))
    with record(module, "0") as acts:
        output, _ = module(torch.ones(2, 3))
    assert torch.equal(acts["0"], output)
    with pytest.raises(ValueError, match="a LSTM returns a tuple"), patch(module, "0", lambda x: x):
        module(torch.ones(2, 3))


def test_lora_layers_are_recorded_as_one_module():
    model = tiny("t5")
    add_lora(model, targets=["q"])
    with record(model, "encoder.block.0.layer.0.SelfAttention.q*", "encoder.z.0") as acts:
        run(model)
    assert list(acts) == ["encoder.block.0.layer.0.SelfAttention.q", "encoder.z.0"]
    assert acts["encoder.block.0.layer.0.SelfAttention.q"].shape == (2, 9, 12)


# ------------------------------------------------------------------------------------- computed by hand


@settings(deadline=None, max_examples=3)
@given(seed=seeds)
@torch.no_grad()
def test_short_names_of_gpt2_equal_values_computed_by_hand(seed):
    model, ids = tiny("gpt2", seed).double(), tokens(seed, 2, 7)
    with record(model, "all") as acts:
        logits = model(ids)
    body = model.transformer
    assert torch.equal(acts["embed"], body.wte.weight[ids])
    assert torch.equal(acts["pos_embed"], body.wpe.weight[None, :7])
    assert error(acts["embed"] + acts["pos_embed"], acts["resid_pre.0"]) < BOUND[torch.float64]
    for i, block in enumerate(body.h):
        norms = {"norm_attn": (block.ln_1, "resid_pre"), "norm_mlp": (block.ln_2, "resid_mid")}
        for name, (norm, stream) in norms.items():
            hidden = acts[f"{stream}.{i}"]
            normed = (hidden - hidden.mean(-1, keepdim=True)) / (
                hidden.var(-1, keepdim=True, correction=0) + norm.eps
            ).sqrt()
            assert error(acts[f"{name}.{i}"], normed * norm.weight + norm.bias) < BOUND[torch.float64]
        qkv = acts[f"norm_attn.{i}"] @ block.attn.c_attn.weight + block.attn.c_attn.bias
        q, k, v = (acts[f"{name}.{i}"] for name in "qkv")
        assert error(torch.cat([q, k, v], -1), qkv) < BOUND[torch.float64]
        assert_heads_add_up(acts, "", i, block.attn.c_proj.weight, block.attn.c_proj.bias)
        scores = (
            q.unflatten(-1, (3, 8)).transpose(1, 2) @ k.unflatten(-1, (3, 8)).permute(0, 2, 3, 1) / 8**0.5
        )
        visible = torch.ones(7, 7).tril().bool().expand_as(scores)
        assert error(scores[visible], acts[f"scores.{i}"][visible]) < BOUND[torch.float64]
    assert error(acts["norm_final"] @ model.lm_head.weight.T, logits) < BOUND[torch.float64]


@settings(deadline=None, max_examples=3)
@given(seed=seeds)
@torch.no_grad()
def test_short_names_of_t5_equal_values_computed_by_hand(seed):
    model, source, target = tiny("t5", seed).double(), tokens(seed, 2, 9), tokens(seed + 1, 2, 7)
    with record(model, "all") as acts:
        model(source, decoder_input_ids=target)

    def rms_norm(hidden: Tensor, norm: Any) -> Tensor:
        return hidden / (hidden.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight

    stacks = {"encoder": (model.encoder, source), "decoder": (model.decoder, target)}
    for stack, (part, ids) in stacks.items():
        last = f"{stack}.resid_post.{len(part.block) - 1}"
        assert torch.equal(acts[f"{stack}.embed"], model.shared.weight[ids])
        assert torch.equal(acts[f"{stack}.embed"], acts[f"{stack}.resid_pre.0"])
        assert (
            error(acts[f"{stack}.norm_final"], rms_norm(acts[last], part.final_layer_norm))
            < BOUND[torch.float64]
        )
        for i, block in enumerate(part.block):
            layers = {stack: (block.layer[0], f"{stack}.resid_pre")}
            if stack == "decoder":
                layers["cross"] = (block.layer[1], "decoder.resid_mid")
            for prefix, (layer, stream) in layers.items():
                attention = getattr(layer, "EncDecAttention" if prefix == "cross" else "SelfAttention")
                normed = rms_norm(acts[f"{stream}.{i}"], layer.layer_norm)
                assert error(acts[f"{prefix}.norm_attn.{i}"], normed) < BOUND[torch.float64]
                read = acts["encoder.norm_final"] if prefix == "cross" else normed
                for name, states in (("q", normed), ("k", read), ("v", read)):
                    expected = states @ getattr(attention, name).weight.T
                    assert error(acts[f"{prefix}.{name}.{i}"], expected) < BOUND[torch.float64]
                assert_heads_add_up(acts, f"{prefix}.", i, attention.o.weight.T, 0)
            stream = acts[f"{'cross' if stack == 'decoder' else stack}.resid_mid.{i}"]
            expected = rms_norm(stream, block.layer[-1].layer_norm)
            assert error(acts[f"{stack}.norm_mlp.{i}"], expected) < BOUND[torch.float64]


def assert_heads_add_up(acts: Any, prefix: str, block: int, weight: Tensor, bias: Any) -> None:
    """head_out (B, H, T, D) is z of a head times its rows of `weight` (H * K, D); the sum is the output."""
    z, heads = acts[f"{prefix}z.{block}"], acts[f"{prefix}head_out.{block}"]
    width = z.shape[-1] // 3
    for head in range(3):
        columns = slice(head * width, (head + 1) * width)
        assert error(heads[:, head], z[..., columns] @ weight[columns]) < BOUND[torch.float64]
    assert error(heads.sum(1) + bias, acts[f"{prefix}attn.{block}"]) < BOUND[torch.float64]


def test_all_is_every_short_name(model):
    with record(model, "all") as acts:
        run(model)
    assert list(acts) == list(short_names(model))


def test_queries_of_a_step_belong_to_its_keys():
    """Rows of cross.k are those of the beams; position embeddings have a row for each."""
    for model in (tiny("gpt2"), tiny("t5")):
        with torch.no_grad(), record(model, "all") as acts:
            generate(model, tokens(0, 2, 4), max_new_tokens=4, pad_token_id=0, num_beams=3)
        prefix, scale = ("", 8**-0.5) if isinstance(model, GPT2LMHeadModel) else ("cross.", 1.0)
        q, k = (acts[f"{prefix}{name}.1"].unflatten(-1, (3, -1)).transpose(1, 2) for name in "qk")
        scores = acts[f"{prefix}scores.1"]
        visible = scores > -torch.inf
        assert len(q) == len(k) == 6
        assert error((q @ k.transpose(2, 3) * scale)[visible], scores[visible]) < BOUND[torch.float32]
    assert len(acts["cross.v.0"]) == 6
    model = tiny("gpt2")
    with torch.no_grad(), record(model, "pos_embed", "embed") as acts:
        generate(model, tokens(0, 2, 4), max_new_tokens=4, pad_token_id=0, num_beams=3)
    assert acts["pos_embed"].shape == acts["embed"].shape
    assert torch.equal(acts["pos_embed"][3], model.transformer.wpe.weight[: acts["embed"].shape[1]])


@torch.no_grad()
def test_beams_of_a_source_have_its_keys():
    model = tiny("t5")
    encoded = model.encode(tokens(0, 2, 5))
    with record(model, "cross.k.0", "decoder.block.0.layer.1.EncDecAttention.v") as acts:
        model.decode(tokens(1, 6, 4), encoded)
    for tensor in acts.values():
        assert tensor.shape == (6, 5, 12)
        assert torch.equal(tensor[0], tensor[2]) and not torch.equal(tensor[2], tensor[3])


def test_head_outputs_of_an_adapter_add_up(model):
    """With LoRA on the output projection."""
    prefix, target = ("", "attn.c_proj") if isinstance(model, GPT2LMHeadModel) else ("cross.", "o")
    add_lora(model, targets=[target])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    layer = model.transformer.h[1].attn.c_proj if not prefix else None
    with torch.no_grad(), record(model, f"{prefix}head_out.1", f"{prefix}attn.1") as acts:
        run(model)
    bias = 0 if layer is None else layer.base_layer.bias
    total = acts[f"{prefix}head_out.1"].sum(1) + bias
    assert error(total, acts[f"{prefix}attn.1"]) < BOUND[torch.float32]
    assert has_no_hooks(model)


# --------------------------------------------------------------------------------------------- with gradients


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=1)
@given(seed=seeds)
def test_gradients_equal_those_of_a_patched_leaf(family, seed):
    model = tiny(family, seed).double()
    names = [name for name in with_gradient(model) if name in patchable(model)]
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


def test_gradients_with_frozen_weights(model):
    name = next(name for name in short_names(model) if "resid_pre.0" in name)
    model.double()
    with record(model, name, grad=True) as want:
        run(model).square().mean().backward()
    model.requires_grad_(False)
    with record(model, name, grad=True) as got:
        run(model).square().mean().backward()
    assert error(got[name].grad, want[name].grad) < BOUND[torch.float64]


def test_gradients_with_gradient_checkpointing(model):
    names = with_gradient(model)
    with record(model, *names, grad=True) as want:
        run(model).square().mean().backward()
    checkpoint_blocks(model)
    with record(model, *names, grad=True) as got:
        run(model).square().mean().backward()
        for name in names:
            assert torch.equal(got[name], want[name]), name
            assert torch.equal(got[name].grad, want[name].grad), name


def test_missing_gradient_is_an_error(model):
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
def test_patching_an_activation_with_itself_is_a_no_op(family, seed):
    model = tiny(family, seed)
    plain = run(model, seed)
    for name in patchable(model):
        with record(model, name) as acts:
            want = run(model, seed)
        with patch(model, name, acts[name]):
            assert torch.equal(run(model, seed), want), name
        if "pattern" not in name and "scores" not in name:  # those switch to the explicit computation
            assert torch.equal(plain, want), name
        with patch(model, name, torch.zeros_like(acts[name])):
            assert not torch.equal(run(model, seed), want), name


@pytest.mark.parametrize("stack", ["", "encoder.", "decoder.", "cross."])
@settings(deadline=None, max_examples=2)
@given(seed=seeds)
@torch.no_grad()
def test_clean_residual_stream_restores_clean_logits(stack, seed):
    """All later activations depend only on the patched residual stream and on the other stack."""
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
def test_patched_residual_stream_runs_the_remaining_blocks(layer, seed):
    model, state = tiny("gpt2", seed), torch.randn(2, 6, 24)
    with torch.no_grad(), patch(model, f"resid_post.{layer}", state):
        got = model(tokens(seed, 2, 6))
    hidden = state
    with torch.no_grad():
        for block in model.transformer.h[layer + 1 :]:
            hidden = block(hidden, None, None)
        assert torch.equal(got, model.lm_head(model.transformer.ln_f(hidden)))


def test_patching_norm_input_or_residual_stream():
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


def test_patch_of_one_head(model):
    prefix = "" if isinstance(model, GPT2LMHeadModel) else "cross."

    def without_head_1(weights: Tensor) -> Tensor:  # (B, H, T, S)
        weights[:, 1] = 0
        return weights

    with torch.no_grad(), record(model, f"{prefix}z.1") as before:
        logits = run(model)
    ablated = patch(model, f"{prefix}pattern.1", without_head_1)
    with torch.no_grad(), record(model, f"{prefix}z.1") as after, ablated:
        assert not torch.equal(run(model), logits)
    before, after = (acts[f"{prefix}z.1"].unflatten(-1, (3, -1)) for acts in (before, after))  # (B, T, H, K)
    assert not after[:, :, 1].any()
    for head in (0, 2):
        assert error(after[:, :, head], before[:, :, head]) < BOUND[torch.float32]


def test_nested_patches_apply_outermost_first_and_are_recorded(model):
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


def test_patching_queries_leaves_keys_and_values(model):
    prefix = "" if isinstance(model, GPT2LMHeadModel) else "decoder."
    names = [f"{prefix}{name}.1" for name in ("q", "k", "v", "scores")]
    with torch.no_grad(), record(model, *names) as before:
        run(model)
    with torch.no_grad(), record(model, *names) as after, patch(model, names[0], lambda q: q * 2):
        run(model)
    assert torch.equal(after[names[0]], before[names[0]] * 2)
    assert all(torch.equal(after[name], before[name]) for name in names[1:3])
    assert not torch.equal(after[names[3]], before[names[3]])


def test_gradients_flow_into_patched_queries():
    model = tiny("gpt2")
    shift = torch.zeros(24, requires_grad=True)
    with patch(model, "v.1", lambda values: values + shift):
        run(model).square().mean().backward()
    assert shift.grad.any()


def test_derived_activations_can_only_be_recorded(model):
    prefix, module = (
        ("", "transformer.h.1.attn.c_proj")
        if isinstance(model, GPT2LMHeadModel)
        else ("cross.", "decoder.block.1.layer.1.EncDecAttention.o")
    )
    message = f"{prefix}head_out.1 can only be recorded, since it is computed from {module}@in: patch that"
    with pytest.raises(ValueError, match=message), patch(model, f"{prefix}head_out.1", torch.zeros_like):
        pass
    message = f"{prefix}head_out.1 has none, it is computed for the recording; record {module}@in"
    with pytest.raises(ValueError, match=message), record(model, f"{prefix}head_out.1", grad=True):
        pass


def test_an_embedding_that_both_stacks_share_is_not_patched():
    message = "encoder.embed can only be recorded, since both stacks share .*: patch encoder.resid_pre.0"
    with pytest.raises(ValueError, match=message), patch(tiny("t5"), "encoder.embed", torch.zeros_like):
        pass


def test_pattern_patches_all_matches():
    model = tiny("gpt2")
    no_attention = patch(model, "attn.*", torch.zeros_like)
    with torch.no_grad(), record(model, "attn.*", "resid_*.*") as acts, no_attention:
        run(model)
    for layer in range(3):
        assert not acts[f"attn.{layer}"].any()
        assert torch.equal(acts[f"resid_mid.{layer}"], acts[f"resid_pre.{layer}"])


def test_patch_applies_to_every_step_of_generate(model):
    name = "pattern.0" if isinstance(model, GPT2LMHeadModel) else "cross.pattern.0"

    def first_key(weights: Tensor) -> Tensor:
        return torch.zeros_like(weights).index_fill(3, torch.tensor([0]), 1.0)

    for search in SEARCHES.values():
        with record(model, name) as acts, patch(model, name, first_key):
            generate(model, tokens(0, 2, 4), max_new_tokens=4, pad_token_id=0, **search)
        assert (acts[name][..., 0] == 1).all() and not acts[name][..., 1:].any()


def test_gradients_flow_into_patches(model):
    """Into a module, and into a tensor that requires gradients."""
    name = next(name for name in short_names(model) if "resid_pre.1" in name)
    shift = nn.Linear(24, 24)
    steering = torch.randn(24, requires_grad=True)
    with patch(model, name, shift), patch(model, name, lambda hidden: hidden + steering):
        run(model).square().mean().backward()
    assert steering.grad.any() and shift.weight.grad.any()


def test_patch_is_cast_to_the_dtype_of_the_activation():
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
def test_invalid_patch_value(model, value, message):
    with pytest.raises(ValueError, match=message), patch(model, "lm_head@in", value):
        run(model)


def test_patch_function_must_not_run_the_module(model):
    refused = pytest.raises(ValueError, match="record what it needs")
    with refused, patch(model, "lm_head", lambda logits: run(model)):
        run(model)


# --------------------------------------------------------------------------------------- hooks are removed


def fail(_: Tensor) -> Tensor:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("where", ["in the block", "on the way in", "on the way out"])
def test_hooks_are_removed_after_an_exception(model, where):
    with torch.no_grad():
        want = run(model)
        purpose = pytest.raises(RuntimeError, match="on purpose")
        with purpose, record(model, *short_names(model)) as acts, patch(model, "lm_head", torch.zeros_like):
            assert not has_no_hooks(model)
            if where == "in the block":
                fail(want)
            broken = "lm_head@in" if where == "on the way in" else "lm_head"
            with patch(model, broken, fail), record(model, "lm_head"):
                run(model)
        assert has_no_hooks(model)
        assert len(acts) == (0 if where == "in the block" else len(short_names(model)))
        assert torch.equal(run(model), want)


def test_blocks_may_exit_in_any_order(model):
    """As with generators or notebooks."""
    first, second = record(model, "lm_head"), record(model, "lm_head", "lm_head@in")
    acts = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    logits = run(model)
    second.__exit__(None, None, None)
    assert not acts[0] and torch.equal(acts[1]["lm_head"], logits)


def test_deep_copy_inside_a_block_is_not_hooked(model):
    name = next(name for name in short_names(model) if "pattern" in name)
    with record(model, name, "lm_head") as acts, patch(model, "lm_head", torch.zeros_like):
        copied = copy.deepcopy(model)
        twice = copy.deepcopy(copied)
        assert run(copied).any() and run(twice).any()
        assert not acts
        assert not run(model).any()
    assert has_no_hooks(copied) and has_no_hooks(twice)
    assert torch.equal(run(copied), run(model))


def test_model_converted_inside_a_block_is_still_recorded(model):
    with record(model, "lm_head") as acts:
        model.double()
        run(model)
    assert acts["lm_head"].dtype == torch.float64


def test_only_recorded_attention_leaves_the_fused_kernel():
    model = tiny("gpt2")
    with record(model, "resid_*.*", "z.*", "mlp.*", "attn.*", "neurons.*", "pattern.1"):
        hooked = [has_hooks(block.attn.softmax) for block in model.transformer.h]
    assert hooked == [False, True, False]
    assert has_no_hooks(model)


# -------------------------------------------------------------------------------------------- logit lens


@settings(deadline=None, max_examples=5)
@given(drawn=gpt2_settings, seed=seeds)
@torch.no_grad()
def test_gpt2_logit_lens_equals_a_truncated_model(drawn, seed):
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
def test_t5_logit_lens_equals_a_truncated_decoder(drawn, seed):
    _, model = t5_pair(drawn, seed)
    ids, mask, target = tokens(seed, 2, 7), padding(seed, 2, 7, "right"), tokens(seed + 1, 2, 5)
    lens = logit_lens(model, ids, mask, target)
    blocks = list(model.decoder.block)
    for block in range(len(blocks)):
        model.decoder.block = nn.ModuleList(blocks[: block + 1])
        assert torch.equal(lens[block], model(ids, mask, target))


def test_logit_lens_runs_in_eval_mode_and_restores_the_mode():
    _, model = gpt2_pair({"n_embd": 24, "n_head": 3, "n_layer": 2, "resid_pdrop": 0.5}, seed=0)
    ids = tokens(0, 2, 7)
    with torch.no_grad():
        want = model(ids)
    assert torch.equal(logit_lens(model.train(), ids)[-1], want)
    assert all(module.training for module in model.modules())


def test_logit_lens_inputs_of_the_wrong_family():
    ids = tokens(0, 1, 4)
    with pytest.raises(ValueError, match="decoder_input_ids is for T5"):
        logit_lens(gpt2_pair({"n_embd": 24, "n_head": 3, "n_layer": 1}, 0)[1], ids, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="decoder_input_ids are missing"):
        logit_lens(t5_pair({"d_model": 24, "d_kv": 4, "num_layers": 1, "num_heads": 2}, 0)[1], ids)
