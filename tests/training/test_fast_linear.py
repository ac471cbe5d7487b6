"""The faster linear layers give what PyTorch's give, forward and backward, and are the same otherwise."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.models.checkpoint import load_model, save_model
from ftcore.models.gpt2 import Conv1D
from ftcore.models.lora import add_lora
from ftcore.training.fast_linear import FastConv1D, FastLinear, use_fast_linear
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
def test_output_and_gradients(shape, inputs, outputs, kind, dtype):
    torch.manual_seed(0)
    layer = Conv1D(inputs, outputs) if kind == "conv1d" else nn.Linear(inputs, outputs, kind == "linear")
    nn.init.normal_(layer.weight)
    layer = layer.to(dtype)
    fast = copy.deepcopy(layer)
    fast.__class__ = FastConv1D if kind == "conv1d" else FastLinear
    results = []
    for one in (layer, fast):
        numbers = torch.linspace(-1, 1, torch.Size(shape).numel() * inputs).to(dtype)
        read = numbers.view(*shape, inputs).requires_grad_()
        written = one(read)
        written.square().sum().backward()
        results.append([written, read.grad, *(parameter.grad for parameter in one.parameters())])
    # A sum of N products, in whatever order, is exact to N units of rounding of its largest terms.
    terms = max(inputs, outputs, torch.Size(shape).numel())
    for got, wanted in zip(results[1], results[0], strict=True):
        bound = 4 * terms * torch.finfo(dtype).eps * max(1.0, wanted.abs().max().item())
        assert (got - wanted).abs().max().item() <= bound


@pytest.mark.parametrize("build", [t5, gpt2])
def test_a_model_learns_the_same_from_a_batch(build):
    gradients = []
    for fast in (False, True):
        model = build()
        if fast:
            use_fast_linear(model)
        loss = batch_loss(model, batch())
        loss.total.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [t5, gpt2])
def test_names_hooks_lora_and_files_stay(build, tmp_path):
    model, plain = build(), build()
    add_lora(model, rank=2)
    use_fast_linear(model)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    assert {type(layer) for layer in layers} <= {FastLinear, FastConv1D}
    seen: list[Tensor] = []
    layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    batch_loss(model, batch())
    assert len(seen) == 1

    fast = build()
    use_fast_linear(fast)
    save_model(fast, tmp_path)
    assert type(load_model(tmp_path)) is type(plain)
    for name, weight in load_model(tmp_path).state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name


def test_frozen_weights_get_no_gradient():
    layer = FastLinear(3, 4)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 3)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
