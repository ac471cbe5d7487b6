"""Known mistakes are named, correct layers are equal, and unknown changes have no cause."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore.models import GPT2Config
from ftcore.models.attention import attention_mask_bias
from ftcore.models.gpt2 import GPT2Block
from ftcore.models.t5 import relative_position_bias
from ftcore.study import compare_modules, randomize_weights
from ftcore.study.report import Report
from tests.helpers.mistakes import HEADS, MISTAKES, WIDTH, Case, case, exact_gelu, other_epsilon, wrong_scale
from tests.helpers.oracle import (
    LENGTHS,
    gpt2_pair,
    gpt2_settings,
    padding,
    seeds,
    sides,
    t5_pair,
    t5_settings,
)


def report_of(case: Case, **options: object) -> Report:
    return compare_modules(
        case.mine,
        case.reference,
        case.inputs,
        reference_inputs=case.reference_inputs,
        where=case.where,
        **options,
    )


ALL = [
    pytest.param(family, mistake, name, id=f"{family}-{mistake.__name__}")
    for family, mistakes in MISTAKES.items()
    for mistake, name in mistakes.items()
]


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize(("family", "mistake", "name"), ALL)
def test_mistake_is_named(family, mistake, name, is_ours, monkeypatch):
    broken = case(family, is_ours, monkeypatch)
    mistake(broken)
    report = report_of(broken, backward=False)
    assert [cause.name for cause in report.causes] == [name], str(report)
    (cause,) = report.causes
    half = name == "half precision"  # the difference is its rounding error, which remains
    assert cause.after < (1e-2 if half else cause.before / 4)
    assert cause.module == report.first_bad_module


class FunctionalBlock(nn.Module):
    """GPT-2's block without submodules: only its output can be compared."""

    def __init__(self, block: GPT2Block, mistake: str) -> None:
        super().__init__()
        self.weights = {name: weight.detach() for name, weight in block.named_parameters()}
        self.mistake = mistake

    def linear(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if self.mistake == "transposed weight" and name == "attn.c_proj":
            weight = weight.T
        if self.mistake == "bias missing" and name == "mlp.c_fc":
            bias = torch.zeros(())
        return hidden @ weight + bias

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        eps = 1e-3 if self.mistake == "another epsilon" else 1e-5
        if self.mistake == "RMSNorm for LayerNorm":
            return F.rms_norm(hidden, weight.shape, weight, eps)
        return F.layer_norm(hidden, weight.shape, weight, bias, eps)

    def attention(self, hidden: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.linear("attn.c_attn", hidden).chunk(3, dim=-1)
        )
        if self.mistake == "q, k, v in another order":
            k, v = v, k
        scale = {"missing 1/sqrt(d)": 1.0, "extra 1/sqrt(d)": 1 / 8}.get(self.mistake, 8**-0.5)
        ahead = {"causal mask off by one": 1, "causal mask missing": 99}.get(self.mistake, 0)
        visible = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril(ahead)
        scores = (q @ k.transpose(-2, -1) * scale).masked_fill(~visible, -torch.inf)
        weights = F.dropout(scores.softmax(-1), 0.1 if self.mistake == "dropout left on" else 0.0)
        return self.linear("attn.c_proj", (weights @ v).transpose(1, 2).flatten(2))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.norm("ln_1", hidden))
        wide = self.linear("mlp.c_fc", self.norm("ln_2", hidden))
        approximate = "none" if self.mistake == "gelu for gelu_new" else "tanh"
        hidden = hidden + self.linear("mlp.c_proj", F.gelu(wide, approximate=approximate))
        return hidden.bfloat16() if self.mistake == "half precision" else hidden


FUNCTIONAL_MISTAKES = [
    "missing 1/sqrt(d)",
    "extra 1/sqrt(d)",
    "transposed weight",
    "q, k, v in another order",
    "gelu for gelu_new",
    "another epsilon",
    "RMSNorm for LayerNorm",
    "causal mask missing",
    "causal mask off by one",
    "bias missing",
    "dropout left on",
    "half precision",
]


@pytest.mark.parametrize("mistake", [None, *FUNCTIONAL_MISTAKES])
def test_mistake_is_named_without_submodules_to_compare(mistake):
    block = randomize_weights(GPT2Block(GPT2Config(n_embd=WIDTH, n_head=HEADS), layer=0))
    hidden = torch.randn(2, 20, WIDTH, generator=torch.Generator().manual_seed(0))
    report = compare_modules(
        FunctionalBlock(block, mistake), block, hidden, reference_inputs=(hidden, None, None), backward=False
    )
    assert [row.name for row in report.rows] == [""]
    assert report.equal == (mistake is None)
    assert [cause.name for cause in report.causes] == [mistake] * (mistake is not None), str(report)


# -------------------------------------------------------------------------- correct layers, unknown changes

UNKNOWN_CHANGES = {
    "t5": [
        "shared",
        "encoder.block.1.layer.0.layer_norm",
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.block.1.layer.1.EncDecAttention.o",
        "decoder.block.1.layer.2.DenseReluDense.wo",
    ],
    "gpt2": [
        "transformer.wte",
        "transformer.wpe",
        "transformer.h.0.ln_1",
        "transformer.h.0.attn.c_attn",
        "transformer.h.1.attn.c_proj",
        "transformer.h.1.mlp.c_fc",
    ],
}


def scaled_up(part: nn.Module) -> None:
    part.weight.mul_(1.1)


def perturbed(part: nn.Module) -> None:
    noise = torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(1))
    part.weight.add_(0.03 * noise)


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize("change", [scaled_up, perturbed])
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in UNKNOWN_CHANGES for name in UNKNOWN_CHANGES[family]]
)
def test_unknown_weight_change_has_no_cause(family, name, change, is_ours, monkeypatch):
    broken = case(family, is_ours, monkeypatch)
    with torch.no_grad():
        change(broken.mine.get_submodule(name))
    report = report_of(broken, backward=False)
    assert not report.equal
    assert report.causes == [], str(report)
    assert "no known cause" in str(report)
    assert f"{name}.weight" in str(report)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_unknown_change_between_modules_has_no_cause(family, monkeypatch):
    broken = case(family, True, monkeypatch)
    part = broken.attentions()[1].softmax
    part.register_forward_hook(lambda module, args, weights: weights * 1.05)
    report = report_of(broken, backward=False)
    assert not report.equal
    assert report.causes == [], str(report)


@settings(max_examples=25, deadline=None)
@given(t5_settings, seeds, st.sampled_from(LENGTHS), sides)
def test_correct_t5_layers_are_equal(sizes, seed, length, side):
    theirs, ours = t5_pair(sizes, seed)
    layer = f"encoder.block.{seed % sizes['num_layers']}"
    hidden = torch.randn(3, length, sizes["d_model"], generator=torch.Generator().manual_seed(seed))
    table = ours.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    distance = sizes["relative_attention_max_distance"]
    position_bias = relative_position_bias(table, length, length, distance, bidirectional=True).detach()
    mask = attention_mask_bias(padding(seed, 3, length, side), length, length, causal=False, like=hidden)
    report = compare_modules(
        ours.get_submodule(layer),
        theirs.get_submodule(layer),
        (hidden, position_bias + mask),
        reference_inputs={"hidden_states": hidden, "attention_mask": mask, "position_bias": position_bias},
    )
    assert report.equal, str(report)
    assert report.causes == []


@settings(max_examples=25, deadline=None)
@given(gpt2_settings, seeds, st.sampled_from(LENGTHS))
def test_correct_gpt2_layers_are_equal(sizes, seed, length):
    theirs, ours = gpt2_pair(sizes, seed)
    layer = f"transformer.h.{seed % sizes['n_layer']}"
    hidden = torch.randn(3, length, sizes["n_embd"], generator=torch.Generator().manual_seed(seed))
    mask = attention_mask_bias(padding(seed, 3, length, "right"), length, length, causal=True, like=hidden)
    report = compare_modules(
        ours.get_submodule(layer),
        theirs.get_submodule(layer),
        (hidden, mask, None),
        reference_inputs={"hidden_states": hidden, "attention_mask": mask},
    )
    assert report.equal, str(report)
    assert report.causes == []


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_search_for_causes_changes_neither_model(family, is_ours, monkeypatch):
    broken = case(family, is_ours, monkeypatch)
    other_epsilon(broken)
    models = broken.mine, broken.reference
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    ways = [config._attn_implementation for config in configs(*models)]
    assert report_of(broken).causes
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert [config._attn_implementation for config in configs(*models)] == ways


def configs(*models: nn.Module) -> list[object]:
    found = [getattr(part, "config", None) for model in models for part in model.modules()]
    return [config for config in found if hasattr(config, "_attn_implementation")]


def test_two_mistakes_are_found_in_turn(monkeypatch):
    broken = case("gpt2", False, monkeypatch)
    exact_gelu(broken)
    wrong_scale(broken)
    assert [cause.name for cause in report_of(broken).causes] == ["missing 1/sqrt(d)"]
    for attention in broken.attentions():
        attention.scaling = 8**-0.5
    assert [cause.name for cause in report_of(broken).causes] == ["gelu for gelu_new"]


def test_tied_head_is_named(monkeypatch):
    broken = case("t5", True, monkeypatch, tie_word_embeddings=False)
    broken.mine.lm_head.weight = broken.mine.shared.weight
    assert [cause.name for cause in report_of(broken, backward=False).causes] == ["tied head"]


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_dropout_that_ignores_eval_mode(family, monkeypatch):
    broken = case(family, True, monkeypatch)
    part = broken.attentions()[0].softmax
    part.register_forward_hook(lambda module, args, weights: F.dropout(weights, 0.1))
    assert [cause.name for cause in report_of(broken).causes] == ["dropout left on"]


def test_docs_page_lists_all_known_mistakes():
    page = Path(__file__).resolve().parents[2] / "docs" / "test_your_own_layer.md"
    table = page.read_text(encoding="utf-8").split("## Known mistakes")[1].split("Each is")[0]
    listed = set(re.findall(r"[a-z_]{4,}", table.lower()))
    for name in {name for mistakes in MISTAKES.values() for name in mistakes.values()} | {"tied head"}:
        assert set(re.findall(r"[a-z_]{4,}", name.lower())) <= listed, name
