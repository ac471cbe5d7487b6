"""config.json in, config.json out, and what is wrong with it in one line."""

import json

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import gpt2_settings, t5_settings

from ftcore.models import GPT2Config, T5Config
from ftcore.models.config import Config

CLASSES = [GPT2Config, T5Config]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("cls", CLASSES)
@settings(deadline=None)
@given(unknown=st.dictionaries(st.text(max_size=8).map("x_".__add__), json_values, max_size=4))
def test_unknown_keys_survive(cls, unknown):
    config = cls.from_dict({**unknown, "vocab_size": 11})
    assert config.extra == unknown
    written = json.loads(json.dumps(config.to_dict()))
    assert {key: written[key] for key in unknown} == unknown
    assert written["vocab_size"] == 11
    assert cls.from_dict(written).to_dict() == written


@pytest.mark.parametrize(
    ("cls", "theirs", "drawn"),
    [(GPT2Config, transformers.GPT2Config, gpt2_settings), (T5Config, transformers.T5Config, t5_settings)],
)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_transformers_reads_what_we_write_and_we_what_it_writes(cls, theirs, drawn, data):
    config = cls(**data.draw(drawn))
    read = theirs.from_dict(config.to_dict())
    tied = cls is T5Config  # a T5Config of transformers says that every head is tied
    for key, value in config.to_dict().items():
        if not (tied and key == "tie_word_embeddings"):
            assert getattr(read, key) == value, key
    again = cls.from_dict(read.to_dict())
    for key in vars(config).keys() - {"extra"} - ({"tie_word_embeddings"} if tied else set()):
        assert getattr(again, key) == getattr(config, key), key


@pytest.mark.parametrize(
    ("cls", "theirs"), [(GPT2Config, transformers.GPT2Config), (T5Config, transformers.T5Config)]
)
def test_defaults_are_those_of_transformers(cls, theirs):
    reference = theirs()
    for key, value in vars(cls()).items():
        if key != "extra":
            assert getattr(reference, key, None) == value, key


@pytest.mark.parametrize("tie", [None, True, False])
@pytest.mark.parametrize("scale", [None, True, False])
def test_what_scales_t5s_output(tie, scale):
    """Old files say it with the tie flag, new ones with a flag of its own, which wins."""
    keys = {"tie_word_embeddings": tie, "scale_decoder_outputs": scale}
    values = {key: value for key, value in keys.items() if value is not None}
    config = T5Config.from_dict(values)
    assert config.scale_decoder_outputs is transformers.T5Config.from_dict(values).scale_decoder_outputs
    assert config.scale_decoder_outputs is (scale if scale is not None else tie is not False)
    assert config.tie_word_embeddings is (tie is not False)


@pytest.mark.parametrize(("proj", "gated", "name"), [
    ("relu", False, "relu"),
    ("gelu", False, "gelu"),
    ("gated-gelu", True, "gelu_new"),
    ("gated-silu", True, "silu"),
    ("gated-relu", True, "relu"),
])  # fmt: skip
def test_feed_forward_proj(proj, gated, name):
    config, reference = T5Config(feed_forward_proj=proj), transformers.T5Config(feed_forward_proj=proj)
    assert (config.is_gated_act, config.dense_act_fn) == (gated, name)
    assert (reference.is_gated_act, reference.dense_act_fn) == (gated, name)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (T5Config, {"d_model": "512"}, "d_model is '512', expected a whole number"),
        (T5Config, {"d_model": 512.0}, "d_model is 512.0, expected a whole number"),
        (T5Config, {"d_model": True}, "d_model is True, expected a whole number"),
        (T5Config, {"d_model": None}, "d_model is None, expected a whole number"),
        (T5Config, {"num_layers": 0}, "num_layers is 0, expected at least 1"),
        (T5Config, {"num_decoder_layers": -1}, "num_decoder_layers is -1, expected at least 1"),
        (T5Config, {"num_decoder_layers": []}, "num_decoder_layers is [], expected a whole number or null"),
        (T5Config, {"dropout_rate": "0.1"}, "dropout_rate is '0.1', expected a number"),
        (T5Config, {"dropout_rate": 1.5}, "dropout_rate is 1.5, expected 0 to 1"),
        (T5Config, {"layer_norm_epsilon": True}, "layer_norm_epsilon is True, expected a number"),
        (T5Config, {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        (T5Config, {"scale_decoder_outputs": 0}, "scale_decoder_outputs is 0, expected true or false or"),
        (T5Config, {"feed_forward_proj": None}, "feed_forward_proj is None, expected a text"),
        (T5Config, {"feed_forward_proj": "gated-x"}, "feed_forward_proj is 'gated-x': unknown activation"),
        (T5Config, {"eos_token_id": [1, "2"]}, "eos_token_id is [1, '2'], expected a whole number or"),
        (T5Config, {"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3, expected at"),
        (T5Config, {"relative_attention_max_distance": 16}, "relative_attention_max_distance is 16"),
        (GPT2Config, {"n_embd": 10, "n_head": 3}, "n_embd is 10, which 3 heads (n_head) do not divide"),
        (GPT2Config, {"n_inner": 0}, "n_inner is 0, expected at least 1"),
        (GPT2Config, {"n_positions": 0}, "n_positions is 0, expected at least 1"),
        (GPT2Config, {"activation_function": "gleu"}, "activation_function is 'gleu': unknown activation"),
        (GPT2Config, {"attn_pdrop": -0.1}, "attn_pdrop is -0.1, expected 0 to 1"),
        (GPT2Config, {"embd_pdrop": 2}, "embd_pdrop is 2, expected 0 to 1"),
        (GPT2Config, {"resid_pdrop": 2}, "resid_pdrop is 2, expected 0 to 1"),
        (GPT2Config, {"add_cross_attention": True}, "add_cross_attention is true, but GPT-2 with"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_file_and_key(cls, values, message):
    with pytest.raises(ValueError) as caught:
        cls.from_dict(values, where="somewhere/config.json")
    assert str(caught.value).startswith(f"somewhere/config.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_numbers_that_json_writes_without_a_point_are_numbers(cls):
    key = "dropout_rate" if cls is T5Config else "attn_pdrop"
    assert getattr(cls.from_dict({key: 0}), key) == 0


@pytest.mark.parametrize("eos", [None, 1, [1, 2]])
@pytest.mark.parametrize("cls", CLASSES)
def test_the_end_may_be_several_tokens_or_none(cls, eos):
    assert cls.from_dict({"eos_token_id": eos}).eos_token_id == eos


def test_the_decoder_start_has_no_default():
    assert T5Config().decoder_start_token_id is None
    assert T5Config().num_decoder_layers == T5Config().num_layers


def test_families_are_told_apart():
    assert (GPT2Config.model_type, T5Config.model_type) == ("gpt2", "t5")
    assert (GPT2Config().is_encoder_decoder, T5Config().is_encoder_decoder) == (False, True)
    assert GPT2Config().to_dict()["architectures"] == ["GPT2LMHeadModel"]
    assert T5Config().to_dict()["architectures"] == ["T5ForConditionalGeneration"]
    assert all(issubclass(cls, Config) for cls in CLASSES)
