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
from tests.helpers.mistakes import (
    HEADS,
    MISTAKES,
    SIZES,
    WIDTH,
    Case,
    case,
    exact_gelu,
    other_epsilon,
    wrong_scale,
)
from tests.helpers.oracle import (
    LENGTHS,
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
from tests.helpers.students import (
    STYLES,
    UNKNOWN_MISTAKES,
    Attention2,
    Attention5,
    Block2,
    Block5,
    GPT2Student,
    T5Student,
    Transformer2,
    Way,
    t5_name,
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


# ------------------------------------------------------------------------ models as a student writes them

# What is wrong -> the name of the cause
HEAD_MISTAKES = {
    "view heads": "heads split without transpose",
    "never transpose": "heads split without transpose",
    "view merged": "heads merged without transpose",
    "width first": "heads and width exchanged",
    "width first out": "heads and width exchanged",
    "width first everywhere": "heads and width exchanged",
}
MASKS = {
    "missing": "missing",
    "tiny": "missing",
    "reversed": "reversed",
    "added": "added as 0/1",
    "multiplied": "multiplied",
    "ten": "too small",
    "after softmax": "after softmax",
}
CAUSAL_MISTAKES = {f"causal mask {how}": f"causal mask {name}" for how, name in MASKS.items()} | {
    "causal mask triu": "causal mask reversed",
    "causal mask ahead": "causal mask off by one",
}
PADDING_MISTAKES = {f"padding mask {how}": f"padding mask {name}" for how, name in MASKS.items()}
SOFTMAX_MISTAKES = {
    "softmax over queries": "softmax over queries",
    "softmax over heads": "softmax over heads",
}
ATTENTION_MISTAKES = {
    "gpt2": HEAD_MISTAKES
    | CAUSAL_MISTAKES
    | PADDING_MISTAKES
    | SOFTMAX_MISTAKES
    | {
        "K heads": "heads and width exchanged",
        "one head": "a single head",
        "between heads": "attention between heads",
        "between heads, transposed back": "attention between heads",
        "qkv per head": "q, k, v split per head",
        "scale by D": "sqrt(D) for sqrt(d)",
        "no scale": "missing 1/sqrt(d)",
        "scale twice": "extra 1/sqrt(d)",
        "late scale": "scale after softmax",
    },
    "t5": HEAD_MISTAKES
    | CAUSAL_MISTAKES
    | PADDING_MISTAKES
    | SOFTMAX_MISTAKES
    | {
        "scale by D": "extra 1/sqrt(D)",
        "scale twice": "extra 1/sqrt(d)",
        "scale after bias": "extra 1/sqrt(d)",
        "no bias": "position bias missing",
        "bias in first block": "position bias missing",
        "bias off by one": "position bias off by one",
        "transposed bias": "position bias transposed",
        "encoder's buckets": "encoder's buckets in the decoder",
    },
}
WRONG_LINES = {
    "no residual": "residual missing",
    "norm over residual": "norm over the residual",
    "post-norm": "post-norm",
    "norm after": "norm after the sublayer",
    "no norm": "norm missing",
}
BLOCK_MISTAKES = (
    {f"{how}{where}": name for how, name in WRONG_LINES.items() for where in ("", " in attention", " in mlp")}
) | {"one norm": "norm used twice"}
MODEL_MISTAKES = {
    "gpt2": {
        "positions from 1": "positions off by one",
        "no positions": "positions missing",
        "no final norm": "final norm missing",
        "scaled embedding": "embedding scaled",
        "scaled embeddings": "embedding scaled",
    },
    "t5": {
        "no final norm in encoder": "final norm missing",
        "no final norm in decoder": "final norm missing",
        "scaled embedding": "embedding scaled",
        "no residual in cross-attention": "residual missing",
        "post-norm in cross-attention": "post-norm",
    },
}
STUDENT_MISTAKES = [  # against ftcore's and transformers' modules in turn
    pytest.param(family, mistake, name, number % 2 == 0, id=f"{family}-{mistake}".replace(" ", "_"))
    for family in ("gpt2", "t5")
    for number, (mistake, name) in enumerate(
        (ATTENTION_MISTAKES[family] | BLOCK_MISTAKES | MODEL_MISTAKES[family]).items()
    )
]


def student_report(
    family: str,
    way: Way,
    is_ours: bool,
    *,
    rename: object = None,
    length: int = 24,
    seed: int = 0,
    has_padding: bool | None = None,
) -> Report:
    """A student's model against ftcore's or transformers'; GPT-2 has padding if it matters."""
    has_padding = family == "t5" or way.mistake.startswith("padding") if has_padding is None else has_padding
    theirs, ours = {"t5": t5_pair, "gpt2": gpt2_pair}[family](SIZES[family], seed)
    mine = {"t5": T5Student, "gpt2": GPT2Student}[family](ours, way)
    mask = padding(seed, 3, length, "left" if family == "gpt2" else "right") if has_padding else None
    inputs: dict[str, object] = {"input_ids": tokens(seed, 3, length), "attention_mask": mask}
    if family == "t5":
        inputs["decoder_input_ids"] = tokens(seed + 1, 3, 17)
    for_theirs = inputs | {"use_cache": False}
    if family == "gpt2" and mask is not None:
        for_theirs["position_ids"] = positions(mask)
    return compare_modules(
        mine,
        ours if is_ours else theirs,
        inputs,
        reference_inputs=inputs if is_ours else for_theirs,
        rename=rename,
        where=mask if family == "gpt2" else None,
        backward=False,
    )


def module_of(family: str, mistake: str) -> str:
    """The smallest module of the reference around the mistake."""
    if mistake in MODEL_MISTAKES[family] and "cross" not in mistake:
        first = "decoder" if mistake.endswith("decoder") else "encoder"
        return {"gpt2": "transformer", "t5": first}[family]
    in_decoder = mistake.startswith("causal") or "cross" in mistake or mistake == "encoder's buckets"
    stack = "transformer.h" if family == "gpt2" else f"{'decoder' if in_decoder else 'encoder'}.block"
    block = f"{stack}.{1 if mistake == 'bias in first block' else 0}"
    if mistake not in ATTENTION_MISTAKES[family]:
        return block
    return f"{block}.attn" if family == "gpt2" else f"{block}.layer.0.SelfAttention"


@pytest.mark.parametrize(("family", "mistake", "name", "is_ours"), STUDENT_MISTAKES)
def test_mistake_of_a_student_is_named_and_located(family, mistake, name, is_ours):
    """Modules have the reference's names, by `rename` for T5."""
    style = "sdpa" if mistake.startswith("between") else "einsum" if is_ours else "matmul"
    way = Way(HEADS, mistake, style, scaled=family == "gpt2")
    report = student_report(family, way, is_ours, rename=t5_name if family == "t5" else None)
    assert [cause.name for cause in report.causes] == [name], str(report)
    assert report.first_bad_module == module_of(family, mistake), str(report)


def hidden_names(name: str) -> str:
    return f"student.{name}"


@pytest.mark.parametrize("rename", [None, hidden_names], ids=["modules", "logits"])
def test_cache_of_transformers_is_not_used(rename):
    """A cache would grow whenever the reference runs with a mistake."""
    theirs, ours = gpt2_pair(SIZES["gpt2"], 0)
    theirs.config.use_cache = True
    mine = GPT2Student(ours, Way(HEADS, "scale twice"))
    report = compare_modules(mine, theirs, tokens(0, 3, 24), rename=rename, backward=False)
    assert [cause.name for cause in report.causes] == ["extra 1/sqrt(d)"], str(report)
    assert theirs.config.use_cache


UNNAMED = [
    *["view heads", "view merged", "causal mask tiny", "causal mask multiplied", "padding mask added"],
    *["softmax over heads", "scale by D", "no residual in attention", "post-norm", "one norm"],
    *["norm over residual in mlp", "scaled embedding"],
]


@pytest.mark.parametrize(
    ("family", "mistake"),
    [
        *(("gpt2", mistake) for mistake in UNNAMED),
        *(("t5", mistake) for mistake in [*UNNAMED[::4], "bias in first block"]),  # takes longer
    ],
)
def test_mistake_is_named_by_the_logits_alone(family, mistake):
    """No module has a name of the reference."""
    way = Way(HEADS, mistake, "einsum", scaled=family == "gpt2")
    is_ours = mistake in UNNAMED[::4] + UNNAMED[1::4]  # half of each family's
    report = student_report(family, way, is_ours, rename=hidden_names)
    names = ATTENTION_MISTAKES[family] | BLOCK_MISTAKES | MODEL_MISTAKES[family]
    assert [row.name for row in report.rows] == [""]
    assert [cause.name for cause in report.causes] == [names[mistake]], str(report)


def layer_report(
    family: str,
    level: str,
    way: Way,
    is_ours: bool,
    *,
    seed: int = 0,
    length: int = 24,
    has_padding: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Report:
    """A student's attention or block alone, whose modules have no name of the reference, on random states."""
    sizes = SIZES[family] | ({"n_head": way.heads} if family == "gpt2" else {"num_heads": way.heads})
    theirs, ours = {"t5": t5_pair, "gpt2": gpt2_pair}[family](sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    hidden = torch.randn(3, length, WIDTH, generator=generator).to(dtype)
    mask = padding(seed, 3, length, "right") if has_padding else None
    bias = attention_mask_bias(mask, length, length, causal=family == "gpt2", like=hidden)
    if family == "gpt2":
        path = "transformer.h.0" + (".attn" if level == "attention" else "")
        right = ours.get_submodule(path)
        mine = {"attention": Attention2, "block": Block2}[level](right, way)
        inputs, for_ours = (hidden, mask), (hidden, bias, None)
        for_theirs = {"hidden_states": hidden, "attention_mask": bias}
    else:
        path = "encoder.block.0" + (".layer.0.SelfAttention" if level == "attention" else "")
        right = ours.get_submodule(path)
        table = ours.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        distances = relative_position_bias(table, length, length, 128, bidirectional=True).detach()
        both = distances if bias is None else distances + bias
        if level == "attention":
            mine, inputs = Attention5(right, way, causal=False), (hidden, None, mask, distances)
            for_ours = (hidden, *right.keys_values(hidden), both)
            for_theirs = {"hidden_states": hidden, "mask": bias, "position_bias": distances}
        else:
            mine, inputs, for_ours = (
                Block5(right, way, causal=False),
                (hidden, distances, mask),
                (hidden, both),
            )
            for_theirs = {"hidden_states": hidden, "attention_mask": bias, "position_bias": distances}
    return compare_modules(
        mine,
        right if is_ours else theirs.get_submodule(path),
        inputs,
        reference_inputs=for_ours if is_ours else for_theirs,
        rename=hidden_names if list(mine.children()) else None,
        where=mask,
        backward=False,
    )


SDPA_MISTAKES = {
    "gpt2": ["view heads", "qkv per head", "no scale", "causal mask missing", "causal mask reversed"],
    "t5": ["view merged", "width first", "scale twice", "padding mask missing", "padding mask reversed"],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("family", "mistake"),
    [(family, mistake) for family in SDPA_MISTAKES for mistake in SDPA_MISTAKES[family]],
)
def test_mistake_in_a_layer_alone_is_named_in_any_style(family, mistake, style):
    """Attention and blocks, against ftcore's and transformers' modules in turn."""
    number = STYLES.index(style) + SDPA_MISTAKES[family].index(mistake)
    level = ("attention", "block")[number % 2]
    is_ours = (STYLES.index(style) % 2 == 0) == (level == "block")
    way = Way(HEADS, mistake, style, scaled=family == "gpt2")
    report = layer_report(family, level, way, is_ours, has_padding="padding" in mistake)
    assert [cause.name for cause in report.causes] == [ATTENTION_MISTAKES[family][mistake]], str(report)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("mistake", BLOCK_MISTAKES)
def test_mistake_in_a_block_alone_is_named(family, mistake):
    """Against ftcore's and transformers' modules in turn."""
    is_ours = (list(BLOCK_MISTAKES).index(mistake) % 2 == 0) == (family == "t5")
    way = Way(HEADS, mistake, "matmul", scaled=family == "gpt2")
    report = layer_report(family, "block", way, is_ours)
    assert [cause.name for cause in report.causes] == [BLOCK_MISTAKES[mistake]], str(report)


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


def test_mistakes_of_pre_norm_blocks_are_not_tried_on_post_norm_ones():
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)
            self.ln_1, self.ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.ln_1(x + self.attn(x))
            return self.ln_2(x + self.mlp(x))

    class Wrong(PostNorm):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(x)  # x + mlp(ln_1(x)) without the norm, but that is not what is expected

    report = compare_modules(Wrong(), PostNorm(), torch.randn(2, 5, 8), copy_weights=True)
    assert report.first_bad_module == ""
    assert report.causes == [], str(report)


@pytest.mark.parametrize("mistake", ["post-norm in mlp", "no final norm", "scaled embedding"])
def test_mistake_in_a_model_without_its_head_is_named(mistake):
    _, ours = gpt2_pair(SIZES["gpt2"], 0)
    mine = Transformer2(ours.transformer, Way(HEADS, mistake))
    report = compare_modules(mine, ours.transformer, tokens(0, 3, 24), rename=hidden_names, backward=False)
    expected = (BLOCK_MISTAKES | MODEL_MISTAKES["gpt2"])[mistake]
    assert [cause.name for cause in report.causes] == [expected], str(report)


def test_output_without_finite_numbers_has_no_cause():
    """Many mistakes give NaN."""
    _, ours = gpt2_pair(SIZES["gpt2"], 0)
    mine = GPT2Student(ours, Way(HEADS))
    mine.head = [mine.head[0] * torch.nan]
    report = compare_modules(mine, ours, tokens(0, 3, 24), rename=hidden_names, backward=False)
    assert report.rows[-1].verdict == "not finite"
    assert report.causes == [], str(report)


def test_scaled_embeddings_are_not_taken_for_another_epsilon():
    """The norm of sqrt(D) * x is that of x with an epsilon of 1/D, which explains no later module."""
    report = student_report("gpt2", Way(HEADS, "scaled embeddings"), True)
    assert report.first_divergent == "transformer.h.0.ln_1"
    assert [cause.name for cause in report.causes] == ["embedding scaled"], str(report)


@settings(max_examples=50, deadline=None)
@given(
    family=st.sampled_from(["gpt2", "t5"]),
    style=st.sampled_from(STYLES),
    length=st.sampled_from([1, 2, 7, 40]),
    seed=seeds,
    has_padding=st.booleans(),
    is_named=st.booleans(),
    is_ours=st.booleans(),
)
def test_right_model_in_any_style_is_equal(family, style, length, seed, has_padding, is_named, is_ours):
    way = Way(HEADS, style=style, scaled=family == "gpt2")
    rename = {"gpt2": None, "t5": t5_name}[family] if is_named else hidden_names
    report = student_report(
        family, way, is_ours, rename=rename, length=length, seed=seed, has_padding=has_padding
    )
    assert report.equal, str(report)
    assert report.causes == []


@settings(max_examples=50, deadline=None)
@given(
    family=st.sampled_from(["gpt2", "t5"]),
    level=st.sampled_from(["attention", "block"]),
    heads=st.sampled_from([1, 2, 4]),
    style=st.sampled_from(STYLES),
    unknown=st.sampled_from(UNKNOWN_MISTAKES),
    strength=st.sampled_from([1e-6, 1e-5, 1e-3, 0.3]),
    length=st.sampled_from([1, 2, 7, 20]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=seeds,
    has_padding=st.booleans(),
    is_ours=st.booleans(),
)
def test_unknown_mistake_in_any_style_has_no_cause(
    family, level, heads, style, unknown, strength, length, dtype, seed, has_padding, is_ours
):
    """Of any size, down to that of rounding errors."""
    way = Way(heads, unknown, style, scaled=family == "gpt2", strength=strength)
    report = layer_report(
        family, level, way, is_ours, seed=seed, length=length, has_padding=has_padding, dtype=dtype
    )
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
    names = {name for mistakes in MISTAKES.values() for name in mistakes.values()} | {"tied head"}
    for family in MISTAKES:
        names |= set((ATTENTION_MISTAKES[family] | BLOCK_MISTAKES | MODEL_MISTAKES[family]).values())
    for name in names:
        assert set(re.findall(r"[a-z_]{4,}", name.lower())) <= listed, name
