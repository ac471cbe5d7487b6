"""ftcore against transformers in random configurations: a few by default, 500 per family with

    python -m pytest tests/parity -m study -s

which prints coverage and the largest error / bound. docs/parity.md derives the bounds.
"""

import platform
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from torch import Tensor

from ftcore.models.attention import Softmax
from ftcore.models.cache import LayerCache
from ftcore.training.loss import TokenLoss
from ftcore.training.optim import adamw
from tests.helpers import parity_sides as sides
from tests.helpers.parity_configurations import VARIANTS, Configuration, configurations, random_configuration
from tests.helpers.parity_matrix import Ledger, check

PART, WHOLE = 15, 500


def run(family: str, count: int, ledger: Ledger) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking makes no sense for configurations
        suppress_health_check=[HealthCheck.too_slow],
    )
    @seed(2026)
    @given(configurations(family, count))
    def in_every_cell(configuration: Configuration) -> None:
        note(f"check({configuration!r})")
        check(configuration, ledger)

    in_every_cell()
    assert ledger.configurations == count  # each once


@pytest.mark.parametrize("family", VARIANTS)
def test_a_part_of_the_matrix(family):
    run(family, PART, Ledger())


@pytest.mark.study  # a quarter of an hour
@pytest.mark.parametrize("family", VARIANTS)
def test_the_whole_matrix(family):
    ledger, start = Ledger(), time.process_time()
    try:
        run(family, WHOLE, ledger)
    finally:
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        seconds = f"{time.process_time() - start:.0f} s of processor time"
        print(f"\n{family}: {versions}, Python {platform.python_version()}, {seconds}\n\n{ledger}")


# Sensitivity: small injected faults must exceed the bounds.


def bfloat16_softmax(self: Softmax, scores: Tensor) -> Tensor:
    return scores.bfloat16().softmax(-1).to(scores.dtype)


def bfloat16_keys(self: LayerCache, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return append(self, key.bfloat16().to(key.dtype), value)


def loss_off_by_one_billionth(model: Any, batch: dict[str, Tensor]) -> TokenLoss:
    total, correct, count = batch_loss(model, batch)
    return TokenLoss(total * (1 + 1e-9), correct, count)


def decay_everything(model: Any, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    optimizer = adamw(model, lr=lr, weight_decay=weight_decay)
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay
    return optimizer


append, batch_loss = LayerCache.append, sides.batch_loss


@pytest.mark.parametrize(
    ("owner", "name", "fault", "quantity"),
    [
        (Softmax, "forward", bfloat16_softmax, "hidden states"),
        (LayerCache, "append", bfloat16_keys, "logits cached"),
        (sides, "batch_loss", loss_off_by_one_billionth, "loss"),
        (sides, "adamw", decay_everything, "weights after AdamW"),
    ],
)
@pytest.mark.parametrize("family", VARIANTS)
def test_a_small_fault_is_detected(family: str, owner: Any, name: str, fault: Callable, quantity: str):
    drawn = random_configuration(family, random.Random(0))
    length = {"source": 20 if family == "t5" else 0, "length": 20}
    cell = replace(drawn, precision="float32", cache="steps", optimizer="AdamW", **length)
    check(cell)
    with mock.patch.object(owner, name, fault), pytest.raises(AssertionError, match=quantity):
        check(cell)
