"""Frozen modules do not change and need no optimizer state; their names may hold ranges."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import ftcore.train
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.training.resize import freeze
from tests.helpers import tiny_runs


def t5(**settings: Any) -> T5ForConditionalGeneration:
    sizes = {"vocab_size": 30, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_layers": 4}
    return T5ForConditionalGeneration(T5Config(**sizes | settings))


def gpt2(**settings: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": 30, "n_positions": 8, "n_embd": 8, "n_layer": 4, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes | settings))


MODELS = {"t5": t5(), "t5-untied": t5(tie_word_embeddings=False), "gpt2": gpt2()}


def frozen(model: torch.nn.Module) -> set[str]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if not parameter.requires_grad}


def below(model: torch.nn.Module, *modules: str) -> set[str]:
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return {name for name in names if name.startswith(tuple(f"{module}." for module in modules))}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(MODELS)), st.data())
def test_the_named_modules_and_tied_parameters_are_frozen(family: str, data: st.DataObject) -> None:
    model = MODELS[family].requires_grad_(True)
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    covered = chain.from_iterable(model.get_submodule(name).parameters() for name in chosen)
    assume({id(parameter) for parameter in covered} < {id(parameter) for parameter in model.parameters()})
    tied = freeze(model, chosen)
    inside = below(model, *chosen)
    assert frozen(model) == inside | set(tied) and not inside & set(tied)
    tensors = {id(model.get_parameter(name)) for name in inside}
    assert all(id(model.get_parameter(name)) in tensors for name in tied)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(0, 3))
def test_a_range_equals_its_modules(one: int, other: int) -> None:
    first, last = sorted((one, other))
    model = t5()
    assert freeze(model, [f"decoder.block.{first}-{last}.layer.0-1"]) == []
    wanted = [f"decoder.block.{block}.layer.{layer}" for block in range(first, last + 1) for layer in (0, 1)]
    assert frozen(model) == below(model, *wanted)


@pytest.mark.parametrize(
    ("model", "name", "also"),
    [
        (t5(), "shared", ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
        (t5(), "encoder", ["shared", "decoder.embed_tokens", "lm_head"]),
        (t5(tie_word_embeddings=False), "shared", ["encoder.embed_tokens", "decoder.embed_tokens"]),
        (t5(tie_word_embeddings=False), "lm_head", []),
        (gpt2(), "transformer.wte", ["lm_head"]),
        (gpt2(tie_word_embeddings=False), "transformer.wte", []),
    ],
)
def test_tied_names_are_returned(model: Any, name: str, also: list[str]) -> None:
    assert freeze(model, [name]) == [f"{module}.weight" for module in also]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encodr", "`freeze` encodr: the model has no module 'encodr', did you mean 'encoder'?"),
        ("decoder.blok.0-3", "no module 'decoder.blok.0', did you mean 'decoder.block.0'?"),
        ("decoder.block.2-9", "no module 'decoder.block.4', did you mean 'decoder.block.3'?"),
        ("decoder.block.3-0", "no module 'decoder.block.3-0', did you mean"),
        ("0-3", "no module '0'; its parts are shared, encoder, decoder, lm_head"),
        ("decoder.block.0-9999.layer.0-9999", "no module 'decoder.block.0.layer.3', did you mean"),
        ("decoder.block.0-999999999999", "no module 'decoder.block.0-999999999999', did you mean"),
        ("encoder.", "no module 'encoder.', did you mean 'encoder'?"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    model = t5()
    with pytest.raises(ValueError) as refusal:
        freeze(model, ["shared", name])
    assert message in str(refusal.value)
    assert not frozen(model)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`freeze` transformer leaves nothing to train"):
        freeze(gpt2(), ["transformer"])


@pytest.mark.parametrize(
    ("build", "names", "also"),
    [
        (tiny_runs.tiny_t5, ["encoder.block.0", "encoder.block.1", "decoder.block.0.layer.1"], None),
        (tiny_runs.tiny_t5, ["encoder"], "shared.weight, decoder.embed_tokens.weight, lm_head.weight"),
        (tiny_runs.tiny_gpt2, ["transformer.h.0", "transformer.wte"], "lm_head.weight"),
    ],
)
def test_a_run_does_not_change_them(
    tmp_path: Path, capsys: pytest.CaptureFixture, build: Any, names: list[str], also: str | None
) -> None:
    layers = {"num_layers": 2} if build is tiny_runs.tiny_t5 else {"n_layer": 2}
    model, run = build(tmp_path / "model", **layers), tmp_path / "run"
    data = tiny_runs.questions(tmp_path / "train.jsonl", 8)
    command = f"--model {model} --train {data} --output {run} --max-steps 2 --lr 0.01 --max-target-length 20"
    assert ftcore.train.main([*command.split(), "--eval-answers", "0", "--freeze", *names]) == 0

    captured = capsys.readouterr()
    warning = f"warning: --freeze {' '.join(names)} freezes {also} too: they are tied to it"
    assert captured.err.splitlines() == ([warning] if also else [])
    before, after = (load_file(folder / "model.safetensors") for folder in (model, run / "last"))
    still = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    tied_to = {"shared.weight"} if names == ["encoder"] else set()  # written once, under this name
    assert still == {name for name in before if name.startswith(tuple(f"{n}." for n in names))} | tied_to

    state = torch.load(run / "state" / "training_state.pt", weights_only=True)
    assert len(state["optimizer"]["state"]) == len(before) - len(still)
    trained = sum(tensor.numel() for name, tensor in before.items() if name not in still)
    assert f"trained    {trained:,} parameters, " in captured.out
