"""On a GPU ftcore is as far from the truth, transformers in float64 on the CPU, as transformers is there.

The bounds are those of the parity matrix, see docs/parity.md: transformers' own errors on the device, times
four. TensorFloat-32 is off, as it is by default. The optimizers of ftcore are the fused ones.
"""

import copy
import math
import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcore.training.optim import adamw
from tests.helpers import parity_matrix, parity_sides
from tests.helpers.oracle import error, record_outputs, t5_pair, tokens
from tests.helpers.parity_configurations import PRECISIONS, VARIANTS, Batch, random_configuration

pytestmark = pytest.mark.cuda

CONFIGURATIONS = 4  # for each family and precision


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, a batch or a dict of tensors on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if isinstance(value, Batch):
        return Batch(**{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value


class OnDevice:
    """A side of the comparison whose model is on a device; batches and results are on the CPU."""

    def __init__(self, side: parity_sides.Side, device: torch.device) -> None:
        self.side, self.device, self.model = side, device, side.model.to(device)
        self.is_t5, self.computing = side.is_t5, side.computing

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.side, name)
        return lambda *args: moved(method(*moved(args, self.device)), torch.device("cpu"))


@pytest.mark.parametrize("number", range(CONFIGURATIONS))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", VARIANTS)
def test_errors_are_as_small_as_those_of_transformers(family, precision, number, device, monkeypatch):
    def sides_of(configuration: Any) -> list[OnDevice]:
        truth, _, theirs, ours = parity_sides.sides_of(configuration)
        on_cpu = [OnDevice(side, torch.device("cpu")) for side in (truth, copy.deepcopy(truth))]
        return [*on_cpu, OnDevice(theirs, device), OnDevice(ours, device)]

    monkeypatch.setattr(parity_matrix, "sides_of", sides_of)
    chosen = random_configuration(family, random.Random(f"{precision} {number}"))
    configuration = replace(chosen, precision=precision, length=max(2, chosen.length))
    cell = parity_matrix.Cell(configuration, parity_matrix.Ledger())
    assert adamw(cell.ours.model, lr=0.1, weight_decay=0.1).defaults["fused"]
    parity_matrix.check_greedy_choice(cell, parity_matrix.check_forward(cell))
    parity_matrix.check_training(cell)


@pytest.mark.parametrize("mode", ["weights", "autocast"])
def test_t5_in_float16_does_not_overflow(mode, device):
    """The sums of the feed-forward exceed 65504, as those of published checkpoints do."""
    sizes = {"d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
    _, model = t5_pair({**sizes, "feed_forward_proj": "gated-gelu"}, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "DenseReluDense" in name:
                weight.mul_(50)
    source, target = tokens(0, 3, 20), tokens(1, 3, 12)
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(source, None, target)
    model = parity_sides.in_precision(model, "float16") if mode == "weights" else model
    model = model.to(device)
    seen = record_outputs(model, "encoder.block.0.layer.1.DenseReluDense.wo")
    with torch.autocast(device.type, torch.float16, enabled=mode == "autocast"):
        logits = model(source.to(device), None, target.to(device))
    logits.float().logsumexp(-1).sum().backward()
    [sums] = seen.values()
    assert logits.dtype == torch.float16
    assert sums.abs().max() > torch.finfo(torch.float16).max
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    bound = torch.finfo(torch.float16).eps * math.sqrt(13 * 8)  # 13 sublayers, 8 roundings in each
    assert error(logits.cpu().double(), truth) < bound
