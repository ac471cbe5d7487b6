"""prepare_for_decoding: equal ids in float32; in bfloat16 and int8 no error beyond rounding."""

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore import save_model
from ftcore.decoding import generate, prepare_for_decoding
from ftcore.fast import packed
from ftcore.fast.decoding import LAYER_TYPES
from ftcore.fast.packed import LEVELS, Float32Linear, FusedQKVSlice, Int8Linear, PackedLinear
from ftcore.lora.lora import add_lora, lora_layers, merge_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.models.gpt2 import Conv1D
from ftcore.study import record
from tests.helpers.small_models import (
    MODELS,
    SEARCHES,
    VOCAB,
    assert_same_ids,
    assert_same_ids_with_a_kept_cache,
    inputs,
    model_of,
)

DTYPES = list(LAYER_TYPES)


@cache
def prepared_from(name: str, dtype: torch.dtype) -> Any:
    return prepare_for_decoding(model_of(name), dtype)


# Float32: equal ids


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", MODELS)
def test_float32_ids_are_equal(name: str, search: str) -> None:
    assert_same_ids(name, prepared_from(name, torch.float32), search)


@pytest.mark.parametrize("name", ["gpt2", "t5, relu, tied"])
def test_a_cache_may_be_kept_between_calls(name: str) -> None:
    assert_same_ids_with_a_kept_cache(name, prepared_from(name, torch.float32))


@pytest.mark.parametrize("name", MODELS)
def test_hooks_record_the_same_activations(name: str) -> None:
    prepared = prepared_from(name, torch.float32)
    ids, mask = inputs(random.Random(2))
    pattern = "pattern.1" if name.startswith("gpt2") else "cross.pattern.1"
    with record(prepared, pattern, "lm_head") as acts:
        generate(prepared, ids, mask, max_new_tokens=4, eos_token_id=None)
    with record(model_of(name), pattern, "lm_head") as want:
        generate(model_of(name), ids, mask, max_new_tokens=4, eos_token_id=None)
    for key in (pattern, "lm_head"):
        torch.testing.assert_close(acts[key], want[key], rtol=1e-5, atol=1e-5)


# Bfloat16 and int8: errors of each matrix within rounding

BFLOAT16 = 2.0**-8  # relative rounding error


def bound(layer: PackedLinear | FusedQKVSlice, weight: Tensor, inputs: Tensor) -> Tensor:
    """Upper bound of the rounding error of each output (..., out), all errors having the same sign.

    Products of rounded values are summed in float32 and the sum is rounded. In int8, inputs and weights are
    off by half a step; their integer products are summed exactly, then scaled and shifted in float32.
    """
    first = 0
    if isinstance(layer, FusedQKVSlice):
        first, layer = layer.index * len(weight), layer.fused
    sizes = inputs.abs().double()  # (..., in)
    reach = sizes @ weight.abs().double().T  # (..., out): the sum without cancellation
    if isinstance(layer, Int8Linear):
        scale = layer.scale[first : first + len(weight)].double()
        low, high = inputs.aminmax(dim=-1, keepdim=True)
        span = (high - low).double()  # (..., 1)
        weight_sizes = weight.abs().double().sum(1) + weight.shape[1] * scale / 2  # (out,) of the integers
        in_float32 = 2.0**-21 * (span + low.abs()) * weight_sizes
        return sizes.sum(-1, keepdim=True) * scale / 2 + span / LEVELS / 2 * weight_sizes + in_float32
    in_float32 = weight.shape[1] * 2.0**-23
    if isinstance(layer, Float32Linear):
        return in_float32 * reach
    return ((1 + BFLOAT16) ** 3 - 1 + in_float32) * reach


def bias_bound(bias: Tensor | None, outputs: Tensor) -> Tensor:
    """Rounding error of the bias and of its addition."""
    if bias is None:
        return torch.zeros(())
    return bias.abs().double() * 2 * BFLOAT16 + outputs.abs() * 2.0**-22


def exact(layer: nn.Linear | Conv1D, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's (out, in) matrix, and its outputs in float64."""
    weight = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach()
    outputs = inputs.double() @ weight.double().T
    return weight, outputs if layer.bias is None else outputs + layer.bias.double()


def original(model: Any, name: str) -> nn.Linear | Conv1D:
    """The layer that `name` in a prepared model was made from."""
    if name != "lm_head.differences":
        return model.get_submodule(name)
    centered = copy.deepcopy(model.lm_head)
    centered.weight.data -= centered.weight.mean(0)
    return centered


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 70])
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**31),
    width=st.sampled_from([8, 24, 65, 512]),
    biased=st.booleans(),
    as_one_row=st.booleans(),
)
def test_error_of_a_packed_layer_is_rounding(
    dtype: torch.dtype, rows: int, seed: int, width: int, biased: bool, as_one_row: bool
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(width, 33, bias=biased)
    with torch.no_grad():
        linear.weight *= torch.logspace(-3, 3, 33)[:, None]  # outputs of different scales
        linear.weight[5] = 0
    shape = (1, rows) if as_one_row else (rows, 1)
    inputs = torch.randn(*shape, width) * torch.logspace(-2, 2, width)
    packed = LAYER_TYPES[dtype](linear.weight.detach(), linear.bias)
    weight, want = exact(linear, inputs)
    got = packed(inputs)
    assert got.shape == want.shape and got.dtype == torch.float32
    slack = bias_bound(linear.bias, want)
    assert ((got - want).abs() <= bound(packed, weight, inputs) + slack).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", MODELS)
def test_error_of_every_layer_during_generation_is_rounding(name: str, dtype: torch.dtype) -> None:
    """Everything else is the model's own code, in float32."""
    model, prepared = model_of(name), prepare_for_decoding(model_of(name), dtype)
    seen = set()

    def compare(name: str, layer: PackedLinear | FusedQKVSlice, inputs: Tensor, outputs: Tensor) -> None:
        assert inputs.dtype == outputs.dtype == torch.float32
        linear = original(model, name)
        weight, want = exact(linear, inputs)
        slack = bias_bound(linear.bias, want)
        assert ((outputs - want).abs() <= bound(layer, weight, inputs) + slack).all(), name
        seen.add(name.removesuffix(".differences"))

    for key, layer in prepared.named_modules():
        if isinstance(layer, PackedLinear | FusedQKVSlice) and not key.endswith("fused"):
            layer.register_forward_hook(lambda module, args, out, key=key: compare(key, module, args[0], out))
    ids, mask = inputs(random.Random(5))
    generate(prepared, ids, mask, max_new_tokens=5, num_beams=2, eos_token_id=None)
    assert seen == {key for key, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_mean_of_the_logits_keeps_its_precision(dtype: torch.dtype) -> None:
    """As in GPT-2, whose logits are near -100, where bfloat16's spacing is 0.5."""
    config = GPT2Config(vocab_size=1000, n_embd=64, n_head=4, n_layer=1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight -= 1.5  # times 64 values of about 1
        logits = model(ids := torch.randint(0, 1000, (3, 5)))
        assert (logits < -50).all()
        hidden = model.last_hidden(ids)
        got = prepare_for_decoding(model, dtype).lm_head(hidden)
    head = original(model, "lm_head.differences")
    weight, _ = exact(head, hidden)
    layer = LAYER_TYPES[dtype](weight, None)
    in_float32 = 64 * 2.0**-23 * (hidden.abs().double() @ model.lm_head.weight.abs().double().T)
    assert ((got - exact(model.lm_head, hidden)[1]).abs() <= bound(layer, weight, hidden) + in_float32).all()


@pytest.mark.parametrize("name", ["gpt2", "t5, gated, untied"])
def test_threads_may_share_a_prepared_model(name: str) -> None:
    prepared = prepared_from(name, torch.float32)
    rows = [torch.randint(3, VOCAB, (1, 7), generator=torch.Generator().manual_seed(n)) for n in range(8)]

    def answer(ids: Tensor) -> list[list[int]]:
        return generate(prepared, ids, max_new_tokens=15, eos_token_id=None).tolist()

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(answer, rows * 3))
    assert at_once == [answer(ids) for ids in rows] * 3


def test_a_prepared_t5_keeps_no_activations() -> None:
    prepared = prepared_from("mt5", torch.float32)
    generate(prepared, torch.tensor([[5, 6, 7]]), max_new_tokens=3)
    slices = [part for part in prepared.modules() if isinstance(part, FusedQKVSlice)]
    assert len(slices) == 3 * 5  # of two encoder and three decoder layers
    assert all(part.latest == [None] for part in slices)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_are_packed_for_several_rows_only(dtype: torch.dtype) -> None:
    prepared = prepare_for_decoding(model_of("t5, relu, tied"), dtype)
    named = prepared.named_modules()
    layers = [part for name, part in named if isinstance(part, PackedLinear) and "encoder." not in name]
    assert len(layers) > 10
    one, two = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7], [8, 9, 5]])
    plain = [layer.matrix.clone() for layer in layers]
    for ids in (one, two, one, two):
        generate(prepared, ids, max_new_tokens=3, eos_token_id=None)
        assert {layer.matrix.is_mkldnn for layer in layers} == {ids is two}
    assert all(torch.equal(layer.unpack(), was) for layer, was in zip(layers, plain, strict=True))


def test_a_search_does_not_repack_for_its_last_row() -> None:
    prepared = prepared_from("gpt2", torch.float32)
    assert prepared.fast_step.supports(sources=2, rows=2) and not prepared.fast_step.supports(1, 1)


def test_int8_uses_its_whole_range() -> None:
    weight = torch.randn(50, 30) * torch.logspace(-6, 6, 50)[:, None]
    integers = Int8Linear(weight, None).matrix.int()  # (out, in)
    assert integers.min() >= -127
    assert (integers.abs().amax(1) == 127).all()


@pytest.mark.parametrize("rows", [1, 2])  # plain and packed
@pytest.mark.parametrize("levels", [255, 127])
def test_int8_is_exact_for_integers(levels: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest products, where a processor without VNNI would saturate above 127."""
    monkeypatch.setattr(packed, "LEVELS", levels)
    inputs = torch.full((rows, 1, 64), float(levels))
    inputs[..., 0] = 0
    layer = Int8Linear(torch.full((16, 64), 127.0), None)
    assert torch.equal(layer(inputs), torch.full((rows, 1, 16), levels * 127.0 * 63))


# The original model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_not_changed(name: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(model_of(name)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = {key: type(part) for key, part in model.named_modules()}
    prepared = prepare_for_decoding(model, dtype)
    generate(prepared, torch.tensor([[5, 6, 7]]), max_new_tokens=3)
    assert {key: type(part) for key, part in model.named_modules()} == kinds
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(part.training for part in model.modules()) and not prepared.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert prepared.config == model.config


@pytest.mark.parametrize("name", ["gpt2", "t5, relu, tied"])
def test_unconverted_parameters_are_shared(name: str) -> None:
    model, prepared = model_of(name), prepared_from(name, torch.int8)
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in prepared.parameters()} <= addresses


@pytest.mark.parametrize("name", ["gpt2", "t5, relu, tied"])
def test_lora_is_merged(name: str) -> None:
    model = copy.deepcopy(model_of(name))
    add_lora(model, targets="all-linear")
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.weight.normal_()
    prepared = prepare_for_decoding(model)
    ids, mask = inputs(random.Random(1))
    options = {"max_new_tokens": 8, "eos_token_id": None}
    got = generate(prepared, ids, mask, **options).tolist()
    assert got == generate(merge_lora(model), ids, mask, **options).tolist()
    assert got != generate(model_of(name), ids, mask, **options).tolist()
    assert lora_layers(model) and not lora_layers(prepared)


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_prepared_model_can_be_copied_and_pickled(name: str, dtype: torch.dtype, copied: Any) -> None:
    """After a batch too, which packs the weights."""
    prepared = prepare_for_decoding(model_of(name), dtype)
    ids = torch.randint(3, VOCAB, (3, 5), generator=torch.Generator().manual_seed(0))
    for rows in (ids[:1], ids):
        before = generate(prepared, rows, max_new_tokens=6, eos_token_id=None)
        after = copied(prepared)
        assert generate(after, rows, max_new_tokens=6, eos_token_id=None).tolist() == before.tolist()


# Weights that are not finite


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "t5, gated, untied"])
def test_weights_that_are_not_finite_are_found(
    name: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    model = copy.deepcopy(model_of(name))
    with torch.no_grad():
        model.lm_head.weight[3, 1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"is not finite: .*(lm_head|wte)"):
        generate(
            prepare_for_decoding(model, dtype), torch.tensor([[5, 6], [7, 8]]), max_new_tokens=4, **options
        )


# Errors


def assert_refused(message: str, model: Any, dtype: torch.dtype = torch.float32) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        prepare_for_decoding(model, dtype)
    assert "\n" not in str(caught.value)


def test_unsupported_models_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    assert_refused(
        "dtype is torch.float16, expected one of torch.float32, torch.bfloat16, torch.int8 on cpu",
        model,
        torch.float16,
    )
    assert_refused("prepared already", prepared_from("gpt2", torch.int8))
    assert_refused("the model has torch.bfloat16 weights, expected float32", copy.deepcopy(model).bfloat16())
    assert_refused("the model is on meta, expected a CPU or CUDA", copy.deepcopy(model).to("meta"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
        assert_refused("no instructions for bfloat16: use float32 or int8", model, torch.bfloat16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert_refused("no oneDNN", model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prepared_model_cannot_be_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save the original model"):
        save_model(prepared_from("gpt2", dtype), tmp_path / "model")
    assert not (tmp_path / "model").exists() or not any((tmp_path / "model").glob("*.safetensors"))
