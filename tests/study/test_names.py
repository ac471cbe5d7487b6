"""Names and patterns of activations; similar names in errors."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.lora.lora import LoRALayer, add_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, UMT5Config
from ftcore.study.names import HookPoint, find_hook_points, kind_of, matches, short_names

GPT2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_head=2, n_layer=3))
SIZES = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 2}
T5 = T5ForConditionalGeneration(T5Config(**SIZES, num_decoder_layers=3))
UMT5 = T5ForConditionalGeneration(UMT5Config(**SIZES))
MODELS = [GPT2, T5, UMT5]

segments = st.text("ab*?[0]", min_size=1, max_size=4)


def names_of(points: list[HookPoint]) -> list[str]:
    return [point.name for point in points]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.config.model_type)
def test_short_names_are_unique(model):
    names = short_names(model)
    assert len(set(names.values())) == len(names)
    for short, long in names.items():
        (point,) = find_hook_points(model, short)
        assert (point.name, point.long_name) == (short, long)
        model.get_submodule(point.module_name)
        if point.side != "stream":
            assert [found.long_name for found in find_hook_points(model, long)] == [long]


def test_t5_stacks_of_different_depth():
    assert names_of(find_hook_points(T5, "encoder.mlp.*")) == ["encoder.mlp.0", "encoder.mlp.1"]
    assert names_of(find_hook_points(T5, "cross.z.*")) == ["cross.z.0", "cross.z.1", "cross.z.2"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.config.model_type)
def test_every_module_has_its_dotted_name(model):
    for name, module in model.named_modules(remove_duplicate=False):
        for side in ("", "@in", "@stream") if name else ():
            (point,) = find_hook_points(model, name + side)
            assert point.name == point.long_name == name + side
            assert model.get_submodule(point.module_name) is module


def test_patterns():
    assert names_of(find_hook_points(GPT2, "transformer.h.[02].attn.softmax@in")) == [
        "transformer.h.0.attn.softmax@in",
        "transformer.h.2.attn.softmax@in",
    ]
    assert names_of(find_hook_points(GPT2, "transformer.h.1.*.c_*")) == [
        f"transformer.h.1.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert names_of(find_hook_points(GPT2, "resid_*.1")) == ["resid_pre.1", "resid_mid.1", "resid_post.1"]
    assert names_of(find_hook_points(T5, "*.pattern.0")) == [
        "encoder.pattern.0",
        "decoder.pattern.0",
        "cross.pattern.0",
    ]
    assert names_of(find_hook_points(T5, "*")) == ["shared", "encoder", "decoder", "lm_head"]


def test_derived_activations_belong_to_some_modules():
    assert names_of(find_hook_points(GPT2, "transformer.h.[02].attn.c_attn@k")) == [
        "transformer.h.0.attn.c_attn@k",
        "transformer.h.2.attn.c_attn@k",
    ]
    assert names_of(find_hook_points(T5, "encoder.block.0.layer.0.*.*@heads")) == [
        "encoder.block.0.layer.0.SelfAttention.o@heads"
    ]
    for model, name in (
        (GPT2, "lm_head@q"),
        (GPT2, "transformer.h.0.mlp.c_proj@heads"),
        (T5, "lm_head@heads"),
    ):
        with pytest.raises(ValueError, match="has nothing called"):
            find_hook_points(model, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("z.1", "z"), ("cross.z.1", "z"), ("embed", "embed"), ("encoder.norm_final", "norm_final")],
)
def test_kind_of_a_short_name(name, expected):
    assert kind_of(name) == expected


def test_all():
    for model in MODELS:
        assert names_of(find_hook_points(model, "all")) == list(short_names(model))
    with pytest.raises(ValueError, match="has nothing called 'all'"):
        find_hook_points(torch.nn.Linear(2, 2), "all")


def test_module_names_take_precedence():
    assert names_of(find_hook_points(T5, "encoder.*.1")) == ["encoder.block.1"]


@given(st.lists(segments, min_size=1, max_size=3), st.lists(segments, min_size=1, max_size=3))
@settings(deadline=None)
def test_patterns_match_segment_by_segment(name, pattern):
    each = len(name) == len(pattern) and all(matches(*pair) for pair in zip(name, pattern, strict=True))
    assert matches(".".join(name), ".".join(pattern)) == each
    assert matches(".".join(name), ".".join("*" for _ in name))


def test_lora_layers_keep_the_name():
    model = GPT2LMHeadModel(GPT2.config)
    add_lora(model, targets=["attn.c_proj"])
    (point,) = find_hook_points(model, "z.1")
    assert isinstance(model.get_submodule(point.module_name), LoRALayer)
    assert point.long_name == "transformer.h.1.attn.c_proj@in"


@pytest.mark.parametrize(
    ("model", "name", "near"),
    [
        (GPT2, "patern.1", "pattern.0 to pattern.2"),
        (GPT2, "pattern.3", "pattern.0 to pattern.2"),
        (GPT2, "pattern", "pattern.0 to pattern.2"),
        (GPT2, "transformer.h.*.atn.softmax", "transformer.h.0.attn.softmax to transformer.h.2.attn.softmax"),
        (GPT2, "lmhead", "lm_head"),
        (T5, "pattern.0", "encoder.pattern.0 to encoder.pattern.1"),
        (T5, "crossed.z.0", "cross.z.0 to cross.z.2"),
        (T5, "decoder.block.0.layer.1.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q to"),
        (T5, "something else", "encoder.resid_pre.0 to encoder.resid_pre.1"),
        (torch.nn.Linear(2, 2), "weight", "no modules inside"),
    ],
)
def test_unknown_name_lists_similar_names(model, name, near):
    with pytest.raises(ValueError, match=re.escape(near)) as refused:
        find_hook_points(model, name)
    message = str(refused.value)
    assert f"{type(model).__name__} has nothing called {name!r}" in message
    assert "\n" not in message
    assert message.count(" to ") <= 9


@pytest.mark.parametrize("name", ["transformer.h.0@out", "pattern.0@input", "@"])
def test_unknown_side(name):
    with pytest.raises(ValueError, match=r"@in or @stream|nothing called"):
        find_hook_points(GPT2, name)
