"""Arguments that do not fit are refused by name; numpy's numbers are taken; no result is NaN."""

import numpy as np
import pytest
import torch

from ftcore.analysis import (
    activation_patching,
    attention_maps,
    attention_while_generating,
    copy_scores,
    draw_ablation,
    draw_attention,
    draw_attribution,
    draw_heads,
    draw_lens,
    draw_patched,
    draw_relative_bias,
    draw_residual_norms,
    draw_token_losses,
    draw_top_activations,
    duplicate_token_scores,
    head_ablation,
    hidden_states,
    induction_scores,
    logit_attribution,
    logit_difference,
    path_patching,
    prefix_matching_scores,
    previous_token_scores,
    relative_bias_curves,
    residual_norms,
    save_figure,
    token_losses,
    top_activations,
)
from ftcore.analysis.attribution import total
from ftcore.analysis.patching import Patched
from ftcore.figures import new_figure
from ftcore.study import compare_modules, logit_lens
from tests.helpers.oracle import VOCAB
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny

GPT2, T5 = tiny("gpt2"), tiny("t5")
INPUTS = random_inputs("gpt2")
IDS = INPUTS["input_ids"]  # (2, 7)
MAPS = torch.rand(3, 2, 3, 7, 7)
WORDS = [str(number) for number in range(7)]


def last(logits):
    return logits[:, -1].mean(-1)


def sweep(**options):
    return activation_patching(GPT2, INPUTS, INPUTS, last, "resid_pre.*", progress=False, **options)


def metric(**changed):
    arguments = {"right": torch.tensor([1, 2]), "wrong": torch.tensor([3, 4])} | changed
    return logit_difference(**arguments)(torch.rand(2, 7, 90))


def attribution(tokens, others=None):
    return logit_attribution(GPT2, INPUTS, tokens, others)


def top(name="neurons.1", k=3):
    return top_activations(GPT2, [INPUTS], name, k)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # sizes and labels of figures
        (lambda: draw_attention(MAPS[:, 0], WORDS[:6], WORDS), "queries has 6 labels, expected 7"),
        (lambda: draw_attention(MAPS[:, 0], WORDS, [*WORDS, "8"]), "keys has 8 labels, expected 7"),
        (lambda: draw_attention(MAPS, WORDS, WORDS), r"maps is \(3, 2, 3, 7, 7\), expected \(L, H, T, S\)"),
        (lambda: draw_lens(torch.rand(3, 7, 90), WORDS[:5], str), "tokens has 5 labels, expected 7"),
        (lambda: draw_lens(torch.rand(3, 2, 7, 90), WORDS, str), r"lens is .* expected \(blocks, T, V\)"),
        (lambda: draw_token_losses(torch.rand(6), WORDS), "tokens has 7 labels, expected 6"),
        (lambda: draw_token_losses(torch.rand(2, 7), WORDS), r"losses is \(2, 7\), expected \(T\)"),
        (
            lambda: draw_patched(
                Patched(torch.rand(3, 7), torch.tensor(1.0), torch.tensor(0.0)), WORDS[:2], WORDS
            ),
            "rows has 2 labels, expected 3",
        ),
        (
            lambda: draw_patched(
                Patched(torch.rand(3, 7), torch.tensor(1.0), torch.tensor(0.0)), WORDS[:3], WORDS[:6]
            ),
            "columns has 6 labels, expected 7",
        ),
        (lambda: draw_heads({"decoder": torch.rand(3)}), r"field is \(3,\), expected \(L, H\)"),
        (lambda: draw_residual_norms({"decoder": torch.rand(4, 7)}), r"expected \(L\+1, B, T\)"),
        (lambda: draw_attribution(attribution(5), row=2), "row is 2, expected a whole number from -2 to 1"),
        (lambda: draw_attribution(attribution(5), position=7), "position is 7"),
        (lambda: draw_attribution(attribution(5), position=1.0), "position is 1.0"),
        (lambda: draw_top_activations(top(), 96, [WORDS, WORDS]), "neuron is 96"),
        (lambda: draw_top_activations(top(), 0, []), "texts has the tokens of 0 texts, expected at least"),
        (lambda: draw_relative_bias(relative_bias_curves(T5, "encoder"), table=1), "table is 1"),
        (lambda: save_figure(new_figure(1, 1), "figure.jpg"), "figure.jpg: .* .png, .pdf, .svg"),
        (lambda: save_figure(new_figure(1, 1), "figure"), "figure: expected a name that ends with"),
        # sizes of tensors
        (lambda: previous_token_scores(MAPS[:, 0]), r"maps is \(3, 3, 7, 7\), expected \(L, B, H, T, T\)"),
        (lambda: prefix_matching_scores(MAPS, IDS[:, :6]), r"maps is .* expected \(L, 2, H, 6, 6\)"),
        (lambda: duplicate_token_scores(MAPS, IDS[:1]), r"maps is .* expected \(L, 1, H, 7, 7\)"),
        (lambda: compare_modules(GPT2, GPT2, INPUTS, where=torch.ones(7, 2)), r"where is \(7, 2\), expected"),
        # numbers out of range
        (lambda: metric(position=7), "position is 7, expected a whole number from -7 to 6"),
        (lambda: metric(position=0.5), "position is 0.5"),
        (lambda: metric(right=torch.tensor([1, 90])), "right: token id 90, but"),
        (lambda: metric(wrong=torch.tensor([-1])), "wrong: token id -1"),
        (lambda: metric(wrong=torch.tensor([1, 2, 3])), "wrong has 3 token ids, expected 1 or 2"),
        (lambda: attribution(torch.tensor([[-1]])), "tokens: token id"),
        (lambda: attribution(5, VOCAB), "others: token id 97"),
        (lambda: attribution(torch.tensor([[0.5]])), "tokens: token id"),
        (lambda: top(k=0), "k is 0"),
        (lambda: top(name="neurons.*"), "matches several activations"),
        (lambda: top(name="pattern.1"), r"expected \(B, T, F\)"),
        (
            lambda: token_losses(T5, random_inputs("t5"), torch.tensor([[3, VOCAB], [3, 3]])),
            "labels: token id 97",
        ),
        (lambda: induction_scores(GPT2, length=0), "length is 0, expected a whole number from 1"),
        (lambda: induction_scores(GPT2, length=VOCAB + 1), "length is 98, .* from 1 to 97"),
        (lambda: relative_bias_curves(T5, "encoder", reach=-1), "reach is -1"),
        # names
        (lambda: relative_bias_curves(T5, "encodr"), "stack is 'encodr', .* did you mean 'encoder'"),
        (lambda: sweep(over="positions"), "over is 'positions', expected a list"),
        (lambda: sweep(over=["position"]), r"over is \['position'\]"),
        (
            lambda: activation_patching(
                T5, random_inputs("t5"), random_inputs("t5"), last, "*.resid_pre.*", over=["positions"]
            ),
            "activations of different sizes",
        ),
        # results that are not defined
        (lambda: sweep().restored, "no difference to restore"),
        (lambda: prefix_matching_scores(MAPS, torch.arange(14).view(2, 7)), "no position"),
        (lambda: induction_scores(GPT2, length=10, repeats=1), "no position"),
        (lambda: previous_token_scores(MAPS[..., :1, :1]), "no position"),
        (lambda: hidden_states(T5, {"input_ids": IDS}), "decoder_input_ids are missing"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call, message, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_numbers_are_taken(kind):
    pytest.importorskip("matplotlib")
    one, three = kind(1), kind(3)
    assert torch.equal(metric(position=one, right=[one, one]) * 0, torch.zeros(2))
    assert torch.equal(total(attribution(three, one)), total(attribution(3, 1)))
    draw_attribution(attribution(3), row=one, position=three)
    draw_top_activations(top(k=three), one, [WORDS, WORDS])
    draw_relative_bias(relative_bias_curves(T5, "encoder", reach=kind(9)), table=kind(0))
    sizes = {"rows": kind(2), "length": kind(6), "repeats": kind(2), "seed": three}
    assert torch.equal(
        induction_scores(GPT2, **sizes), induction_scores(GPT2, rows=2, length=6, repeats=2, seed=3)
    )
    number = head_ablation(GPT2, INPUTS, lambda logits: np.float64(logits[0, -1, 3]), progress=False)
    assert draw_ablation(number).axes


def test_restored_is_a_ratio_of_means():
    """A row in which both runs agree must not make it infinite."""
    clean, corrupted = torch.tensor([3.0, 1.0, 5.0]), torch.tensor([1.0, 1.0, 5.0 - 1e-7])
    values = torch.stack([clean, corrupted, torch.tensor([2.0, 1.0, 5.0])])
    restored = Patched(values, clean, corrupted).restored
    torch.testing.assert_close(restored, torch.tensor([1.0, 0.0, 0.5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")])
def test_a_figure_has_the_format_of_its_suffix(suffix, start, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / f"figure.{suffix}"
    save_figure(draw_heads({"decoder": torch.rand(3, 3)}), path)
    assert path.read_bytes().startswith(start) and len(list(path.parent.iterdir())) == 1


def test_a_head_without_output_copies_nothing():
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[8:16] = 0  # the rows of head 1
    assert copy_scores(model)["decoder"][1, 1] == 0


# NaN

PARAMETERS = {
    "gpt2": "transformer.h.1.mlp.c_fc.bias",
    "t5": "decoder.block.1.layer.1.EncDecAttention.v.weight",
}
NAN_CASES = {
    "attention_maps": attention_maps,
    "attention_while_generating": lambda model, inputs: attention_while_generating(
        model, inputs["input_ids"], max_new_tokens=2
    ),
    "hidden_states": hidden_states,
    "residual_norms": residual_norms,
    "logit_attribution": lambda model, inputs: logit_attribution(model, inputs, 5),
    "token_losses": lambda model, inputs: token_losses(
        model, inputs, *([IDS] if model.config.is_encoder_decoder else [])
    ),
    "top_activations": lambda model, inputs: top_activations(
        model, [inputs], f"{'decoder.' * model.config.is_encoder_decoder}neurons.1"
    ),
    "head_ablation": lambda model, inputs: head_ablation(model, inputs, last, progress=False),
    "activation_patching": lambda model, inputs: activation_patching(
        model, inputs, inputs, last, f"{'decoder.' * model.config.is_encoder_decoder}z.1", progress=False
    ),
    "path_patching": lambda model, inputs: path_patching(
        model,
        inputs,
        inputs,
        last,
        *(
            ("cross.z.*", "decoder.resid_post.2")
            if model.config.is_encoder_decoder
            else ("z.*", "resid_post.2")
        ),
        progress=False,
    ),
    "logit_lens": lambda model, inputs: logit_lens(model, **inputs),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAN_CASES)
def test_nan_weights_are_named(name, family):
    model, inputs, parameter = tiny(family), random_inputs(family), PARAMETERS[family]
    with torch.no_grad():
        model.get_parameter(parameter)[0] = float("nan")
    with pytest.raises(FloatingPointError, match=parameter) as error:
        NAN_CASES[name](model, inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_analyses_of_weights(value):
    model = tiny("t5")
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[3] = value
        model.decoder.block[2].layer[0].SelfAttention.v.weight[3] = value
    for call in (lambda: relative_bias_curves(model, "encoder"), lambda: copy_scores(model)):
        with pytest.raises(FloatingPointError, match=r"layer.0.SelfAttention.* holds (NaN|infinity)"):
            call()


def test_the_module_of_an_overflow_is_named():
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight.mul_(1e38)
    with pytest.raises(FloatingPointError, match=r"transformer\.ln_f, whose input ranged"):
        residual_norms(model, INPUTS)
