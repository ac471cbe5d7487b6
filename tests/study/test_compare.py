"""compare_modules: pairing, tolerance, the report, and no side effects; randomize_weights."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.models.gpt2 import GPT2MLP, GPT2Attention
from ftcore.study import assert_same_as_reference, compare_modules, randomize_weights, spread_weights
from ftcore.study.compare import select_tokens
from ftcore.study.report import Report, broadcast, difference, rounding, shorten
from tests.helpers.oracle import gpt2_pair, padding, t5_pair, tokens

GPT2 = GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_head=4, n_layer=2)
T5 = T5Config(vocab_size=97, d_model=24, d_kv=8, d_ff=40, num_heads=3, num_layers=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class MLP(nn.Module):
    """The reference of most tests here."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.act = nn.Tanh()
        self.out = nn.Linear(8, 6)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.act(self.fc(hidden)))


class Renamed(nn.Module):
    """MLP with other names, and an additional module."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 8)
        self.curve = nn.Tanh()
        self.narrow = nn.Sequential(nn.Linear(8, 6))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.narrow(self.curve(self.wide(hidden)))


NAMES = {"wide": "fc", "curve": "act", "narrow.0": "out"}


# ----------------------------------------------------------------------------------------------------- equal


def test_equal_modules():
    report = compare_modules(MLP(), MLP(), noise(2, 3, 6), copy_weights=True)
    assert report.equal
    assert [row.name for row in report.rows] == ["fc", "act", "out", ""]
    assert [row.shape for row in report.rows] == [(2, 3, 8), (2, 3, 8), (2, 3, 6), (2, 3, 6)]
    assert {row.verdict for row in report.rows} == {"equal"}
    assert [row.name for row in report.gradients] == [
        "(input)",
        "fc.weight",
        "fc.bias",
        "out.weight",
        "out.bias",
    ]
    assert all(row.gradient is not None for row in report.rows)
    assert (report.first_divergent, report.first_bad_module, report.causes) == (None, None, [])
    assert "Equal" in str(report)


def test_report_to_json():
    reference = MLP()
    for mine in (reference, nn.Linear(6, 7)):
        report = compare_modules(mine, reference, noise(2, 3, 6))
        text = json.dumps(report.to_dict(), allow_nan=False)
        assert json.loads(text)["equal"] == report.equal
        assert json.loads(text)["rows"][-1]["name"] == ""


@pytest.mark.parametrize("rename", [NAMES, lambda name: NAMES.get(name, name)], ids=["dict", "function"])
def test_rename(rename):
    report = compare_modules(Renamed(), MLP(), noise(2, 6), rename=rename, copy_weights=True)
    assert report.equal
    assert [row.name for row in report.rows] == ["fc", "act", "out", ""]
    assert report.only_mine == ["narrow"]
    assert "Not compared, only in mine: narrow" in str(report)


def test_rename_uses_the_longest_prefix():
    rename = {"wide": "fc", "narrow": "elsewhere", "narrow.0": "out"}
    report = compare_modules(Renamed(), MLP(), noise(2, 6), rename=rename, copy_weights=True)
    assert [row.name for row in report.rows] == ["fc", "out", ""]
    assert report.only_mine == ["curve", "narrow"]


def test_rename_applies_to_submodules():
    mine, reference = nn.ModuleDict({"a": MLP()}), nn.ModuleDict({"b": MLP()})
    mine.forward, reference.forward = mine["a"].forward, reference["b"].forward
    report = compare_modules(mine, reference, noise(2, 6), rename={"a": "b"}, copy_weights=True)
    assert [row.name for row in report.rows] == ["b.fc", "b.act", "b.out", ""]
    assert report.equal


def test_assert_same_as_reference_raises_with_the_table():
    reference = MLP()
    assert_same_as_reference(MLP(), reference, noise(2, 6), copy_weights=True)
    with pytest.raises(AssertionError) as raised:
        assert_same_as_reference(MLP(), reference, noise(2, 6))
    message = str(raised.value)
    assert "First divergent module: fc" in message
    assert "Weights that differ from the reference: fc.weight (relative difference" in message
    assert "copy_weights=True" in message


# --------------------------------------------------------------------------------------------------- display


def t5_report() -> Report:
    reference = randomize_weights(T5ForConditionalGeneration(T5).eval())
    mine = randomize_weights(T5ForConditionalGeneration(T5).eval(), seed=1)
    return compare_modules(
        mine, reference, {"input_ids": tokens(0, 2, 130), "decoder_input_ids": tokens(1, 2, 120)}
    )


def test_table_fits_80_columns_and_names_stay_distinct():
    report = t5_report()
    table = str(report).partition("\n\n")[0].splitlines()
    assert max(map(len, table)) == 80
    names = [line.split("  ")[0] for line in table[1:]]
    assert len(set(names)) == len(names) == len(report.rows)
    for row, line in zip(report.rows, table[1:], strict=True):
        assert f"{row.absolute:.1e}   {row.relative:.1e}" in line
    assert all(len(line) <= 80 for line in str(report).splitlines() if "layer." not in line)


def test_only_long_parts_of_a_name_are_shortened():
    assert shorten("transformer.h.0.attn.c_attn", 27) == "transformer.h.0.attn.c_attn"
    assert shorten("transformer.h.0.attn.c_attn", 24) == "tran~mer.h.0.attn.c_attn"
    assert shorten("transformer.h.0.attn.resid_dropout", 30) == "trans~rmer.h.0.attn.resid~pout"
    assert shorten("a.b.c", 2) == "a.b.c"


def test_column_of_gradients_is_left_out_without_gradients():
    inputs = noise(2, 6)
    assert "gradient" not in str(compare_modules(MLP(), MLP(), inputs, copy_weights=True, backward=False))
    assert "  gradient  " in str(compare_modules(MLP(), MLP(), inputs, copy_weights=True))


def test_report_is_its_table_in_a_notebook():
    report = compare_modules(nn.Linear(6, 7), nn.Linear(6, 8), noise(2, 6))
    report.only_mine.append("<b>")
    assert repr(report) == str(report)
    page = report._repr_html_()
    assert page.count("<tr") == 1 + len(report.rows)
    assert ">2x8<" in page and "shape (mine is 2x7)" in page and "font-weight: bold" in page
    assert "First divergent module: (whole module)" in page
    assert "only in mine: &lt;b&gt;" in page


# ---------------------------------------------------------------------------------------- inputs and outputs


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_tuple_outputs_and_different_arguments_of_transformers(family):
    hidden, mask = noise(2, 7, 24), torch.zeros(2, 1, 7, 7)
    if family == "gpt2":
        theirs, ours = gpt2_pair({"n_embd": 24, "n_head": 4, "n_layer": 1}, 0)
        name, given = "transformer.h.0.attn", (hidden, mask, None)
        named = {"hidden_states": hidden, "attention_mask": mask}
    else:
        theirs, ours = t5_pair({"d_model": 24, "d_kv": 8, "num_heads": 3, "num_layers": 2}, 0)
        name, given = "encoder.block.1.layer.0", (hidden, mask)
        named = {"hidden_states": hidden, "attention_mask": mask, "position_bias": torch.zeros(1, 3, 7, 7)}
    mine, reference = ours.get_submodule(name), theirs.get_submodule(name)
    assert compare_modules(mine, reference, given, reference_inputs=named).equal
    assert compare_modules(reference, mine, named, reference_inputs=given).equal


def test_keyword_inputs_are_not_modified():
    class Scaled(nn.Module):
        def forward(self, hidden: Tensor, *, by: float, flip: bool = False, mask: None = None) -> dict:
            hidden *= by  # in place
            return {"nothing": None, "nested": [(hidden.flip(0) if flip else hidden,)]}

    hidden = noise(2, 3)
    before = hidden.clone()
    report = compare_modules(Scaled(), Scaled(), {"hidden": hidden, "by": 2.0, "flip": True}, backward=False)
    assert report.equal
    assert torch.equal(hidden, before)


def test_outputs_are_recorded_before_in_place_operations():
    def overwriting() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    report = compare_modules(overwriting(), plain, noise(5, 4), copy_weights=True, backward=False)
    assert report.equal, str(report)


def test_shared_modules_are_named_by_their_caller():
    ours = T5ForConditionalGeneration(T5).eval()
    ids = {"input_ids": tokens(0, 2, 5), "decoder_input_ids": tokens(1, 2, 4)}
    names = [row.name for row in compare_modules(ours, ours, ids, backward=False).rows]
    assert "encoder.embed_tokens" in names
    assert "decoder.embed_tokens" in names
    assert "encoder.dropout" in names
    assert "encoder.dropout #2" in names  # second call
    assert len(names) == len(set(names))


def test_different_shape():
    report = compare_modules(nn.Linear(6, 7), nn.Linear(6, 8), noise(2, 6))
    assert report.rows[0].verdict == "shape"
    assert "shape (mine is 2x7)" in str(report)
    assert "weight ((7, 6), expected (8, 6))" in str(report)


def test_broadcast_over_rows():
    once, each = noise(1, 3, 4), noise(1, 3, 4).expand(2, 3, 4)
    assert broadcast(once, each).shape == (2, 3, 4)
    assert broadcast(noise(3, 4), each).shape == (2, 3, 4)
    assert broadcast(noise(2, 1, 3), each).shape == (2, 1, 3)


def test_different_dtype_is_noted():
    reference = MLP()
    mine = MLP().double()
    report = compare_modules(
        mine, reference, noise(2, 6).double(), reference_inputs=noise(2, 6), copy_weights=True
    )
    assert report.equal
    assert "equal\n    (mine is float64, not float32)" in str(report)


def test_first_non_finite_module_is_named():
    class Overflowing(MLP):
        def forward(self, hidden: Tensor) -> Tensor:
            return self.out(self.act(self.fc(hidden)) / 0.0)

    report = compare_modules(Overflowing(), MLP(), noise(2, 6), copy_weights=True)
    assert [row.verdict for row in report.rows][2:] == ["not finite", "not finite"]
    assert report.first_divergent == "out"
    assert math.isinf(report.rows[2].relative)


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_nan_in_both_is_not_equal(tolerance):
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        one.weight[0, 0] = math.nan
    other.load_state_dict(one.state_dict())
    report = compare_modules(one, other, torch.ones(2, 3), tolerance=tolerance)
    assert not report.equal and {row.verdict for row in report.rows} == {"not finite"}
    assert "weight (holds NaN)" in str(report)


def test_difference_of_non_finite_values():
    one = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert difference(one, one.clone()) == (0.0, 0.0)
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])).absolute == math.inf
    assert difference(torch.tensor([math.inf]), torch.tensor([-math.inf])).absolute == math.inf
    assert difference(one[:3], torch.tensor([1.5, math.nan, math.inf])) == (0.5, 0.5 / 1.5)


def test_where_ignores_padding():
    class Careless(nn.Module):
        """Correct except at padding."""

        def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
            return hidden * mask[..., None]

    class Careful(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
            return hidden * 1.0

    hidden, mask = noise(2, 5, 3), padding(0, 2, 5, "left").float()
    mask[1, 0] = 0
    assert not compare_modules(Careless(), Careful(), (hidden, mask)).equal
    assert compare_modules(Careless(), Careful(), (hidden, mask), where=mask).equal
    weights = noise(2, 4, 5, 5)
    assert select_tokens(weights, mask).shape == (int(mask.sum()), 4, 5)
    assert select_tokens(noise(5, 5), mask).shape == (5, 5)


# -------------------------------------------------------------------------------------------------- backward


def test_wrong_gradient_is_found():
    class Cut(MLP):
        def forward(self, hidden: Tensor) -> Tensor:
            return self.out(self.act(self.fc(hidden.detach())))

    report = compare_modules(Cut(), MLP(), noise(2, 6), copy_weights=True)
    assert report.equal  # the input has no gradient in mine, hence no row
    assert "(input)" not in [row.name for row in report.gradients]

    class Halved(MLP):
        def forward(self, hidden: Tensor) -> Tensor:
            wide = self.fc(hidden)
            return self.out(self.act(wide / 2 + wide.detach() / 2))

    report = compare_modules(Halved(), MLP(), noise(2, 6), copy_weights=True)
    assert [row.verdict for row in report.rows] == ["gradient differs", "equal", "equal", "equal"]
    assert report.first_divergent == "fc"
    assert report.first_bad_module is None  # the forward pass is correct
    assert "Gradients that differ, 3 of 5" in str(report)
    assert compare_modules(Halved(), MLP(), noise(2, 6), copy_weights=True, backward=False).equal


def test_key_bias_gradient_is_rounding_noise():
    """Softmax is invariant to a constant added to all scores."""

    class Attention(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
            self.fused = fused

        def forward(self, hidden: Tensor) -> Tensor:
            q, k, v = self.q(hidden), self.k(hidden), self.v(hidden)
            if self.fused:
                return F.scaled_dot_product_attention(q, k, v)
            return (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v

    report = compare_modules(Attention(False), Attention(True), noise(2, 9, 8), copy_weights=True)
    (row,) = [row for row in report.gradients if row.name == "k.bias"]
    assert row.absolute > 0
    assert report.equal, str(report)


# --------------------------------------------------------------------------------------- rounding, tolerance


def test_tolerance_depends_on_dtype_and_variance():
    assert rounding(torch.float32, 16.0) == 16 * torch.finfo(torch.float32).eps
    assert rounding(torch.float64, 1.0) < rounding(torch.float32, 1.0) < rounding(torch.bfloat16, 1.0)
    assert rounding(torch.long, 5.0) == 0
    rows = compare_modules(MLP(), MLP(), noise(2, 6), copy_weights=True).rows
    # fc: 1 + 6/4; act: 1; out: 1 + 8/4; the whole module: 1
    eps = torch.finfo(torch.float32).eps
    assert [row.tolerance for row in rows] == [4 * eps * math.sqrt(sum_) for sum_ in (2.5, 3.5, 6.5, 7.5)]


@pytest.mark.parametrize("shift", [0, 3, 30])
def test_layer_norm_with_large_mean_has_larger_tolerance(shift):
    class Norm(nn.LayerNorm):
        """The textbook formula."""

        def forward(self, hidden: Tensor) -> Tensor:
            hidden = hidden - hidden.mean(-1, keepdim=True)
            return (
                hidden / (hidden.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias
            )

    for width in (8, 64, 768):
        reference = randomize_weights(nn.LayerNorm(width))
        report = compare_modules(Norm(width), reference, noise(4, 20, width) + shift, copy_weights=True)
        assert report.equal, str(report)


def test_fixed_tolerance():
    reference, mine = MLP(), MLP()
    mine.load_state_dict(reference.state_dict())
    with torch.no_grad():
        mine.out.weight.mul_(1.001)
    assert not compare_modules(mine, reference, noise(2, 6)).equal
    assert compare_modules(mine, reference, noise(2, 6), tolerance=0.01).equal


def test_float64_reveals_differences_below_float32_rounding():
    def layers(eps: float, dtype: torch.dtype) -> nn.Module:
        return nn.LayerNorm(64, eps=eps).to(dtype)

    for dtype, equal in ((torch.float32, True), (torch.float64, False)):
        hidden = noise(4, 64).to(dtype)
        assert compare_modules(layers(1e-12, dtype), layers(1e-7, dtype), hidden).equal == equal


# ---------------------------------------------------------------------------------------------- side effects


def test_state_is_restored():
    mine, reference = (GPT2LMHeadModel(GPT2) for _ in range(2))
    mine.eval()
    reference.train()
    reference.transformer.h[0].eval()
    modes = [part.training for part in reference.modules()]
    state, weights = torch.get_rng_state(), [weight.clone() for weight in mine.parameters()]
    report = compare_modules(mine, reference, tokens(0, 2, 6))
    assert not report.equal
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in reference.modules()] == modes
    assert not any(part.training for part in mine.modules())
    assert all(torch.equal(*pair) for pair in zip(mine.parameters(), weights, strict=True))
    for model in (mine, reference):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        assert all(weight.grad is None for weight in model.parameters())


def test_state_is_restored_after_an_error():
    mine, reference = MLP(), MLP()
    with pytest.raises(RuntimeError):
        compare_modules(mine, reference, noise(2, 5))
    assert reference.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in mine.modules())


def test_dropout_in_mine_is_reproducible():
    torch.manual_seed(0)
    mine, reference = (GPT2MLP(GPT2).train() for _ in range(2))
    reports = [compare_modules(mine, reference, noise(2, 6, 24), copy_weights=True) for _ in range(2)]
    assert reports[0] == reports[1]
    assert not reports[0].equal


# ---------------------------------------------------------------------------------------------------- errors


def test_rename_of_unknown_module():
    with pytest.raises(ValueError, match="rename: mine has no module 'wid', did you mean 'wide'"):
        compare_modules(Renamed(), MLP(), noise(2, 6), rename={"wid": "fc"})


def test_rename_of_two_modules_to_one_name():
    with pytest.raises(ValueError, match="rename: both 'wide' and 'curve' become 'fc'"):
        compare_modules(Renamed(), MLP(), noise(2, 6), rename={"wide": "fc", "curve": "fc"})


def test_copy_weights_without_a_match():
    with pytest.raises(ValueError, match=r"copy_weights: .*wide.weight \(8, 6\).*fc.weight \(8, 6\)"):
        compare_modules(Renamed(), MLP(), noise(2, 6), copy_weights=True)


def test_output_without_a_tensor():
    class Silent(nn.Module):
        def forward(self, hidden: Tensor) -> None:
            return None

    with pytest.raises(ValueError, match="mine returns no tensor"):
        compare_modules(Silent(), nn.Identity(), noise(2, 6))
    with pytest.raises(ValueError, match="the reference returns no tensor"):
        compare_modules(nn.Identity(), Silent(), noise(2, 6))


# ---------------------------------------------------------------------------------------- randomize_weights


def test_randomize_weights_is_reproducible_and_keeps_tied_weights():
    one, other, third = (randomize_weights(GPT2LMHeadModel(GPT2), seed) for seed in (0, 0, 1))
    assert one.lm_head.weight is one.transformer.wte.weight
    for name, weight in one.named_parameters():
        assert torch.equal(weight, other.get_parameter(name))
        assert not torch.equal(weight, third.get_parameter(name))


def test_randomize_weights_gives_attention_of_medium_entropy():
    """Neither uniform nor one-hot."""
    seen: list[Tensor] = []
    attention = randomize_weights(GPT2Attention(GPT2, layer=0))
    attention.softmax.register_forward_hook(lambda module, args, weights: seen.append(weights))
    attention(noise(2, 30, 24), torch.zeros(2, 1, 30, 30), None)
    t5 = randomize_weights(T5ForConditionalGeneration(T5).eval())
    softmax = t5.get_submodule("decoder.block.1.layer.1.EncDecAttention.softmax")
    softmax.register_forward_hook(lambda module, args, weights: seen.append(weights))
    t5(tokens(0, 2, 30), decoder_input_ids=tokens(1, 2, 20))
    for weights in seen:
        entropy = -(weights * weights.log()).sum(-1).mean() / math.log(30)
        assert 0.5 < entropy < 0.97


def test_spread_weights_is_a_deprecated_alias():
    assert spread_weights is randomize_weights
