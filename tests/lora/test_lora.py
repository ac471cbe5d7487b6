"""LoRA alone: formula, frozen and trained parameters, merging. test_peft.py compares with PEFT."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from ftcore import load_model, save_model
from ftcore.decoding import generate
from ftcore.lora.lora import LoRALayer, add_lora, lora_layers, merge_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.models.gpt2 import Conv1D
from ftcore.training.loss import batch_loss
from ftcore.training.optim import adamw
from tests.helpers.tiny_lora import (
    CASES,
    VARIANTS,
    VOCAB,
    alphas,
    cases,
    copies,
    logits,
    randomize_updates,
    ranks,
    seeds,
    tiny,
)

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def batch(variant: str) -> dict[str, Tensor]:
    ids = torch.randint(2, VOCAB, (3, 9), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()
    labels = ids.flip(1) if variant != "gpt2" else ids
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def base_name(name: str) -> str:
    return name.replace(".base_layer", "")


# ---------------------------------------------------------------------------------------------- the layer


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_layer_formula(kind):
    torch.manual_seed(0)
    base = kind(5, 7).double()
    nn.init.normal_(base.weight)
    nn.init.normal_(base.bias)
    layer = LoRALayer(base, rank=3, alpha=6, dropout=0.0)
    nn.init.normal_(layer.lora_B.weight)
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)

    matrix = base.weight if kind is nn.Linear else base.weight.T  # W, (out, in)
    change = 6 / 3 * layer.lora_B.weight @ layer.lora_A.weight
    expected = inputs @ (matrix + change).T + base.bias
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(layer.merged()(inputs), expected, rtol=1e-13, atol=1e-13)


def test_dropout_applies_to_the_input_of_a_only():
    torch.manual_seed(0)
    layer = LoRALayer(nn.Linear(50, 7), rank=3, alpha=6, dropout=0.4)
    nn.init.normal_(layer.lora_B.weight)
    inputs = torch.randn(4, 50)
    torch.manual_seed(1)
    got = layer(inputs)
    torch.manual_seed(1)
    thinned = F.dropout(inputs, 0.4)
    assert torch.equal(got, layer.base_layer(inputs) + layer.lora_B(layer.lora_A(thinned)) * 2)
    undisturbed = layer.base_layer(inputs) + layer.lora_B(layer.lora_A(inputs)) * 2
    assert torch.equal(layer.eval()(inputs), undisturbed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_has_no_effect_before_training(variant):
    model = tiny(variant)
    before = logits(model)
    add_lora(model, dropout=0.5, targets="all-linear")
    assert torch.equal(logits(model.train()), before)
    randomize_updates(model)
    assert not torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model.eval()), logits(model))


# ---------------------------------------------------------------------------------------------- adding


@settings(deadline=None, max_examples=25)
@given(cases, ranks, alphas, seeds)
def test_add_lora_keeps_the_output(case, rank, alpha, seed):
    variant, targets = case
    model = tiny(variant, seed)
    before = logits(model)
    add_lora(model, rank=rank, alpha=alpha, targets=targets)
    assert torch.equal(logits(model), before)
    randomize_updates(model)
    assert error(logits(model), before) > 1e-3


@pytest.mark.parametrize(
    ("variant", "targets", "expected"),
    [
        ("t5", None, "encoder.block.0.layer.0.SelfAttention.q encoder.block.0.layer.0.SelfAttention.v "
         "encoder.block.1.layer.0.SelfAttention.q encoder.block.1.layer.0.SelfAttention.v "
         "decoder.block.0.layer.0.SelfAttention.q decoder.block.0.layer.0.SelfAttention.v "
         "decoder.block.0.layer.1.EncDecAttention.q decoder.block.0.layer.1.EncDecAttention.v"),
        ("t5", "EncDecAttention.q", "decoder.block.0.layer.1.EncDecAttention.q"),
        ("t5", ["encoder.block.1.layer.0.SelfAttention.o"], "encoder.block.1.layer.0.SelfAttention.o"),
        ("t5-v1.1", ["wi_1"], "encoder.block.0.layer.1.DenseReluDense.wi_1 "
         "encoder.block.1.layer.1.DenseReluDense.wi_1 decoder.block.0.layer.2.DenseReluDense.wi_1"),
        ("gpt2", None, "transformer.h.0.attn.c_attn transformer.h.1.attn.c_attn"),
        ("gpt2", ["mlp.c_proj"], "transformer.h.0.mlp.c_proj transformer.h.1.mlp.c_proj"),
        ("gpt2", "all-linear", " ".join(f"transformer.h.{layer}.{name}" for layer in (0, 1)
         for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))),
    ],
)  # fmt: skip
def test_targets_are_suffixes_of_names(variant, targets, expected):
    model = tiny(variant)
    add_lora(model, targets=targets)
    assert list(lora_layers(model)) == expected.split()


def test_all_linear_excludes_head_and_embeddings():
    model = tiny("t5-v1.1")
    add_lora(model, targets="all-linear")
    linear = {name for name, module in tiny("t5-v1.1").named_modules() if isinstance(module, nn.Linear)}
    assert set(lora_layers(model)) == linear - {"lm_head"}


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_mode_are_kept(training):
    model = tiny("t5").train(training)
    add_lora(model)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0, expected at least 1"),
        ({"rank": 2.0}, "rank is 2.0, expected a whole number"),
        ({"rank": True}, "rank is True, expected a whole number"),
        ({"rank": 10**9}, "rank is 1000000000, expected at most 18, the width of the layers"),
        ({"alpha": 0}, "alpha is 0, expected more than 0"),
        ({"alpha": math.inf}, "alpha is inf, expected a number"),
        ({"alpha": "8"}, "alpha is '8', expected a number"),
        ({"alpha": math.nan}, "alpha is nan, expected a number"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a rate from 0 to below 1"),
        ({"dropout": -0.1}, "dropout is -0.1, expected a rate from 0 to below 1"),
        ({"targets": []}, "targets is empty, expected names of layers or all-linear"),
        (
            {"targets": ["q", "vv"]},
            "targets: 'vv' names no layer; .* (here k, o, q, v, wi, wo), or all-linear",
        ),
        ({"targets": "SelfAttention"}, "targets: 'SelfAttention' names no layer;"),
        ({"targets": ["shared"]}, "targets: 'shared' names no layer;"),
        ({"targets": ["lm_head"]}, "targets: 'lm_head' names no layer;"),
        ({"targets": ["elfAttention.q"]}, "targets: 'elfAttention.q' names no layer;"),
    ],
)
def test_invalid_arguments_raise_and_change_nothing(arguments, message):
    model = tiny("t5")
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")) as raised:
        add_lora(model, **arguments)
    assert "\n" not in str(raised.value)
    assert not lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_add_lora_refuses_lora_layers():
    model = tiny("gpt2")
    add_lora(model)
    with pytest.raises(ValueError, match="the model has LoRA layers: use merge_lora"):
        add_lora(model, targets="all-linear")
    again = merge_lora(model)
    add_lora(again)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("build", "matrices"),
    [
        # T5-small: 6 + 12 attentions, q and v, 512 in and out; GPT-2: 12 layers, 768 in and 2304 out
        (lambda: T5ForConditionalGeneration(T5Config()), 18 * 2 * (512 + 512)),
        (lambda: GPT2LMHeadModel(GPT2Config()), 12 * (768 + 2304)),
    ],
    ids=["t5-small", "gpt2"],
)
@pytest.mark.parametrize("rank", [4, 8, 16, 32])
def test_less_than_two_percent_are_trained(build, matrices, rank):
    with torch.device("meta"):
        model = build()
        add_lora(model, rank=rank)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert trained == rank * matrices
    assert trained < 0.02 * whole


@pytest.mark.parametrize("name", ["t5-mini", "gpt2-mini"])
def test_less_than_two_percent_of_the_bundled_models_are_trained(name):
    model = load_model(WEIGHTS / name)
    add_lora(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < trained < 0.02 * sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("variant", "targets"), CASES)
def test_only_a_and_b_have_gradients(variant, targets):
    model = tiny(variant)
    add_lora(model, targets=targets)
    randomize_updates(model)
    batch_loss(model, batch(variant)).total.backward()
    for name, parameter in model.named_parameters():
        learns = ".lora_" in name
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


@pytest.mark.parametrize(("variant", "targets"), CASES)
def test_training_changes_only_a_and_b(variant, targets):
    model = tiny(variant)
    originals = copies(model)
    add_lora(model, targets=targets)
    start = copies(model)
    optimizer = adamw(model, lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(8):
        loss = batch_loss(model, batch(variant)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert not torch.equal(parameter, start[name]), name
        else:
            assert torch.equal(parameter, originals[base_name(name)]), name


# ---------------------------------------------------------------------------------------------- merging


@settings(deadline=None, max_examples=25)
@given(cases, ranks, alphas, seeds)
def test_merged_equals_unmerged(case, rank, alpha, seed):
    variant, targets = case
    model = tiny(variant, seed)
    names = list(model.state_dict())
    add_lora(model, rank=rank, alpha=alpha, targets=targets)
    randomize_updates(model, seed)
    merged = merge_lora(model)
    assert list(merged.state_dict()) == names
    assert error(logits(merged), logits(model)) <= 1e-5
    model.double()
    assert (
        error(logits(merge_lora(model)), logits(model)) <= 1e-5 * 2**-29
    )  # the same tolerance in float64 units


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_does_not_change_the_model(variant):
    model = tiny(variant)
    add_lora(model)
    randomize_updates(model)
    before, output = copies(model), logits(model)
    merged = merge_lora(model)
    assert torch.equal(logits(model), output)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == [
        ".lora_" in n for n, _ in model.named_parameters()
    ]
    assert all(parameter.requires_grad for parameter in merged.parameters())

    mine = {base_name(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in merged.named_parameters():
        same_memory = parameter.data_ptr() == mine[name].data_ptr()
        assert same_memory == (name.removesuffix(".weight") not in lora_layers(model)), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_model_can_be_saved(variant, tmp_path):
    model = tiny(variant)
    add_lora(model, targets="all-linear")
    randomize_updates(model)
    merged = merge_lora(model)
    save_model(merged, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert list(loaded.state_dict()) == list(tiny(variant).state_dict())
    assert torch.equal(logits(loaded), logits(merged))
    head_is_embedding = variant in ("t5", "gpt2")
    embedding = merged.transformer.wte if variant == "gpt2" else merged.shared
    assert (merged.lm_head.weight is embedding.weight) == head_is_embedding


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_a_plain_model_changes_nothing(variant):
    model = tiny(variant)
    assert torch.equal(logits(merge_lora(model)), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_the_same_merged_or_not(variant, num_beams):
    model = tiny(variant)
    add_lora(model, targets="all-linear")
    randomize_updates(model)
    ids = batch(variant)["input_ids"]
    arguments = {"max_new_tokens": 8, "num_beams": num_beams, "eos_token_id": None}
    got = generate(model, ids, **arguments)
    assert torch.equal(got, generate(merge_lora(model), ids, **arguments))


# ---------------------------------------------------------------------------------------------- half types


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bfloat16_a_and_b_stay_in_float32(variant):
    model = tiny(variant).bfloat16()
    add_lora(model, targets="all-linear")
    randomize_updates(model)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
    assert logits(model).dtype == torch.bfloat16
    merged = merge_lora(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    for name, layer in lora_layers(model).items():
        exact = layer.lora_B.weight @ layer.lora_A.weight * layer.scaling
        exact = layer.weight + (exact.T if variant == "gpt2" else exact)
        assert torch.equal(merged.get_submodule(name).weight, exact.bfloat16()), name


def test_float16_t5_keeps_wo_in_float32(tmp_path):
    save_model(tiny("t5"), tmp_path)
    model = load_model(tmp_path, dtype=torch.float16)
    add_lora(model, targets="all-linear")
    randomize_updates(model)
    assert logits(model).dtype == torch.float16
    assert error(logits(merge_lora(model)).float(), logits(model).float()) < 0.02  # float16 has 11 bits
    assert merge_lora(model).encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
