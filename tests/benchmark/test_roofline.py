"""FLOPs of the lower bounds equal the count of torch; bytes those of the matrices and the cache."""

import copy
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ftcore.benchmark.cases import Case
from ftcore.benchmark.roofline import Machine, generation_seconds, measure_machine, training_flops
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.training.loss import batch_loss

GPT2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=3, n_head=2))
SIZES = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5 = T5ForConditionalGeneration(T5Config(**SIZES, num_decoder_layers=3, decoder_start_token_id=0))
GATED = T5ForConditionalGeneration(
    T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
)


def machine(bandwidth: float = math.inf, flops: float = math.inf) -> Machine:
    """With a bandwidth or throughput of 1, seconds are bytes or FLOPs."""
    return Machine("imagined", 1, "cpu", bandwidth, flops)


def hook_softmax(model: torch.nn.Module) -> None:
    """Select attention's explicit path, since the FLOP counter counts the fused kernel differently."""
    for name, module in model.named_modules():
        if name.endswith("softmax"):
            module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("model", [GPT2, T5, GATED], ids=["gpt2", "t5", "t5-gated"])
def test_training_flops_equal_those_counted_by_torch_without_and_with_masked_scores(model):
    is_t5 = model.config.is_encoder_decoder
    rows, source, target = 3, 10, (6 if is_t5 else 10)
    ids = torch.randint(50, (rows, source))
    labels = torch.randint(50, (rows, target)) if is_t5 else ids
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    model = copy.deepcopy(model).double()  # the counter does not count oneDNN's products of float32
    hook_softmax(model)
    with FlopCounterMode(display=False) as counter:
        batch_loss(model, batch).total.backward()
    # The explicit path multiplies causal attention's masked scores too, half of all.
    width = 3 * 16 if not is_t5 else 8 * len(model.decoder.block)
    masked = 3 * 2 * width * rows * target**2
    assert training_flops(model, [batch]) == counter.get_total_flops() - masked
    assert training_flops(model, [batch], masked=True) == counter.get_total_flops()
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 4), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    assert training_flops(model, [padded]) == training_flops(model, [batch])


@pytest.mark.parametrize(("dtype", "weight", "key"), [("fp32", 4, 4), ("bf16", 2, 2), ("int8", 1, 4)])
def test_each_step_reads_every_matrix_once_and_the_cache(dtype, weight, key):
    matrices = sum(p.numel() for n, p in GPT2.named_parameters() if p.dim() == 2 and "wpe" not in n)
    case = Case("", "generate", rows=2, beams=3, source=5, target=4)
    seconds = generation_seconds(GPT2, case, machine(bandwidth=1), dtype)
    keys = 2 * 3 * 16 * (6 + 7 + 8) * 2 * 3  # of the three tokens after the first, for each beam
    assert seconds == 4 * matrices * weight + keys * key


def test_t5_reads_its_encoder_once_and_the_source_of_all_beams_once():
    encoder = sum(p.numel() for p in T5.encoder.block.parameters() if p.dim() == 2)
    encoder -= T5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.numel()
    cross = 3 * 2 * 16 * 8
    decoder = sum(p.numel() for p in T5.decoder.block.parameters() if p.dim() == 2) - cross
    decoder -= T5.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.numel()
    head = 50 * 16
    case = Case("", "generate", rows=2, beams=3, source=5, target=4)
    read = encoder + cross + 4 * (decoder + head)
    keys = 2 * 3 * 8 * ((1 + 2 + 3 + 4) * 2 * 3 + 5 * 2 * 4)
    assert generation_seconds(T5, case, machine(bandwidth=1), "fp32") == 4 * (read + keys)


@pytest.mark.parametrize("model", [GPT2, T5], ids=["gpt2", "t5"])
def test_flops_of_the_first_token_equal_those_counted_by_torch(model):
    is_t5 = model.config.is_encoder_decoder
    ids = torch.randint(50, (2, 12))
    hook_softmax(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if is_t5:
            model(ids, decoder_input_ids=ids[:, :1])
        else:
            model.lm_head(model.last_hidden(ids)[:, -1:])
    counted = counter.get_total_flops() - (0 if is_t5 else 2 * 3 * 16 * 2 * 12**2)
    case = Case("", "generate", rows=2, source=12, target=1)
    assert generation_seconds(model, case, machine(flops=1), "fp32") == counted


def test_a_machine_is_measured_and_described():
    measured = measure_machine("cpu", "fp32", 1, quick=True)
    assert measured.bandwidth > 1e8 and measured.flops > 1e8
    line = measured.describe()
    assert "1 thread, torch" in line and "GB/s" in line and "GFLOP/s" in line


def test_the_published_peak_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr("ftcore.benchmark.roofline._cpu_name", lambda: "NVIDIA H200")
    assert measure_machine("cpu", "bf16", 1, quick=True).peak == 989e12
    assert measure_machine("cpu", "fp32", 1, quick=True).peak is None
