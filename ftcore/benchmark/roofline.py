"""Roofline: lower bounds on bytes and FLOPs per case, over the machine's measured bandwidth and throughput.

FLOPs are those of matrix products: 2 per weight and token in linear layers and the head, and attention's two.
Training takes three times the forward pass, for the gradients of inputs and weights. A decoding step reads
every weight matrix once, and the keys and values so far.

Model FLOPs utilization (MFU; Chowdhery et al. 2022, PaLM, appendix B) is the share of the peak that the
vendor publishes, so that it can be compared with published figures; no matrix product reaches that peak. It
counts attention's masked scores too: 6 N + 12 L H K T per token of GPT-2 with N matrix elements.
"""

import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ftcore.benchmark.cases import Case
from ftcore.benchmark.worker import synchronize
from ftcore.data.tokenizer import IGNORED_LABEL
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.training.loss import count_targets

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # per weight


# Dense bfloat16, from NVIDIA's data sheets. The first name that is a part of the device's name.
PEAKS = {"H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Machine:
    """The measured limits of this machine."""

    name: str
    threads: int
    device: str
    bandwidth: float  # bytes read from memory per second
    flops: float  # of a large matrix product in the benchmark's precision, per second
    peak: float | None = None  # published FLOPs per second; None: not in PEAKS

    def describe(self) -> str:
        """Name and limits in a sentence."""
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        return (
            f"{self.name}, {threads if self.device == 'cpu' else self.device}, torch {torch.__version__}: "
            f"reads {self.bandwidth / 1e9:.0f} GB/s and multiplies matrices at {self.flops / 1e9:,.0f} "
            "GFLOP/s (both measured)."
        )


def measure_machine(device: str, dtype: str, threads: int, *, quick: bool = False) -> Machine:
    """Measure bandwidth and throughput, the best of several tries; int8 weights are multiplied in float32."""
    torch.set_num_threads(threads)
    on_cuda = torch.device(device).type == "cuda"
    bytes_read = 2**31 if on_cuda else 2**26 if quick else 2**29  # well beyond the caches
    vector = torch.ones(bytes_read // 4, device=device)
    width = 8192 if on_cuda else 256 if quick else 2048
    product_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    # A GPU multiplies constants faster than numbers that differ: it draws less power.
    matrix = torch.randn(width, width, dtype=product_dtype, device=device)
    name = torch.cuda.get_device_name(device) if on_cuda else _cpu_name()
    peaks = (peak for part, peak in PEAKS.items() if part in name and dtype == "bf16")
    return Machine(
        name=name,
        threads=threads,
        device=device,
        bandwidth=bytes_read / _fastest(lambda: vector.sum(), device),
        flops=2 * width**3 / _fastest(lambda: matrix @ matrix, device),
        peak=next(peaks, None),
    )


def _fastest(work: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _cpu_name() -> str:
    """ "AMD EPYC 9554, 2 cores with AVX512" """
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux
        if match := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            name = match[1]
    return f"{name}, {os.cpu_count()} cores with {torch.backends.cpu.get_cpu_capability()}"


@dataclass(frozen=True)
class Weights:
    """Elements of a model's weight matrices by how often a token passes them, and attention's width."""

    encoder: int  # per source token: T5's encoder, and cross-attention's keys and values; 0 for GPT-2
    decoder: int  # per target token, without the head
    head: int
    encoder_width: int  # heads * K * layers
    decoder_width: int

    @classmethod
    def of(cls, model: Model) -> "Weights":
        """Count the weights of a model."""
        head = model.lm_head.weight.numel()
        if isinstance(model, GPT2LMHeadModel):
            width = model.config.n_embd * model.config.n_layer
            return cls(0, _elements(model.transformer.h), head, 0, width)
        inner = model.config.num_heads * model.config.d_kv
        cross = 2 * inner * model.config.d_model * len(model.decoder.block)
        return cls(
            encoder=_elements(model.encoder.block) + cross,
            decoder=_elements(model.decoder.block) - cross,
            head=head,
            encoder_width=inner * len(model.encoder.block),
            decoder_width=inner * len(model.decoder.block),
        )


def _elements(blocks: nn.Module) -> int:
    """Count matrix elements, without the tables of position biases, which are not multiplied."""
    return sum(
        parameter.numel()
        for name, parameter in blocks.named_parameters()
        if parameter.dim() == 2 and "relative_attention_bias" not in name
    )


def generation_seconds(model: Model, case: Case, machine: Machine, dtype: str) -> float:
    """Lower bound on the time of `generate`: each phase is limited by its bytes or its FLOPs."""
    weights, sources, hypotheses = Weights.of(model), case.rows, case.rows * case.beams
    weight_bytes = BYTES[dtype]
    cache_bytes = 2 if dtype == "bf16" else 4  # per element of a key or value
    is_gpt2 = isinstance(model, GPT2LMHeadModel)

    def seconds(products: float, bytes_read: float) -> float:
        return max(2 * products / machine.flops, bytes_read / machine.bandwidth)

    # Prefill: GPT-2's prompt, whose last position gives the first token, or T5's encoder. Causal attention
    # masks half of its scores, so its two products count as one.
    tokens = sources * case.source
    if is_gpt2:
        prefill = seconds(
            weights.decoder * tokens + weights.decoder_width * case.source * tokens + weights.head * sources,
            (weights.decoder + weights.head) * weight_bytes,
        )
        steps, prompt = case.target - 1, case.source
    else:
        prefill = seconds(
            weights.encoder * tokens + 2 * weights.encoder_width * case.source * tokens,
            weights.encoder * weight_bytes,
        )
        steps, prompt = case.target, 0

    # Decoding steps. Each beam has its own keys and values, but all beams share those of T5's source.
    positions = steps * prompt + steps * (steps + 1) / 2  # attended positions, summed over the steps
    keys = products = 2 * weights.decoder_width * positions * hypotheses
    if not is_gpt2:
        keys += 2 * weights.decoder_width * case.source * steps * sources
        products += 2 * weights.decoder_width * case.source * steps * hypotheses
    matrices = (weights.decoder + weights.head) * steps
    return prefill + seconds(matrices * hypotheses + products, matrices * weight_bytes + keys * cache_bytes)


def training_flops(model: Model, batches: list[dict[str, Tensor]], *, masked: bool = False) -> float:
    """FLOPs of training on these batches, without their padding; with those of `masked` scores, as in MFU."""
    weights = Weights.of(model)
    causal_width = weights.decoder_width * (2 if masked else 1)
    products = 0.0
    for batch in batches:
        sources = batch["attention_mask"].sum(-1).double()  # (B,)
        targets = (batch["labels"] != IGNORED_LABEL).sum(-1).double()  # (B,)
        products += weights.head * count_targets(model, batch)
        if isinstance(model, GPT2LMHeadModel):
            products += float(weights.decoder * sources.sum() + causal_width * (sources**2).sum())
        else:
            products += float(weights.encoder * sources.sum() + weights.decoder * targets.sum())
            products += float(2 * weights.encoder_width * (sources**2).sum())
            products += float(causal_width * (targets**2).sum())
            products += float(2 * weights.decoder_width * (targets * sources).sum())
    return 3 * 2 * products
