"""Configurations: config.json in and out, and errors in one line."""

import json

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.checkpoints.checkpoint import model_from_config
from ftcore.models import GPT2Config, MT5Config, T5Config, UMT5Config
from ftcore.models.config import ACTIVATIONS, Config
from tests.helpers.oracle import gpt2_settings, t5_settings

CLASSES = [GPT2Config, T5Config, MT5Config, UMT5Config]
THEIRS = {cls: getattr(transformers, cls.__name__) for cls in CLASSES}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("cls", CLASSES)
@settings(deadline=None)
@given(unknown=st.dictionaries(st.text(max_size=8).map("x_".__add__), json_values, max_size=4))
def test_unknown_keys_are_kept(cls, unknown):
    config = cls.from_dict({**unknown, "vocab_size": 11})
    assert config.extra == unknown
    written = json.loads(json.dumps(config.to_dict()))
    assert {key: written[key] for key in unknown} == unknown
    assert written["vocab_size"] == 11
    assert cls.from_dict(written).to_dict() == written


@pytest.mark.parametrize("cls", CLASSES)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_round_trip_through_transformers(cls, data):
    config = cls(**data.draw(gpt2_settings if cls is GPT2Config else t5_settings))
    read = THEIRS[cls].from_dict(config.to_dict())
    tied = cls is not GPT2Config  # a T5Config of transformers always says that the head is tied
    for key, value in config.to_dict().items():
        if not (tied and key == "tie_word_embeddings"):
            assert getattr(read, key) == value, key
    again = cls.from_dict(read.to_dict())
    for key in vars(config).keys() - {"extra"} - ({"tie_word_embeddings"} if tied else set()):
        assert getattr(again, key) == getattr(config, key), key


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_equal_those_of_transformers(cls):
    reference = THEIRS[cls]()
    only_ours = {"extra"} if cls in (GPT2Config, T5Config) else {"extra", "scale_decoder_outputs"}
    for key in vars(cls()).keys() - only_ours:
        assert getattr(reference, key, None) == getattr(cls(), key), key


@pytest.mark.parametrize("tie", [None, True, False])
@pytest.mark.parametrize("scale", [None, True, False])
def test_t5_output_scaling(tie, scale):
    """Old files use the tie flag, new ones a separate flag, which takes precedence."""
    keys = {"tie_word_embeddings": tie, "scale_decoder_outputs": scale}
    values = {key: value for key, value in keys.items() if value is not None}
    config = T5Config.from_dict(values)
    assert config.scale_decoder_outputs is transformers.T5Config.from_dict(values).scale_decoder_outputs
    assert config.scale_decoder_outputs is (scale if scale is not None else tie is not False)
    assert config.tie_word_embeddings is (tie is not False)


@pytest.mark.parametrize("key", ["tie_word_embeddings", "scale_decoder_outputs"])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("cls", "scaled"), [(MT5Config, False), (UMT5Config, True)])
def test_mt5_never_scales_and_umt5_always_does(cls, scaled, key, value):
    """As in transformers, whatever the file says."""
    assert cls.from_dict({key: value}).scale_decoder_outputs is scaled


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


@pytest.mark.parametrize("values", [
    {"dense_act_fn": "gelu_new", "is_gated_act": True},
    {"dense_act_fn": "silu", "is_gated_act": True},
    {"dense_act_fn": "gelu", "is_gated_act": True},
    {"dense_act_fn": "gelu_new"},
    {"dense_act_fn": "relu", "is_gated_act": False},
    {"is_gated_act": True},
    {"feed_forward_proj": "gated-gelu", "is_gated_act": True},
    {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True},
    {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True},
    {"feed_forward_proj": "gated-gelu_pytorch_tanh"},
])  # fmt: skip
def test_feed_forward_in_one_key_or_two(values):
    config, reference = T5Config.from_dict(values), transformers.T5Config.from_dict(values)
    assert (config.dense_act_fn, config.is_gated_act) == (reference.dense_act_fn, reference.is_gated_act)
    written = config.to_dict()
    assert T5Config.from_dict(written).to_dict() == written
    read = transformers.T5Config.from_dict(written)
    assert (read.dense_act_fn, read.is_gated_act) == (config.dense_act_fn, config.is_gated_act)
    by_one_key = transformers.T5Config(feed_forward_proj=config.feed_forward_proj)
    assert by_one_key.is_gated_act == config.is_gated_act


@pytest.mark.parametrize(("cls", "other", "name"), [
    *((cls, other, name) for cls in CLASSES for other, name in cls.aliases.items()),
    (GPT2Config, "n_ctx", "n_positions"),
])  # fmt: skip
def test_aliases(cls, other, name):
    value = "float16" if name == "dtype" else 24
    config = cls.from_dict({other: value})
    assert config.to_dict()[name] == value
    assert cls.from_dict({other: value, name: value}) == config
    if other != "n_ctx":  # no longer read by transformers
        assert str(getattr(THEIRS[cls].from_dict({other: value}), name)).removeprefix("torch.") == str(value)
        assert other not in config.to_dict()
        contradicting = {other: value, name: "bfloat16" if name == "dtype" else 36}
        with pytest.raises(ValueError, match=f"^file: {other} is {value!r}, but {name}, which means the"):
            cls.from_dict(contradicting, where="file")


def test_n_ctx_is_ignored_if_n_positions_is_given():
    """Training scripts have changed only one of them; transformers reads n_positions."""
    keys = {"n_ctx": 128, "n_positions": 1024}
    assert (
        GPT2Config.from_dict(keys).n_positions == transformers.GPT2Config.from_dict(keys).n_positions == 1024
    )
    assert GPT2Config.from_dict(keys).to_dict()["n_ctx"] == 128


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (T5Config, {"d_model": "512"}, "d_model is '512', expected a whole number"),
        (T5Config, {"d_model": 512.0}, "d_model is 512.0, expected a whole number"),
        (T5Config, {"d_model": True}, "d_model is True, expected a whole number"),
        (T5Config, {"d_model": None}, "d_model is None, expected a whole number"),
        (T5Config, {"num_layers": 0}, "num_layers is 0, expected 1 to 256"),
        (T5Config, {"num_decoder_layers": -1}, "num_decoder_layers is -1, expected 1 to 256"),
        (T5Config, {"num_decoder_layers": []}, "num_decoder_layers is [], expected a whole number or null"),
        (T5Config, {"dropout_rate": "0.1"}, "dropout_rate is '0.1', expected a number"),
        (T5Config, {"dropout_rate": 1.5}, "dropout_rate is 1.5, expected 0 to 1"),
        (T5Config, {"layer_norm_epsilon": True}, "layer_norm_epsilon is True, expected a number"),
        (T5Config, {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        (T5Config, {"scale_decoder_outputs": 0}, "scale_decoder_outputs is 0, expected true or false or"),
        (T5Config, {"feed_forward_proj": None}, "feed_forward_proj is None, expected a string"),
        (T5Config, {"feed_forward_proj": "gated-x"}, "feed_forward_proj is 'gated-x': unknown activation"),
        (T5Config, {"dense_act_fn": "gleu"}, "dense_act_fn is 'gleu': unknown activation function 'gleu'"),
        (T5Config, {"dense_act_fn": 1}, "dense_act_fn is 1, expected a string or null"),
        (T5Config, {"is_gated_act": "yes"}, "is_gated_act is 'yes', expected true or false or null"),
        (T5Config, {"feed_forward_proj": "relu", "is_gated_act": True},
            "is_gated_act is True, but feed_forward_proj is 'relu'; remove one of them"),
        (T5Config, {"feed_forward_proj": "gated-silu", "dense_act_fn": "relu"},
            "dense_act_fn is 'relu', but feed_forward_proj is 'gated-silu'; remove one of them"),
        (MT5Config, {"feed_forward_proj": "gated-gelu", "dense_act_fn": "silu", "is_gated_act": True},
            "dense_act_fn is 'silu', but feed_forward_proj is 'gated-gelu'"),
        (UMT5Config, {"hidden_size": "512"}, "hidden_size is '512', expected a whole number"),
        (GPT2Config, {"num_hidden_layers": None}, "num_hidden_layers is None, expected a whole number"),
        (T5Config, {"eos_token_id": [1, "2"]}, "eos_token_id is [1, '2'], expected a whole number or"),
        (T5Config, {"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3, expected 4"),
        (T5Config, {"relative_attention_max_distance": 16}, "relative_attention_max_distance is 16"),
        (GPT2Config, {"n_embd": 10, "n_head": 3}, "n_embd is 10, which 3 heads (n_head) do not divide"),
        (GPT2Config, {"n_inner": 0}, "n_inner is 0, expected 1 to 16777216"),
        (GPT2Config, {"n_positions": 0}, "n_positions is 0, expected 1 to 16777216"),
        (GPT2Config, {"activation_function": "gleu"}, "activation_function is 'gleu': unknown activation"),
        (GPT2Config, {"attn_pdrop": -0.1}, "attn_pdrop is -0.1, expected 0 to 1"),
        (GPT2Config, {"embd_pdrop": 2}, "embd_pdrop is 2, expected 0 to 1"),
        (GPT2Config, {"resid_pdrop": 2}, "resid_pdrop is 2, expected 0 to 1"),
        (GPT2Config, {"add_cross_attention": True}, "add_cross_attention is true, but GPT-2 with"),
    ],
)  # fmt: skip
def test_errors_name_file_and_key(cls, values, message):
    with pytest.raises(ValueError) as caught:
        cls.from_dict(values, where="somewhere/config.json")
    assert str(caught.value).startswith(f"somewhere/config.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_integers_are_valid_floats(cls):
    key = "attn_pdrop" if cls is GPT2Config else "dropout_rate"
    assert getattr(cls.from_dict({key: 0}), key) == 0


@pytest.mark.parametrize("eos", [None, 1, [1, 2]])
@pytest.mark.parametrize("cls", CLASSES)
def test_eos_may_be_a_list_or_none(cls, eos):
    assert cls.from_dict({"eos_token_id": eos}).eos_token_id == eos


SIZE_KEYS = [(cls, key) for cls in CLASSES for key, value in vars(cls()).items() if isinstance(value, int)]
SIZE_KEYS = [(cls, key) for cls, key in SIZE_KEYS if getattr(cls(), key) > 1]
SIZE_KEYS += [(GPT2Config, "n_inner"), (GPT2Config, "num_hidden_layers"), (T5Config, "hidden_size")]
SIZE_KEYS = [(cls, key) for cls, key in SIZE_KEYS if not key.endswith("_id")]


@pytest.mark.parametrize("value", [-1, 0, 10**8, 10**12, 10**18, 2**63, 10**30])
@pytest.mark.parametrize(("cls", "key"), SIZE_KEYS)
def test_sizes_have_limits(cls, key, value):
    names = f"({key}|{cls.aliases.get(key, key)})"
    with pytest.raises(ValueError, match=f"^there/config.json: {names} is {value}, expected"):
        cls.from_dict({key: value}, where="there/config.json")


def test_a_product_of_sizes_has_a_limit():
    with pytest.raises(ValueError, match="num_heads is 1000000 and d_kv 1000000, expected a product of at"):
        T5Config(num_heads=10**6, d_kv=10**6)


numbers = st.sampled_from([0, 1, -1, 0.0, -0.5, 1e-45, 1e308, -1e308, 10**30])
numbers |= st.sampled_from([10**9, 10**12, 2**31, 2**63, -(2**63)]) | st.integers(-3, 40) | st.floats(0, 2)
texts = st.text(max_size=5) | st.sampled_from([*ACTIVATIONS, "gated-gelu", "x" * 10**5, "\x1b[2J\n"])
TINY = {
    GPT2Config: {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2},
    T5Config: {"vocab_size": 11, "d_model": 8, "d_kv": 2, "d_ff": 8, "num_layers": 1, "num_heads": 2},
}
ALL_KEYS = [
    (cls, key)
    for cls in TINY
    for key in [*vars(cls()), *cls.aliases, "n_ctx", "model_type"]
    if key != "extra"
]


@pytest.mark.parametrize(("cls", "key"), ALL_KEYS)
@settings(deadline=None, max_examples=30)
@given(value=json_values | numbers | texts | st.lists(numbers, max_size=3))
def test_any_value_of_any_key_is_refused_by_name_or_computes(cls, key, value):
    values = {name: size for name, size in TINY[cls].items() if name != cls.aliases.get(key, key)}
    if key == "n_ctx":
        values.pop("n_positions", None)
    try:
        model = model_from_config({"model_type": cls.model_type, **values, key: value}, "there/config.json")
    except ValueError as error:
        message = str(error)
        names = (key, cls.aliases.get(key, key), "n_positions" if key == "n_ctx" else key)
        assert message.startswith("there/config.json: ") and any(name in message for name in names)
        assert message.isprintable() and len(message) < 1000
    else:
        ids = torch.tensor([[0]])
        logits = model.eval()(ids) if cls is GPT2Config else model.eval()(ids, decoder_input_ids=ids)
        assert logits.shape == (1, 1, model.config.vocab_size)
        written = json.loads(json.dumps(model.config.to_dict(), allow_nan=False))
        assert type(model.config).from_dict(written).to_dict() == written


@pytest.mark.parametrize("convert", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("cls", CLASSES)
def test_scalars_of_numpy_and_torch_become_pythons(cls, convert):
    values = {key: value for key, value in vars(cls()).items() if isinstance(value, bool | int | float)}
    values |= {"eos_token_id": [1, 2]}
    converted = {key: convert(value) for key, value in values.items() if key != "eos_token_id"}
    config = cls(**converted, eos_token_id=[convert(1), np.int64(2)])
    assert config.eos_token_id == values.pop("eos_token_id")
    assert {key: getattr(config, key) for key in values} == pytest.approx(values)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    if convert is np.array:
        scalars = {key: value[()] for key, value in converted.items()}  # np.int64, np.float64, np.bool_
        assert cls(**scalars, eos_token_id=(np.int64(1), 2)) == config


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, -1e-9])
@pytest.mark.parametrize("cls", CLASSES)
def test_floats_are_finite_and_not_negative(cls, value):
    for key in [key for key, default in vars(cls()).items() if isinstance(default, float)]:
        with pytest.raises(ValueError, match=f"^{key} is "):
            cls(**{key: value})


def test_numbers_set_later_can_be_saved():
    config = GPT2Config()
    config.n_layer, config.attn_pdrop = np.int64(2), np.float32(0.5)
    assert json.loads(json.dumps(config.to_dict())) == GPT2Config(n_layer=2, attn_pdrop=0.5).to_dict()


def test_values_of_wrong_type_raise_in_the_constructor_too():
    for arguments in ({"n_layer": "2"}, {"n_layer": 2.0}, {"n_layer": True}, {"n_layer": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"^n_layer is .*, expected a whole number$"):
            GPT2Config(**arguments)


def test_decoder_start_token_id_has_no_default():
    assert T5Config().decoder_start_token_id is None
    assert T5Config().num_decoder_layers == T5Config().num_layers


def test_model_types():
    for cls in CLASSES:
        assert issubclass(cls, Config)
        assert cls.model_type == THEIRS[cls].model_type
        assert cls.is_encoder_decoder is (cls is not GPT2Config)
        assert getattr(transformers, cls.architecture).config_class is THEIRS[cls]
        written = cls().to_dict()
        assert (written["model_type"], written["architectures"]) == (cls.model_type, [cls.architecture])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_those_of_transformers(name):
    values = torch.linspace(-9, 9, 181, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name]()(values), transformers.activations.ACT2FN[name](values))
