"""AdamW decays matrices only and equals torch's on transformers' model; the learning rate has its shape."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore.training.defaults import resolve
from ftcore.training.loss import batch_loss
from ftcore.training.optim import (
    adafactor,
    adamw,
    learning_rate,
    make_schedule,
    set_learning_rate,
    warmup_steps,
)
from ftcore.training.options import TrainOptions
from ftcore.training.run_files import Files
from tests.helpers import oracle

SETTINGS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3, "num_layers": 1, "num_decoder_layers": 2},
    "gpt2": {"n_embd": 24, "n_head": 3, "n_layer": 2},
}
SCHEDULES = ("linear", "cosine", "constant")


def pair(family: str) -> tuple[Any, Any]:
    build = oracle.t5_pair if family == "t5" else oracle.gpt2_pair
    return build(SETTINGS[family], seed=4)


@pytest.mark.parametrize("family", SETTINGS)
def test_only_matrices_decay(family: str) -> None:
    _, model = pair(family)
    decayed, spared = adamw(model, lr=1.0, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in spared["params"]} == {1}
    grouped = {id(p) for group in (decayed, spared) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters()}  # a tied one only once


def test_frozen_parameters_are_in_no_group() -> None:
    _, model = pair("t5")
    model.encoder.requires_grad_(False)
    trained = {
        id(p) for group in adamw(model, lr=1.0, weight_decay=0.1).param_groups for p in group["params"]
    }
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in model.encoder.parameters()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", SETTINGS)
def test_three_steps_equal_torch_on_transformers(family: str, dtype: torch.dtype, bound: float) -> None:
    """1e-5 is the published requirement. In float64, each step multiplies the gradients' rounding error of
    1e-16 by at most lr / eps = 1e-3 / 1e-8; the bound of 1e-10 has a margin for gradients above 1.

    In float32 key biases would not agree: they add a constant to all scores of a query, so their true
    gradient is 0, and AdamW makes full steps from rounding noise.
    """
    reference, model = (m.to(dtype) for m in pair(family))
    matrices = [p for p in reference.parameters() if p.dim() > 1]
    others = [p for p in reference.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-3)
    ours = adamw(model, lr=1e-3, weight_decay=0.1)
    with oracle.float64_reference():
        for step in range(3):
            ids = oracle.tokens(step, 3, 12)
            labels = ids if family == "gpt2" else oracle.tokens(step + 9, 3, 7)
            output = reference(input_ids=ids, labels=labels)
            shifted = (output.logits[:, :-1], labels[:, 1:]) if family == "gpt2" else (output.logits, labels)
            torch.nn.functional.cross_entropy(shifted[0].flatten(0, 1), shifted[1].flatten()).backward()
            loss = batch_loss(
                model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            )
            (loss.total / loss.tokens).backward()
            for optimizer in (plain, ours):
                optimizer.step()
                optimizer.zero_grad()
    wanted = dict(reference.named_parameters())
    for name, weight in model.named_parameters():
        parts = (weight, wanted[name])
        if name.endswith("c_attn.bias") and dtype == torch.float32:
            width = len(weight) // 3
            parts = tuple(torch.cat([part[:width], part[2 * width :]]) for part in parts)
        assert oracle.distance(*parts) < bound, name


# --- the learning rate


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_equal_those_of_transformers_except_the_first_step(schedule: str, warmup: int) -> None:
    """transformers' first step has learning rate 0; our warm-up is one step ahead, the rest is equal."""
    total, peak = 40, 0.3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    reference = transformers.get_scheduler(
        schedule + "_with_warmup" * (schedule == "constant"), optimizer, warmup, total
    )
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    ours = [
        learning_rate(step, peak=peak, schedule=schedule, warmup_steps=warmup, total_steps=total)
        for step in range(total)
    ]
    assert ours[:warmup] == pytest.approx([*theirs[1:warmup], peak][:warmup])
    assert ours[warmup:] == pytest.approx(theirs[warmup:])


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.floats(0, 400), st.floats(1e-8, 10))
def test_rates_rise_only_to_the_peak(schedule: Any, total: int, warmup: float, peak: float) -> None:
    warm = warmup_steps(warmup, total)
    rates = [
        learning_rate(step, peak=peak, schedule=schedule, warmup_steps=warm, total_steps=total)
        for step in range(total + 5)
    ]
    assert min(rates) >= 0 < min(rates[:total])
    assert max(rates) <= peak * (1 + 1e-15)  # one rounding error
    assert all(a < b for a, b in pairwise(rates[:warm]))
    assert all(a >= b for a, b in pairwise(rates[warm:]))
    if warm < total:
        assert rates[warm] == peak
        if schedule != "constant":
            assert rates[total] == pytest.approx(0, abs=1e-9 * peak)


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.05, 5), (0.5, 50), (1, 1), (1.0, 1), (30, 30), (300, 300)]
)
def test_warmup_below_one_is_a_share(warmup: float, steps: int) -> None:
    assert warmup_steps(warmup, 100) == steps


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(total=st.integers(1, 50), warmup=st.integers(0, 60) | st.floats(0, 1, exclude_max=True))
def test_a_warmup_longer_than_the_run_is_reported(
    total: int, warmup: float, capsys: pytest.CaptureFixture
) -> None:
    options = resolve(TrainOptions(warmup=warmup), Files("model", ["train"], None), is_t5=True)
    capsys.readouterr()
    schedule = make_schedule(options, total)
    highest = max(map(schedule, range(total)))
    warning = capsys.readouterr().err
    assert bool(warning) == (highest < 0.999 * options.lr)
    assert not warning or f"--warmup {warmup} exceeds the {total} steps of the run" in warning


def test_set_learning_rate_reaches_every_group() -> None:
    optimizer = adamw(torch.nn.Linear(2, 2), lr=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_relative_steps_follow_each_tensors_size_as_it_changes() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = adamw(layer, lr=0.5, weight_decay=0.1, relative=True)
    with torch.no_grad():
        layer.weight.fill_(4.0)
        layer.bias.fill_(0.0)
    set_learning_rate(optimizer, 0.25)
    [matrix, bias] = optimizer.param_groups
    assert (matrix["lr"], matrix["weight_decay"]) == (1.0, 0.1)
    assert (bias["lr"], bias["weight_decay"]) == (0.25 * 1e-3, 0.0)  # the floor, so that zeros can change


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_relative_steps_are_scale_invariant(scale: float) -> None:
    """A weight scaled by c, whose gradient is scaled by 1 / c, takes steps scaled by c."""
    torch.manual_seed(0)
    weight, slope = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    moved = []
    for unit in (1.0, scale):
        layer = torch.nn.Linear(4, 5, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight * unit)
        optimizer = adamw(layer, lr=0.1, weight_decay=0.0, relative=True)
        layer.weight.grad = slope * 1e6 / unit  # large, so that AdamW's eps is negligible
        optimizer.step()
        moved.append(layer.weight.detach() / unit)
    torch.testing.assert_close(moved[0], moved[1])


# --- Adafactor


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(sorted(SETTINGS)), st.integers(-7, 3), st.integers(1, 4), oracle.seeds)
def test_adafactor_equals_transformers_with_t5s_settings(
    family: str, exponent: int, steps: int, seed: int
) -> None:
    """At any scale of the gradients, unlike with torch's default eps."""
    reference, model = (m.double() for m in pair(family))
    published = {"lr": 1e-3, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8}
    theirs = transformers.Adafactor(
        reference.parameters(), **published, scale_parameter=True, relative_step=False
    )
    ours = adafactor(model, lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    wanted = dict(reference.named_parameters())
    for _ in range(steps):
        for name, weight in model.named_parameters():
            slope = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 10.0**exponent
            weight.grad, wanted[name].grad = slope, slope.clone()
        theirs.step()
        ours.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-9, atol=1e-12)


def test_adafactor_with_rows_without_a_gradient() -> None:
    """Embeddings of tokens that do not occur: their squared gradients are 0, which must not give 0 / 0."""
    layer = torch.nn.Embedding(4, 3)
    before = layer.weight.detach().clone()
    optimizer = adafactor(layer, lr=1e-3)
    for _ in range(3):
        layer.weight.grad = torch.zeros_like(layer.weight)
        layer.weight.grad[1] = 1.0
        optimizer.step()
    assert layer.weight.isfinite().all()
    assert torch.equal(layer.weight[[0, 2, 3]], before[[0, 2, 3]]) and (layer.weight[1] < before[1]).all()


def test_adafactor_stores_row_and_column_means_only() -> None:
    layer = torch.nn.Linear(50, 40)
    optimizer = adafactor(layer, lr=1e-3)
    layer(torch.ones(50)).sum().backward()
    optimizer.step()
    stored = {name: tensor.numel() for name, tensor in optimizer.state[layer.weight].items()}
    assert stored == {"step": 1, "row_var": 40, "col_var": 50}
