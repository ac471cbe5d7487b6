"""LoRA against PEFT: adapters in both directions, with equal logits, gradients and optimizer steps.

Only rounding differs. For models of this size it stays below 1e-6 in float32, with updates as large as after
training. float64 tests arbitrary shapes, padding and scales with a bound (see oracle.py) below any mistake.
"""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore import save_model
from ftcore.lora.adapter import load_adapter, save_adapter
from ftcore.lora.lora import add_lora, lora_layers, merge_lora
from tests.helpers.oracle import (
    BOUND,
    distance,
    error,
    float64_reference,
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
from tests.helpers.tiny_lora import randomize_updates

peft = pytest.importorskip("peft", reason="PEFT, the reference for LoRA, is not installed (extra test)")

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),  # PEFT corrects the flag for Conv1D and warns
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GPT2 = {"n_embd": 48, "n_head": 4, "n_layer": 2}
PAIRS = {"t5": (t5_pair, T5), "t5-v1.1": (t5_pair, GATED), "gpt2": (gpt2_pair, GPT2)}

REGEX = r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$"
CASES = [  # arguments of peft.LoraConfig, as in published adapters
    ("t5", {}),
    ("t5", {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q", "v"]}),
    ("t5", {"r": 3, "target_modules": ["q", "k", "v", "o"], "use_rslora": True}),
    ("t5", {"target_modules": ["wi", "wo", "not_in_this_model"], "bias": "none"}),
    ("t5", {"target_modules": REGEX}),
    ("t5", {"target_modules": ["q", "v"], "layers_to_transform": [1], "layers_pattern": "block"}),
    ("t5-v1.1", {"target_modules": "all-linear", "r": 1}),
    ("t5-v1.1", {"target_modules": ["q", "v"], "exclude_modules": ["EncDecAttention.q"]}),
    ("gpt2", {}),
    ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_alpha": 32, "lora_dropout": 0.1}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 5, "init_lora_weights": "gaussian"}),
    ("gpt2", {"target_modules": "all-linear", "use_rslora": True}),
]


def wrap(reference: nn.Module, **settings: Any) -> nn.Module:
    """A model of transformers with a new PEFT adapter, as after training."""
    causal = reference.config.model_type == "gpt2"
    config = peft.LoraConfig(task_type="CAUSAL_LM" if causal else "SEQ_2_SEQ_LM", **settings)
    wrapped = peft.get_peft_model(reference, config)
    with torch.no_grad():
        for module in wrapped.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                randomize_update(module)
    return wrapped.eval()


def randomize_update(layer: Any) -> None:
    """Like `randomize_updates`: the update gets 0.3 of the norm of the matrix."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(len(b))))
    b *= 0.3 * layer.base_layer.weight.norm() / ((b @ a).norm() * layer.scaling["default"])


def open_with_peft(reference: nn.Module, directory: Path, **options: Any) -> nn.Module:
    """Open with PEFT; its warning about missing tensors is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        return peft.PeftModel.from_pretrained(reference, directory, **options).eval()


def outputs(model: nn.Module, mask: Tensor | None = None, seed: int = 1) -> Tensor:
    ids = tokens(seed, 3, 20)
    if model.config.model_type == "gpt2":
        given = {} if mask is None else {"attention_mask": mask, "position_ids": positions(mask)}
    else:
        given = {"attention_mask": mask, "decoder_input_ids": tokens(seed + 1, 3, 12)}
    result = model(input_ids=ids, **given)
    return getattr(result, "logits", result)


@torch.no_grad()
def logits(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    return outputs(model, mask)


# ---------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize(("variant", "settings"), CASES)
def test_logits_of_peft_adapters(variant, settings, tmp_path):
    make, sizes = PAIRS[variant]
    reference, model = make(sizes, seed=0)
    wrapped = wrap(reference, **settings)
    wrapped.save_pretrained(tmp_path)
    before = logits(model)
    load_adapter(model, tmp_path)
    assert error(logits(model), logits(wrapped)) <= 1e-6
    assert error(logits(model), before) > 1e-2
    assert error(logits(merge_lora(model)), logits(wrapped.merge_and_unload())) <= 1e-6


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize(
    ("variant", "targets"),
    [
        ("t5", None),
        ("t5", ["k", "o", "wi"]),
        ("t5", ["EncDecAttention.v"]),
        ("t5-v1.1", "all-linear"),
        ("gpt2", None),
        ("gpt2", ["mlp.c_proj"]),
        ("gpt2", "all-linear"),
    ],
)
def test_logits_in_peft(variant, targets, rank, tmp_path):
    make, sizes = PAIRS[variant]
    reference, model = make(sizes, seed=0)
    add_lora(model, rank=rank, alpha=16, dropout=0.1, targets=targets)
    randomize_updates(model)
    save_adapter(model, tmp_path)
    wrapped = open_with_peft(reference, tmp_path)
    assert error(logits(wrapped), logits(model)) <= 1e-6
    layers = [module for module in wrapped.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert len(layers) == len(lora_layers(model))
    assert error(logits(wrapped.merge_and_unload()), logits(merge_lora(model))) <= 1e-6


t5_targets = st.lists(st.sampled_from(["q", "k", "v", "o", "wo"]), min_size=1)
gpt2_targets = st.lists(st.sampled_from(["c_attn", "attn.c_proj", "c_proj", "c_fc"]), min_size=1)
kinds = st.one_of(
    st.tuples(st.just("t5"), t5_settings, t5_targets), st.tuples(st.just("gpt2"), gpt2_settings, gpt2_targets)
)


@settings(deadline=None, max_examples=25)
@given(
    kinds,
    st.integers(1, 12),
    st.sampled_from([1, 8, 32]),
    st.booleans(),
    seeds,
    sides,
)
def test_logits_in_float64(tmp_path_factory, kind, rank, alpha, to_peft, seed, side):
    variant, sizes, targets = kind
    directory = tmp_path_factory.mktemp("adapter")
    reference, model = PAIRS[variant][0](sizes, seed)
    if to_peft:
        add_lora(model, rank=rank, alpha=alpha, targets=targets)
        randomize_updates(model, seed)
        save_adapter(model, directory)
        wrapped = open_with_peft(reference, directory)
    else:
        wrapped = wrap(reference, r=rank, lora_alpha=alpha, target_modules=targets)
        wrapped.save_pretrained(directory)
        load_adapter(model, directory)
    mask = padding(seed, 3, 20, side)
    model.double()
    with float64_reference():
        expected = logits(wrapped.double(), mask)
    for candidate in (model, merge_lora(model)):
        got = logits(candidate, mask)
        read = mask.bool() if variant == "gpt2" else torch.ones(got.shape[:2], dtype=torch.bool)
        assert error(got[read], expected[read]) <= BOUND[torch.float64]


def test_pickled_adapters(tmp_path):
    reference, model = t5_pair(T5, seed=0)
    wrapped = wrap(reference)
    wrapped.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").exists()
    load_adapter(model, tmp_path)
    assert error(logits(model), logits(wrapped)) <= 1e-6


@pytest.mark.parametrize("variant", ["t5", "gpt2"])
def test_peft_finds_the_base_model(variant, tmp_path):
    make, sizes = PAIRS[variant]
    _, model = make(sizes, seed=0)
    save_model(model, tmp_path / "base")
    add_lora(model)
    randomize_updates(model)
    save_adapter(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    classes = {"t5": peft.AutoPeftModelForSeq2SeqLM, "gpt2": peft.AutoPeftModelForCausalLM}
    opened = classes[variant].from_pretrained(tmp_path / "adapter").eval()
    assert error(logits(opened), logits(model)) <= 1e-6


# ---------------------------------------------------------------------------------------------- training


def loss(model: nn.Module) -> Tensor:
    predicted = outputs(model).flatten(0, 1)
    return F.cross_entropy(predicted, tokens(3, 1, len(predicted))[0])


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """A and B, under common names."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


def trainable_pair(variant: str, directory: Path, trained: bool) -> tuple[nn.Module, nn.Module]:
    """The same adapter in PEFT and in ftcore, in float64."""
    make, sizes = PAIRS[variant]
    reference, model = make(sizes, seed=0)
    add_lora(model, rank=4, alpha=8, targets="all-linear")
    if trained:
        randomize_updates(model)
    save_adapter(model, directory)
    return open_with_peft(reference, directory, is_trainable=True).double(), model.double()


def reference_of(variant: str) -> Any:
    return nullcontext() if variant == "gpt2" else float64_reference()


@pytest.mark.parametrize("variant", PAIRS)
def test_gradients(variant, tmp_path):
    wrapped, model = trainable_pair(variant, tmp_path, trained=True)
    with reference_of(variant):
        loss(wrapped).backward()
    loss(model).backward()
    expected = matrices(wrapped)
    assert {name for name, p in wrapped.named_parameters() if p.requires_grad} == {
        name for name, p in wrapped.named_parameters() if "lora_" in name
    }
    assert matrices(model).keys() == expected.keys()
    for name, parameter in matrices(model).items():
        assert distance(parameter.grad, expected[name].grad) <= 2**0.5 * BOUND[torch.float64], name


@pytest.mark.parametrize("variant", PAIRS)
def test_three_steps_of_adamw(variant, tmp_path):
    wrapped, model = trainable_pair(variant, tmp_path, trained=False)
    start = {name: parameter.detach().clone() for name, parameter in matrices(model).items()}
    for each, context in ((wrapped, reference_of(variant)), (model, nullcontext())):
        optimizer = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-2)
        with context:
            for _ in range(3):
                optimizer.zero_grad()
                loss(each).backward()
                optimizer.step()
    expected = matrices(wrapped)
    for name, parameter in matrices(model).items():
        # Adam divides a gradient by its own size, which amplifies the rounding of small ones.
        assert distance(parameter, expected[name]) <= 1e-10, name
        assert distance(parameter, start[name]) > 1e-3, name


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"EncDecAttention.q": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"EncDecAttention.q": 2}}, "alpha_pattern"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_peft_settings_beyond_lora_raise(settings, key, tmp_path):
    reference, model = t5_pair(T5, seed=0)
    wrap_config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings)
    peft.get_peft_model(reference, wrap_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"adapter_config.json: {key} is "):
        load_adapter(model, tmp_path)
    assert not lora_layers(model)


def test_other_methods_raise(tmp_path):
    reference, model = t5_pair(T5, seed=0)
    config = peft.IA3Config(task_type="SEQ_2_SEQ_LM")
    peft.get_peft_model(reference, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"adapter_config\.json: peft_type is 'IA3'"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("target", ["shared", "lm_head"])
def test_adapters_of_head_and_embedding_raise(target, tmp_path):
    reference, model = t5_pair(T5, seed=0)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", target])
    peft.get_peft_model(reference, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"unexpected: base_model.model.{target}"):
        load_adapter(model, tmp_path)
