"""k micro-batches of b examples equal one batch of k * b: loss, gradient norm and weights, for both families.

In float64, since float32 rounding would hide small mistakes: only the order of summation differs.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.data import DataLoader, Dataset, Record
from ftcore.train import accumulate_gradients, clip_gradients, grouped
from ftcore.training.loss import batch_loss
from ftcore.training.optim import adamw, autocast, grad_scaler
from tests.helpers import oracle

SETTINGS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1},
}
CPU = torch.device("cpu")


class Letters:
    """One id per letter, 2 to 27; for T5 the end token, 1, is appended."""

    eos_id = 1

    def __init__(self, decoder_only: bool) -> None:
        self.end = [] if decoder_only else [1]

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 2 for letter in text] + self.end


def dataset(lengths: list[tuple[int, int]], decoder_only: bool) -> Dataset:
    letters = "abcdefghijklmnopqrstuvwxyz"
    records = [
        Record((letters[number % 26 :] + letters)[:source], (letters[number % 7 :] + letters)[:target])
        for number, (source, target) in enumerate(lengths)
    ]
    tokenizer: Any = Letters(decoder_only)
    return Dataset(records, tokenizer, decoder_only=decoder_only, max_source_length=40, max_target_length=20)


def one_epoch(
    family: str, lengths: list[tuple[int, int]], batch_size: int, accumulate: int
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and the weights after an epoch over these lengths."""
    build = oracle.t5_pair if family == "t5" else oracle.gpt2_pair
    model = build(SETTINGS[family], seed=2)[1].double()
    loader = DataLoader(
        dataset(lengths, family == "gpt2"), batch_size, pad_id=0, accumulate=accumulate, shuffle=True, seed=5
    )
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1)
    run: Any = SimpleNamespace(
        model=model,
        optimizer=optimizer,
        options=SimpleNamespace(clip_norm=0.5, label_smoothing=0.1),
        progress=SimpleNamespace(skipped=0),
        device=CPU,
        autocast=autocast("fp32", CPU),
        scaler=grad_scaler("fp32", CPU),
        compute_loss=partial(batch_loss, model),
    )
    losses, norms = [], []
    for micro_batches in grouped(loader, accumulate):
        losses.append(accumulate_gradients(run, micro_batches))
        norms.append(clip_gradients(run))
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == loader.steps_per_epoch
    return losses, norms, {name: weight.detach() for name, weight in model.named_parameters()}


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(["t5", "gpt2"]),
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=30),
    st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (5, 3), (4, 4)]),
)
def test_results_do_not_depend_on_the_micro_batch_size(
    family: str, lengths: list[tuple[int, int]], split: tuple[int, int]
) -> None:
    batch_size, accumulate = split
    whole = one_epoch(family, lengths, batch_size * accumulate, 1)
    parts = one_epoch(family, lengths, batch_size, accumulate)
    for wanted, got in zip(whole, parts, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)  # weights: see test_optim.py


@pytest.mark.parametrize("family", SETTINGS)
def test_loss_is_not_the_mean_of_micro_batch_means(family: str) -> None:
    """It is the mean over all tokens of the step."""
    lengths = [(5, 2), (5, 2), (6, 12), (6, 12)]
    [loss], _, _ = one_epoch(family, lengths, 2, 2)
    shorts, _, _ = one_epoch(family, lengths[:2], 2, 1)
    longs, _, _ = one_epoch(family, lengths[2:], 2, 1)
    assert loss != pytest.approx((shorts[0] + longs[0]) / 2, rel=1e-3)


@pytest.mark.parametrize("family", SETTINGS)
def test_clip_norm(family: str) -> None:
    """Clipping reduces the norm to the limit and never increases it; a limit of 0 disables clipping."""
    build = oracle.t5_pair if family == "t5" else oracle.gpt2_pair
    model = build(SETTINGS[family], seed=2)[1]
    for limit, long in ((0.5, 0.5), (1e9, 3.0), (0.0, 3.0)):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        next(model.parameters()).grad[0, 0] = 3.0
        run: Any = SimpleNamespace(
            model=model,
            optimizer=adamw(model, lr=1.0, weight_decay=0),
            options=SimpleNamespace(clip_norm=limit),
            progress=SimpleNamespace(skipped=0),
            scaler=grad_scaler("fp32", CPU),
            compute_loss=partial(batch_loss, model),
        )
        assert clip_gradients(run) == 3.0  # the norm before clipping
        assert next(model.parameters()).grad.norm().item() == pytest.approx(long, rel=1e-5)
