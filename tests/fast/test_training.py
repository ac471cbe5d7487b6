"""prepare_for_training: the fast layers have the values and gradients of the layers that they replace."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.fast import prepare_for_training
from ftcore.fast.layers import FastConv1D, FastDropout, FastLinear, FastT5Attention, FastT5LayerNorm
from ftcore.fast.training import FAST_LAYERS
from ftcore.lora.lora import add_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.models.attention import attention_mask_bias
from ftcore.models.gpt2 import Conv1D
from ftcore.models.t5 import T5Attention, T5LayerNorm
from ftcore.training.loss import batch_loss

SMALL = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 1, "vocab_size": 40}


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**SMALL, decoder_start_token_id=0)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.arange(2 * 7).view(2, 7) + 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    kind=st.sampled_from(["linear", "without bias", "conv1d"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_linear_layers(shape, inputs, outputs, kind, dtype):
    torch.manual_seed(0)
    layer = Conv1D(inputs, outputs) if kind == "conv1d" else nn.Linear(inputs, outputs, kind == "linear")
    nn.init.normal_(layer.weight)
    layer = layer.to(dtype)
    fast = copy.deepcopy(layer)
    fast.__class__ = FastConv1D if kind == "conv1d" else FastLinear
    results = []
    for one in (layer, fast):
        values = torch.linspace(-1, 1, torch.Size(shape).numel() * inputs).to(dtype)
        leaf = values.view(*shape, inputs).requires_grad_()
        output = one(leaf)
        output.square().sum().backward()
        results.append([output, leaf.grad, *(parameter.grad for parameter in one.parameters())])
    # The rounding error of a sum of N products is at most N units of its largest terms.
    terms = max(inputs, outputs, torch.Size(shape).numel())
    for got, wanted in zip(results[1], results[0], strict=True):
        bound = 4 * terms * torch.finfo(dtype).eps * max(1.0, wanted.abs().max().item())
        assert (got - wanted).abs().max().item() <= bound


def attention(dropout: float = 0.0) -> T5Attention:
    torch.manual_seed(0)
    return T5Attention(T5Config(**SMALL, dropout_rate=dropout)).double()


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 5),
    source=st.integers(1, 5),
    bias_of_each_row=st.booleans(),
    bias_is_float32=st.booleans(),
    padding=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_attention(rows, length, source, bias_of_each_row, bias_is_float32, padding, dtype):
    torch.manual_seed(0)
    states = [torch.randn(rows, 2, size, 8, dtype=dtype) for size in (length, source, source)]
    bias_dtype = torch.promote_types(dtype, torch.float32) if bias_is_float32 else dtype
    bias = torch.randn(rows if bias_of_each_row else 1, 2, length, source, dtype=bias_dtype)
    mask = torch.ones(len(bias), source)
    mask[0, : min(padding, source - 1)] = 0
    if (hidden := attention_mask_bias(mask, length, source, causal=False, like=bias)) is not None:
        bias = bias + hidden
    wanted: list[Tensor] = []
    # T5Attention in float64, then FastT5Attention in `dtype`, on the same values.
    for fast, layer_dtype in ((False, torch.float64), (True, dtype)):
        layer = attention()
        layer.__class__ = FastT5Attention if fast else T5Attention
        leaves = [one.to(layer_dtype).requires_grad_() for one in states]
        learned = bias.to(torch.float64 if not fast else bias_dtype).requires_grad_()
        output = layer.attend(*leaves, learned)
        assert output.dtype == layer_dtype
        results = [output, *torch.autograd.grad(output.sin().sum(), [*leaves, learned])]
        if not fast:
            wanted = results
    # Every element is a sum of at most 2 * 3 * 5 products of values near 1, each rounded twice.
    bound = 64 * torch.finfo(dtype).eps
    for got, right in zip(results, wanted, strict=True):
        assert (got - right).abs().max().item() <= bound * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("bias_rows", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
def test_gradients_of_attention_under_dropout(dropout, bias_rows):
    layer = attention(dropout).train()
    layer.__class__ = FastT5Attention
    states = [torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias = torch.randn(bias_rows, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def attend(*leaves: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same dropout mask in every call
        return layer.attend(*leaves)

    torch.autograd.gradcheck(attend, (*states, bias))


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(0, 1),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_dropout_scales_or_zeroes_each_element_and_its_gradient(rate, shape, dtype, seed):
    torch.manual_seed(seed)
    layer = FastDropout(rate)
    states = torch.ones(*shape, 7, dtype=dtype).transpose(0, -1).requires_grad_()
    out = layer(states)
    assert (out.shape, out.dtype) == (states.shape, dtype)
    assert len(out.detach().unique()) <= 2
    [grad] = torch.autograd.grad(out.sum(), states)
    torch.testing.assert_close(grad, out, rtol=0, atol=0)  # the input is ones
    kept = 1 - rate
    if kept > 2**-15:  # the rate is rounded to a multiple of 2**-16
        factors = out[out != 0].double()
        torch.testing.assert_close(
            factors * kept, torch.ones_like(factors), rtol=2**-15 / kept + torch.finfo(dtype).eps, atol=0
        )
    assert torch.equal(layer.eval()(states), states)


def test_dropout_is_independent_per_element():
    """Rates at which elements, and pairs of elements, are dropped; one 64-bit draw serves 4 elements."""
    torch.manual_seed(0)
    count, rate = 400_000, 0.1
    dropped = (FastDropout(rate)(torch.ones(count)) == 0).double()
    again = (FastDropout(rate)(torch.ones(count)) == 0).double()
    pairs = [dropped[lag:] * dropped[:-lag] for lag in (1, 2, 3, 4, 8)] + [dropped * again]
    for share, expected in [(dropped, rate), *((pair, rate**2) for pair in pairs)]:
        deviation = (expected * (1 - expected) / count) ** 0.5
        assert abs(share.mean().item() - expected) < 5 * deviation
    for lane in range(4):
        assert abs(dropped[lane::4].mean().item() - rate) < 5 * (rate * (1 - rate) / (count / 4)) ** 0.5


def test_dropout_rates_zero_and_one():
    states = torch.randn(5, 3)
    assert torch.equal(FastDropout(0.0)(states), states)
    assert torch.equal(FastDropout(1.0)(states), torch.zeros(5, 3))


def test_attention_dropout_rate_and_scale():
    layer = attention(dropout=0.25).train()
    layer.__class__ = FastT5Attention
    size = 64
    query, key = torch.randn(2, 4, 2, size, 8, dtype=torch.float64)
    bias = torch.zeros(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    # With one-hot values the output is the attention weights.
    values = torch.eye(size, dtype=torch.float64).expand(4, 2, size, size)
    used = layer.attend(query, key, values, bias)
    weights = layer.eval().attend(query, key, values, bias)
    is_kept = used != 0
    torch.testing.assert_close(used[is_kept], weights[is_kept] / 0.75)
    # 32,768 draws: the standard deviation of the rate is 0.0024.
    assert abs(is_kept.double().mean().item() - 0.75) < 0.015


def test_attention_falls_back_with_hooks_and_without_a_learned_bias():
    layer = attention()
    layer.__class__ = FastT5Attention
    states = [torch.randn(2, 2, 3, 4, dtype=torch.float64) for _ in range(3)]
    bias = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    fast = layer.attend(*states, bias)
    assert "_Attention" in type(fast.grad_fn).__name__
    seen: list[Tensor] = []
    handle = layer.softmax.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer.attend(*states, bias), fast)
    assert seen[0].shape == (2, 2, 3, 3)
    handle.remove()
    handle = layer.dropout.register_forward_hook(lambda module, inputs, output: None)
    assert "_Attention" not in type(layer.attend(*states, bias).grad_fn).__name__
    handle.remove()
    assert layer.attend(*states, bias.detach()).grad_fn is None


@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), width=st.integers(1, 6))
def test_norm(shape, width):
    torch.manual_seed(0)
    layer = T5LayerNorm(width, eps=1e-6).double()
    nn.init.normal_(layer.weight)
    hidden = torch.randn(*shape, width, dtype=torch.float64, requires_grad=True)
    wanted = layer(hidden)
    layer.__class__ = FastT5LayerNorm
    torch.testing.assert_close(layer(hidden), wanted, rtol=0, atol=0)
    weight = layer.weight.detach().requires_grad_()

    def normed(hidden: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, hidden)

    # Away from 0, where the curvature of the norm exceeds the step of the numerical gradient.
    torch.autograd.gradcheck(normed, (hidden.detach().add(2).requires_grad_(), weight))


@pytest.mark.parametrize("build", [t5, gpt2])
def test_gradients_of_a_batch_are_equal(build):
    gradients = []
    for fast in (False, True):
        model = build()
        if fast:
            assert prepare_for_training(model) is model
        loss = batch_loss(model, batch())
        loss.total.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [t5, gpt2])
def test_names_hooks_lora_and_files_do_not_change(build, tmp_path):
    model, plain = build(), build()
    add_lora(model, rank=2)
    prepare_for_training(model)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    assert not {type(module) for module in model.modules()} & set(FAST_LAYERS)
    seen: list[Tensor] = []
    layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    batch_loss(model, batch())
    assert len(seen) == 1

    fast = build()
    prepare_for_training(fast)
    save_model(fast, tmp_path)
    assert type(load_model(tmp_path)) is type(plain)
    for name, weight in load_model(tmp_path).state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name


def test_frozen_weights_get_no_gradient():
    layer = FastLinear(3, 4)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 3)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None


@pytest.mark.parametrize("build", [t5, gpt2])
def test_fused_attention_still_applies_dropout(build, monkeypatch):
    rates = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, value, bias, p, *rest, **options):
        rates.append(p)
        return fused(query, key, value, bias, p, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    batch_loss(prepare_for_training(build().train()), batch())
    assert rates == [0.1]  # GPT-2's self-attention, T5's cross-attention
