"""A non-finite loss or gradient is traced to a module, the range of its input, and the examples."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftcore.train
from ftcore.checkpoints.checkpoint import load_model
from ftcore.models.attention import Softmax
from ftcore.train import prepare
from ftcore.training.options import TrainOptions
from ftcore.training.run import Run
from tests.helpers import tiny_runs

BUILD = {"t5": tiny_runs.tiny_t5, "gpt2": tiny_runs.tiny_gpt2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("non_finite")
    for family, build in BUILD.items():
        build(folder / family)
    tiny_runs.tiny_t5(folder / "t5-untied", tie_word_embeddings=False)
    tiny_runs.questions(folder / "train.jsonl", 12)
    return folder


@pytest.fixture(autouse=True, scope="module")
def steps_only() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ftcore.train, "validate", lambda run: None)
        yield


def a_run(folder: Path, family: str, **options: Any) -> Run:
    sizes = {"batch_size": 3, "grad_accum": 2, "max_steps": 8, "max_target_length": 20, "overwrite": True}
    files = {"model": folder / family, "train": folder / "train.jsonl", "output": folder / "run"}
    run = prepare(TrainOptions(**{name: str(file) for name, file in files.items()} | sizes | options))
    run.directory.close()  # the next test replaces the run
    return run


def failure(run: Run) -> str:
    with pytest.raises(FloatingPointError) as error:
        ftcore.train.train(run)
    assert not any(module._forward_hooks for module in run.model.modules())
    return str(error.value)


def corrupt(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change the output of the module."""
    compute = module.forward
    module.forward = lambda *inputs: change(compute(*inputs))  # type: ignore[method-assign]


def leaves(run: Run) -> list[str]:
    """Modules called in a training step; the loss computes the head's product, and attention is fused."""
    modules = run.model.named_modules()
    kinds = Softmax | nn.ModuleList
    return [
        name
        for name, module in modules
        if not any(module.children()) and not isinstance(module, kinds) and name != "lm_head"
        if not name.endswith((".attn_dropout", "SelfAttention.dropout", "EncDecAttention.dropout"))
    ]


@settings(deadline=None, max_examples=20)
@given(family=st.sampled_from(sorted(BUILD)), data=st.data(), value=st.sampled_from([math.inf, math.nan]))
def test_a_random_failure_is_reproduced(folder: Path, family: str, data: st.DataObject, value: float) -> None:
    """The module fails at random; the second run has the same random state."""
    run = a_run(folder, family)
    name = data.draw(st.sampled_from(leaves(run)))

    def sometimes(output: Tensor) -> Tensor:
        return torch.where(torch.rand(()) < 0.4, torch.full_like(output, value), output)

    corrupt(run.model.get_submodule(name), sometimes)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    text = failure(run)
    assert f"in step {run.progress.step + 1}: first in the output of {name}, whose input ranged from " in text


def test_input_range_and_examples_are_reported(folder: Path) -> None:
    run = a_run(folder, "t5", grad_accum=1)
    seen: list[Tensor] = []
    name = "decoder.block.0.layer.2.DenseReluDense.wo"
    module = run.model.get_submodule(name)
    run.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    corrupt(module, lambda output: output * (math.inf if len(seen) >= 3 else 1))
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    text = failure(run)
    low, high = seen[3].aminmax()
    assert (
        f"first in the output of {name}, whose input ranged from {low:.4g} to {high:.4g}; the batch" in text
    )
    report = json.loads((folder / "run" / "non_finite.json").read_text())
    assert report["step"] == 2 and report["error"] == "the loss is nan" and name in report["found"]
    records = run.train_loader.dataset.records
    assert len(report["examples"]) == 3 == len(seen[2])
    for row, ids in zip(report["examples"], seen[2], strict=True):
        record = records[row["index"]]
        assert row["input"].startswith(record.source) and row["target"].startswith(record.target)
        assert ids[: len(record.source.encode())].tolist() == [3 + byte for byte in record.source.encode()]


class InfiniteGradient(torch.autograd.Function):
    """The identity with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.inf


@pytest.mark.parametrize(
    ("family", "name", "before"),
    [
        ("t5", "encoder.block.0.layer.1.DenseReluDense.wi", "encoder.block.0.layer.1.layer_norm"),
        ("gpt2", "transformer.h.0.mlp.c_fc", "transformer.h.0.ln_2"),
    ],
)
def test_a_gradient_is_traced_to_the_module_before(folder: Path, family: str, name: str, before: str) -> None:
    run = a_run(folder, family)
    corrupt(run.model.get_submodule(name), InfiniteGradient.apply)
    text = failure(run)
    assert f"in step 1: first in the gradient with respect to the output of {before}, whose input" in text


def test_a_gradient_of_one_parameter(folder: Path) -> None:
    run = a_run(folder, "gpt2")
    run.model.transformer.wpe.weight.register_hook(lambda grad: grad * math.nan)
    assert "in step 1: first in the gradient of transformer.wpe.weight; the batch" in failure(run)


def test_a_non_finite_weight_is_named(folder: Path) -> None:
    run = a_run(folder, "t5")
    name = "encoder.block.0.layer.0.SelfAttention.v"
    with torch.no_grad():
        run.model.get_submodule(name).weight[0, 0] = math.inf
    text = failure(run)
    assert f"first in the output of {name}, whose input ranged" in text
    assert f"; {name}.weight is not finite itself; the batch" in text


def test_logits_that_overflow(folder: Path) -> None:
    """The loss uses lm_head's weight without calling the module."""
    run = a_run(folder, "t5-untied")
    with torch.no_grad():
        run.model.lm_head.weight.fill_(3e38)
    assert "all module outputs are finite, but the loss of lm_head's logits is not" in failure(run)


def test_non_finite_weights_are_not_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step before a save may produce them without a non-finite loss."""
    run = a_run(folder, "t5", save_every=1)
    original = ftcore.train.set_learning_rate
    monkeypatch.setattr(
        ftcore.train,
        "set_learning_rate",
        lambda optimizer, lr: original(optimizer, lr if run.progress.step < 2 else 1e39),
    )
    text = failure(run)
    assert "after step 3, shared.weight is not finite; a lower --lr may help" in text
    assert text.endswith(f"the weights of the last save are at {folder / 'run' / 'last'}")
    for directory in (folder / "run" / "last", folder / "run" / "checkpoints" / "step-000002"):
        assert all(weight.isfinite().all() for weight in load_model(directory).parameters())
    assert not (folder / "run" / "checkpoints" / "step-000003").exists()


# fp16, whose scaler skips steps. On a CPU it runs in float32, with gradients that a hook makes overflow.


def a_scaled_run(folder: Path, overflows: Callable[[int], bool], **options: Any) -> Run:
    run = a_run(folder, "t5", log_every=1, grad_accum=1, **options)
    run.scaler = torch.amp.GradScaler("cpu")

    def overflow(grad: Tensor) -> Tensor:
        return grad * math.inf if overflows(run.progress.step) else grad

    run.model.shared.weight.register_hook(overflow)
    return run


@pytest.mark.parametrize("steps", [8, 100])
def test_skipped_steps_end_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, steps: int
) -> None:
    """Many in a row, or all: else the run would end well, with the weights that it has started with."""
    monkeypatch.setattr(ftcore.train, "MAX_SKIPPED", 12)
    run = a_scaled_run(folder, lambda step: step >= 20 or steps == 8, max_steps=steps)
    last, in_a_row = (8, 8) if steps == 8 else (32, 12)
    assert f"in step {last}: first in the gradient of shared.weight" in failure(run)
    counts = [line["skipped_steps"] for line in run.directory.metrics_log.read()]
    assert counts == [max(0, step - last + in_a_row) for step in range(1, last)]
    assert f"step {last - 1}: skipped ({in_a_row - 1} in a row)" in capsys.readouterr().out
    assert run.scaler.get_scale() < 2**16


def test_a_few_skipped_steps_do_not(folder: Path) -> None:
    run = a_scaled_run(folder, lambda step: step in (0, 1, 5))
    ftcore.train.train(run)
    lines = [line["skipped_steps"] for line in run.directory.metrics_log.read()]
    assert lines == [1, 2, 0, 0, 0, 1, 0, 0]
