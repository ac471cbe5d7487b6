"""Adapter directories: round trips, and errors for everything beyond plain LoRA."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.lora.adapter import adapter_chain, load_adapter, save_adapter
from ftcore.lora.lora import add_lora, lora_layers, merge_lora
from tests.helpers.tiny_lora import (
    VARIANTS,
    alphas,
    cases,
    copies,
    logits,
    randomize_updates,
    ranks,
    seeds,
    tiny,
)

FIRST = (
    "base_model.model.encoder.block.0.layer.0.SelfAttention.q"  # a layer of a T5 adapter, as PEFT names it
)


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A T5 adapter of rank 4."""
    save_adapter(adapted("t5"), tmp_path / "adapter")
    return tmp_path / "adapter"


def adapted(variant: str, **arguments: Any) -> torch.nn.Module:
    model = tiny(variant)
    add_lora(model, **{"rank": 4, **arguments})
    randomize_updates(model)
    return model


def read_config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "adapter_config.json").read_text())


def change_config(directory: Path, **values: Any) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(read_config(directory) | values))


def change_tensors(directory: Path, change: Any) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def assert_refused(directory: Path, *words: str, kind: type[Exception] = ValueError) -> None:
    """The error is one line with all these words, and the model is unchanged."""
    model = tiny("t5")
    before = copies(model)
    with pytest.raises(kind) as raised:
        load_adapter(model, directory)
    message = str(raised.value)
    assert message.isprintable() and len(message) < 3000
    for word in [str(directory), *words]:
        assert word in message, message
    assert not lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


# ---------------------------------------------------------------------------------------------- load_model


@pytest.mark.parametrize("variant", VARIANTS)
def test_load_model_merges_an_adapter_into_its_base_model(tmp_path, variant):
    save_model(tiny(variant), tmp_path / "base")
    model = adapted(variant)
    save_adapter(model, tmp_path / "adapter", base_model=tmp_path / "base")
    loaded = load_model(tmp_path / "adapter")
    assert not lora_layers(loaded) and not loaded.training
    assert torch.equal(logits(loaded), logits(merge_lora(model)))
    save_model(loaded, tmp_path / "whole")
    assert torch.equal(logits(load_model(tmp_path / "whole")), logits(loaded))


def test_a_base_model_moved_with_its_adapter_is_found(tmp_path):
    model = adapted("t5")
    (tmp_path / "before").mkdir()
    save_model(tiny("t5"), tmp_path / "before" / "base")
    save_adapter(model, tmp_path / "before" / "adapter", base_model=str(tmp_path / "before" / "base"))
    (tmp_path / "before").rename(tmp_path / "after")
    assert torch.equal(logits(load_model(tmp_path / "after" / "adapter")), logits(merge_lora(model)))


def test_an_adapter_of_an_adapter_is_merged_into_both(tmp_path):
    save_model(tiny("t5"), tmp_path / "base")
    inner = adapted("t5")
    save_adapter(inner, tmp_path / "inner", base_model=str(tmp_path / "base"))
    model = merge_lora(inner)
    add_lora(model, targets=["o"])
    randomize_updates(model, seed=1)
    save_adapter(model, tmp_path / "outer", base_model=str(tmp_path / "inner"))
    assert adapter_chain(tmp_path / "outer") == [tmp_path / name for name in ("outer", "inner", "base")]
    assert torch.equal(logits(load_model(tmp_path / "outer")), logits(merge_lora(model)))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_adapters_that_lead_back_to_themselves_raise(adapter, length):
    names = [adapter, *(adapter.with_name(f"adapter-{number}") for number in range(1, length))]
    for directory, base in zip(names, [*names[1:], adapter], strict=True):
        save_adapter(adapted("t5"), directory, base_model=f"{base.parent}/./{base.name}")
    last = names[-1] / "adapter_config.json"
    with pytest.raises(
        ValueError, match=f"^{last}: base_model_name_or_path is .* leads back to this adapter"
    ):
        load_model(adapter)


NOT_A_BASE = [None, "", 7, ["weights/t5-mini"], {"name": 1}, "nowhere/at/all", "~nosuchuser/t5"]
NOT_A_BASE += ["..", "a\0b", "~a\0", "x" * 300, "x/" * 2000, "x" * 10**6, "\x1b[2J"]


@pytest.mark.parametrize("base", NOT_A_BASE)
def test_a_base_model_that_cannot_be_found_raises(adapter, base):
    change_config(adapter, base_model_name_or_path=base)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        load_model(adapter)
    message = str(raised.value)
    assert message.startswith(f"{adapter / 'adapter_config.json'}: base_model_name_or_path is ")
    assert message.isprintable() and len(message) < 10_000


def test_a_complete_model_takes_precedence_over_an_adapter(adapter):
    save_model(tiny("t5"), adapter)
    assert torch.equal(logits(load_model(adapter)), logits(tiny("t5")))


def test_an_adapter_without_base_model_raises(adapter):
    with pytest.raises(ValueError, match=r"base_model_name_or_path is None, .* and call load_adapter"):
        load_model(adapter)


def test_save_model_refuses_lora_layers(tmp_path):
    with pytest.raises(ValueError, match=r"has LoRA layers: use merge_lora\(model\) instead"):
        save_model(adapted("t5"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---------------------------------------------------------------------------------------------- round trips


@settings(deadline=None, max_examples=25)
@given(cases, ranks, alphas, st.sampled_from([0.0, 0.1]), seeds)
def test_round_trip(tmp_path_factory, case, rank, alpha, dropout, seed):
    variant, targets = case
    directory = tmp_path_factory.mktemp("adapter")
    model = tiny(variant, seed)
    base = copies(model)
    add_lora(model, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
    randomize_updates(model, seed)
    save_adapter(model, directory)

    other = tiny(variant, seed)
    load_adapter(other, directory)
    assert torch.equal(logits(other), logits(model))
    assert not any(module.training for module in other.modules())
    for name, parameter in other.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")])
        assert parameter.requires_grad == (".lora_" in name)
    for layer in lora_layers(other).values():
        assert (layer.rank, layer.alpha, layer.lora_dropout.p) == (rank, alpha, dropout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_contain_only_a_and_b(variant, tmp_path):
    model = adapted(variant)
    save_adapter(model, tmp_path / "new" / "adapter")
    assert sorted(os.listdir(tmp_path / "new" / "adapter")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(tmp_path / "new" / "adapter" / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.{name}.{part}.weight"
        for name in lora_layers(model)
        for part in ("lora_A", "lora_B")
    }


@pytest.mark.parametrize(("variant", "task"), [("t5", "SEQ_2_SEQ_LM"), ("gpt2", "CAUSAL_LM")])
def test_adapter_config(variant, task, tmp_path):
    save_adapter(adapted(variant, alpha=32, dropout=0.1), tmp_path, base_model="google-t5/t5-small")
    config = read_config(tmp_path)
    assert config["task_type"] == task
    assert config["base_model_name_or_path"] == "google-t5/t5-small"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32, 0.1)
    assert config["fan_in_fan_out"] == (variant == "gpt2")


def test_bfloat16_models_keep_their_float32_adapters(tmp_path):
    model = tiny("t5").bfloat16()
    add_lora(model)
    randomize_updates(model)
    save_adapter(model, tmp_path)
    other = tiny("t5").bfloat16()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_a_loaded_adapter_can_be_trained_further(adapter):
    model = tiny("t5")
    load_adapter(model, adapter)
    randomize_updates(model, seed=1)
    save_adapter(model, adapter)  # replaces the old one
    other = tiny("t5")
    load_adapter(other, adapter)
    assert torch.equal(logits(other), logits(model))


# ---------------------------------------------------------------------------------------------- settings


def test_rank_stabilized_scaling(adapter):
    change_config(adapter, use_rslora=True, lora_alpha=6)
    model = tiny("t5")
    load_adapter(model, adapter)
    assert {layer.scaling for layer in lora_layers(model).values()} == {6 / math.sqrt(4)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q": 2}),
        ("alpha_pattern", {"q": 2}),
        ("trainable_token_indices", [5]),
        ("target_parameters", ["encoder.weight"]),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [3]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("key_of_a_future_version", {"strength": 2}),
    ],
)
def test_settings_beyond_plain_lora_raise(adapter, key, value):
    change_config(adapter, **{key: value})
    assert_refused(adapter, f"adapter_config.json: {key} is ", "merge_and_unload")


@pytest.mark.parametrize(
    "values",
    [
        {"use_dora": False, "modules_to_save": None, "rank_pattern": {}, "key_of_a_future_version": None},
        {"init_lora_weights": "gaussian", "peft_version": "0.99.0", "revision": "main"},
        {"fan_in_fan_out": True, "target_modules": "q|v", "layers_pattern": "block"},
    ],
)
def test_settings_without_effect_are_ignored(adapter, values):
    model = tiny("t5")
    load_adapter(model, adapter)
    change_config(adapter, **values)
    other = tiny("t5")
    load_adapter(other, adapter)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type is 'IA3'", '"LORA"']),
        ({"peft_type": None}, ["peft_type is None", '"LORA"']),
        ({"r": "8"}, ["r is '8'", "a whole number"]),
        ({"r": 4.0}, ["r is 4.0", "a whole number"]),
        ({"r": 0}, ["q.lora_A.weight is (4, 16), expected (0, 16)", "r = 0"]),
        ({"r": 5}, ["q.lora_A.weight is (4, 16), expected (5, 16)", "r = 5"]),
        ({"r": True}, ["r is True", "a whole number"]),
        ({"r": -4}, ["q.lora_A.weight is (4, 16), expected (-4, 16)"]),
        ({"r": -4, "use_rslora": True}, ["q.lora_A.weight is (4, 16), expected (-4, 16)"]),
        ({"r": 10**9}, ["q.lora_A.weight is (4, 16), expected (1000000000, 16)"]),
        ({"lora_alpha": "8"}, ["lora_alpha is '8'", "a number"]),
        ({"lora_alpha": True}, ["lora_alpha is True", "a number"]),
        ({"lora_alpha": math.inf}, ["adapter_config.json", "'Infinity' is not a finite number"]),
        ({"lora_dropout": -1}, ["dropout is -1"]),
        ({"use_rslora": "false"}, ["use_rslora is 'false', expected true or false or null"]),
        ({"peft_type": {"x" * 10**5: 1}}, ["peft_type is {"]),
        ({"\x1b[2J" + "x" * 10**5: 1}, ["which is more than plain LoRA"]),
        ({"lora_alpha": None}, ["lora_alpha is None", "a number"]),
        ({"lora_alpha": 0}, ["alpha is 0"]),
        ({"lora_dropout": 1}, ["dropout is 1"]),
    ],
)
def test_invalid_settings_raise(adapter, values, words):
    change_config(adapter, **values)
    assert_refused(adapter, *words)


KEYS = ["peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "base_model_name_or_path", "revision"]
KEYS += [
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "bias",
]
KEYS += ["init_lora_weights", "use_dora", "modules_to_save", "rank_pattern", "auto_mapping", "inference_mode"]
unusual = st.sampled_from([10**9, 2**63, 10**30, -1e308, 1e-45, "(a+)+$", "x" * 1000, "\x1b[2J"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | unusual,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@settings(deadline=None, max_examples=12)
@given(value=json_values)
def test_any_value_of_any_key_is_refused_by_name_or_computes(tmp_path_factory, key, value):
    directory = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted("t5"), directory)
    change_config(directory, **{key: value})
    model = tiny("t5")
    try:
        load_adapter(model, directory)
    except ValueError as error:
        message = str(error)
        assert str(directory) in message and key.removeprefix("lora_") in message
        assert message.isprintable() and len(message) < 3000
        assert not lora_layers(model)
    else:
        assert logits(model).shape == logits(tiny("t5")).shape
        save_adapter(model, directory)
        load_adapter(tiny("t5"), directory)


def test_numbers_of_numpy_and_torch_can_be_saved(tmp_path):
    model = tiny("t5")
    add_lora(model, rank=np.int64(2), alpha=np.float32(4), dropout=torch.tensor(0.5))
    save_adapter(model, tmp_path)
    config = read_config(tmp_path)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4, 0.5)


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(f"{FIRST}.lora_B.weight"), ["missing", f"{FIRST}.lora_B.weight"]),
        (lambda tensors: tensors.update({f"{FIRST}.lora_C.weight": torch.ones(1)}), ["unexpected", "lora_C"]),
        (
            lambda tensors: tensors.update({f"{FIRST}.lora_B.weight": torch.ones(4, 18)}),
            ["lora_B.weight is (4, 18), expected (18, 4)"],
        ),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 16)}),
            ["unexpected: base_model.model.lm_head.lora_A.weight"],
        ),
        (
            lambda tensors: tensors.update({f"{FIRST}.lora_A.weight": torch.ones(4, 16, dtype=torch.int8)}),
            ["q.lora_A.weight is torch.int8, expected a floating-point type"],
        ),
        (lambda tensors: tensors.clear(), ["empty"]),
    ],
)
def test_tensors_that_do_not_fit_raise(adapter, change, words):
    change_tensors(adapter, change)
    assert_refused(adapter, "adapter_model.safetensors", *words)


def test_an_adapter_of_the_other_family_raises(tmp_path):
    save_adapter(adapted("gpt2"), tmp_path)
    assert_refused(tmp_path, "unexpected: base_model.model.transformer.h.0.attn.c_attn.lora_A.weight")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_raises(adapter, name):
    (adapter / name).unlink()
    assert_refused(adapter, name, kind=FileNotFoundError)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_file_raises(adapter, name):
    content = (adapter / name).read_bytes()
    (adapter / name).write_bytes(content[: len(content) // 2])
    assert_refused(adapter, name)


def test_load_adapter_refuses_lora_layers(adapter):
    model = tiny("t5")
    load_adapter(model, adapter)
    with pytest.raises(ValueError, match="the model has LoRA layers"):
        load_adapter(model, adapter)
    load_adapter(merge_lora(model), adapter)


def test_save_adapter_requires_lora_layers(tmp_path):
    with pytest.raises(ValueError, match="the model has no LoRA layers: add_lora makes them"):
        save_adapter(tiny("t5"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_file_instead_of_a_directory_raises(tmp_path):
    (tmp_path / "adapter").write_text("")
    with pytest.raises(ValueError, match="adapter: a file, expected a directory"):
        save_adapter(adapted("t5"), tmp_path / "adapter")


def test_a_failed_save_leaves_the_old_adapter(adapter, monkeypatch):
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}

    def full(path: Path, values: dict[str, Any]) -> None:
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ftcore.lora.adapter.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(adapted("t5", rank=2), adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
