"""Runs of `python -m ftcore.train` on a GPU: they learn, and resume bit for bit."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch

from ftcore.fast import prepare_for_training
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from ftcore.training.loss import batch_loss
from tests.helpers import tiny_runs
from tests.helpers.oracle import BOUND
from tests.helpers.resumed_runs import FAMILIES, Bench, assert_same, main, outcome, stop_at
from tests.helpers.tiny_models import random_inputs, tiny

pytestmark = pytest.mark.cuda

WAYS = [
    "--gradient-checkpointing --label-smoothing 0.1",
    "--precision bf16 --packing --relative-steps",
    "--lora-rank 2 --num-beams 2",
    "--optimizer adafactor",
]


@pytest.fixture(scope="module", params=FAMILIES)
def bench(
    request: pytest.FixtureRequest, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """Its runs are on the device, which is the default where CUDA is available."""
    return Bench(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def precision(request: pytest.FixtureRequest, device: torch.device) -> str:
    if request.param == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs CUDA")
    return request.param


@pytest.mark.parametrize("options", WAYS)
def test_a_run_learns(bench, options):
    run = bench.new_directory()
    assert bench.train(run, options) == 0
    losses = [line["valid_loss"] for line in tiny_runs.metrics(run) if "valid_loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("needs_compiler")
def test_a_compiled_run_learns(bench):
    test_a_run_learns(bench, "--precision bf16 --compile --gradient-checkpointing")


def test_a_run_begins_as_on_the_cpu(bench):
    run = bench.new_directory()
    assert bench.train(run, "--device cpu --max-steps 1 --eval-answers 0") == 0
    on_cpu, on_device = tiny_runs.metrics(run)[0], bench.wanted["metrics"][0]
    assert on_device["valid_loss"] == pytest.approx(on_cpu["valid_loss"], rel=BOUND[torch.float32])


def test_a_resumed_run_equals_an_uninterrupted_one(bench, precision):
    whole, repeated, stopped = (bench.new_directory() for _ in range(3))
    for run in (whole, repeated):
        assert bench.train(run, f"--precision {precision} --dropout 0.1") == 0
    try:
        assert_same(outcome(repeated), outcome(whole))
    except AssertionError:
        pytest.skip("two equal runs differ: this device does not repeat itself bit for bit")
    stop_at(bench, stopped, 5, f"--precision {precision} --dropout 0.1")
    assert bench.resume(stopped) == 0
    assert_same(outcome(stopped), outcome(whole))


def test_a_step_whose_gradients_overflow_is_skipped(bench, device, monkeypatch):
    """The first scale overflows, the second does not."""
    if device.type == "cpu":
        pytest.skip("fp16 needs CUDA")
    settings = {"init_scale": 2.0**127, "backoff_factor": 2.0**-115}
    monkeypatch.setattr(
        "ftcore.train.grad_scaler", lambda precision, device: torch.amp.GradScaler(device.type, **settings)
    )
    run = bench.new_directory()
    assert bench.train(run, "--precision fp16 --log-every 1") == 0
    skipped = [line["skipped_steps"] for line in tiny_runs.metrics(run) if "train_loss" in line]
    assert skipped[0] == 1 and set(skipped[1:]) == {0}


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_blocks_have_the_gradients_of_the_page(family, device):
    model = tiny(family).double().to(device)  # without dropout
    compiled = prepare_for_training(deepcopy(model), compile=True)
    for rows, length in ((3, 9), (2, 16)):
        inputs = random_inputs(family, rows=rows, length=length)
        labels = inputs.pop("decoder_input_ids", inputs["input_ids"])
        batch = inputs | {"labels": labels, "attention_mask": torch.ones_like(inputs["input_ids"])}
        for each in (model, compiled):
            each.zero_grad()
            batch_loss(each, {name: tensor.to(device) for name, tensor in batch.items()}).total.backward()
        for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
            # Sums in float64 in a different order.
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("needs_kernels")
def test_gradient_checkpointing_takes_less_memory(device):
    config = GPT2Config(vocab_size=97, n_positions=512, n_embd=256, n_layer=8, n_head=4)
    model = GPT2LMHeadModel(config).train().to(device)
    ids = torch.randint(97, (8, 512), device=device)
    peaks = []
    for prepare in (lambda model: None, checkpoint_blocks):
        prepare(model)
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        batch_loss(model, batch).total.backward()
        peaks.append(torch.cuda.max_memory_allocated(device) - held)
    # Without it 8 blocks keep their activations; with it one block does, and all keep their inputs.
    assert peaks[1] < peaks[0] / 2


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_torchrun_with_one_process_equals_a_run_without(family, mode, real_device, tmp_path):
    """Gradients go through NCCL on a GPU, and through gloo in a dry run."""
    data = tiny_runs.questions(tmp_path / "train.jsonl", 16)
    model = FAMILIES[family](tmp_path / family)
    words = f"--model {model} --train {data} --valid {data} --device {real_device.type} "
    words += "--max-steps 4 --batch-size 3 --grad-accum 2 --lr 0.01 --max-target-length 20 --eval-answers 1 "
    words += "--output"
    alone, parallel = tmp_path / "alone", tmp_path / "parallel"
    assert main([*words.split(), str(alone)]) == 0
    torchrun = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 1"
    command = f"{torchrun} -m ftcore.train --parallel {mode} {words} {parallel}"
    finished = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-5000:]
    for one, other in zip(tiny_runs.metrics(parallel), tiny_runs.metrics(alone), strict=True):
        assert one == pytest.approx(other, rel=1e-5)  # as in tests/training/test_distributed.py
