"""--check: each check holds for both families, and fails under the faults that it is meant to find."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ftcore.data.loader
import ftcore.models.gpt2
import ftcore.models.t5
import ftcore.train
import ftcore.training.state
from ftcore.data import DataLoader, Dataset
from ftcore.data.loader import BucketBatchSampler
from ftcore.models.cache import LayerCache
from ftcore.train import prepare
from ftcore.training import checks
from ftcore.training.checks import FAILS, HOLDS, NOT_CHECKED, Measurement, Result
from ftcore.training.loss import batch_loss
from ftcore.training.options import TrainOptions
from ftcore.training.run import Run
from tests.helpers import tiny_runs

FAMILIES = ["t5", "gpt2"]
OTHER = {"t5": "gpt2", "gpt2": "t5"}
ALL = ["overfits one batch", "accumulates exactly", "resumes exactly", "ignores padding", "caches exactly"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    tiny_runs.tiny_gpt2(folder / "gpt2")
    tiny_runs.questions(folder / "qa.jsonl", 22)
    (folder / "emotion.txt").write_text("".join(f"i feel {x};joy\ni am {x};anger\n" for x in "abcdefghij"))
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 42)
    return folder


@pytest.fixture(scope="module")
def runs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Prepared runs, cached for all tests, since checks do not change them."""
    prepared: dict[str, Run] = {}

    def run_of(family: str, data: str = "qa.jsonl", **options: Any) -> Run:
        key = f"{family} {data} {options}"
        if key not in prepared:
            given: dict[str, Any] = {"lr": 0.01, "max_target_length": 20} | options
            paths = {"model": str(files / family), "train": str(files / data)}
            output = tmp_path_factory.mktemp("run") / "run"
            prepared[key] = prepare(TrainOptions(**paths, **given, output=str(output)))
        return prepared[key]

    return run_of


def result_of(name: str, run: Run) -> Result:
    return getattr(checks, name.replace(" ", "_"))(run, ftcore.train)


# --- correct runs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_passes_and_leaves_no_files(
    files: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = ["--model", files / family, "--train", files / "qa.jsonl", "--lr", "0.01"]
    options += ["--output", tmp_path / "run", "--max-target-length", "20", "--check"]
    assert ftcore.train.main([str(option) for option in options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(f": {HOLDS}")] == [f"{name}: {HOLDS}" for name in ALL]
    assert lines[-1] == "5 of 5 checks hold"
    assert not any(line.startswith(("directory", "step ")) for line in lines)
    left = [
        path.name for path in tmp_path.iterdir() if not path.name.startswith("torch")
    ]  # torch's own cache
    assert left == []


VARIANTS: dict[str, dict[str, Any]] = {
    "adafactor": {"optimizer": "adafactor", "lr": None},
    "bf16": {"precision": "bf16"},
    "padded to the full length": {"pad_to_max_length": True, "max_source_length": 60},
    "smoothed, with dropout": {"label_smoothing": 0.2, "dropout": 0.3, "gradient_checkpointing": True},
    "emotion": {"task": "emotion", "data": "emotion.txt"},
    "LoRA": {"lora_rank": 4, "lora_dropout": 0.1},
    "frozen t5": {"freeze": ["decoder.block.0.layer.0"]},
    "frozen gpt2": {"freeze": ["transformer.h.0.attn"]},
}
OVERFIT = ("adafactor", "bf16")  # the other variants skip the slow overfitting


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES for name in VARIANTS if name != f"frozen {OTHER[family]}"],
)
def test_checks_hold_for_all_kinds_of_runs(runs: Any, family: str, name: str) -> None:
    run = runs(family, **VARIANTS[name])
    names = ALL if name in OVERFIT else ALL[1:]
    assert {name: result_of(name, run).verdict for name in names} == dict.fromkeys(names, HOLDS)


def test_corpora(runs: Any) -> None:
    """Only GPT-2's last block is shorter than the others; T5's chunks all have one length."""
    blocks = runs("gpt2", "text.txt", task="lm", max_target_length=30)
    chunks = runs("t5", "text.txt", task="span-corruption", max_source_length=30)
    for name in ALL[1:]:
        assert result_of(name, blocks).verdict == HOLDS, name
        wanted = NOT_CHECKED if name == "ignores padding" else HOLDS
        assert result_of(name, chunks).verdict == wanted, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_is_not_changed(runs: Any, family: str) -> None:
    run = runs(family)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    assert [name for name, _ in checks.run_checks(run, ftcore.train)] == ALL
    torch.testing.assert_close(dict(run.model.state_dict()), before, rtol=0, atol=0)
    assert run.model.training and run.progress.step == 0 and not run.optimizer.state
    assert all(parameter.grad is None for parameter in run.model.parameters())


# --- faults


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_without_an_end_token_fail(runs: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls, but the model never learns to stop."""
    original = Dataset.__getitem__

    def without_end(self: Dataset, index: int) -> dict[str, Any]:
        example = original(self, index)
        return example | {"labels": [*example["labels"][:-1], -100]}

    run = runs(family)
    monkeypatch.setattr(Dataset, "__getitem__", without_end)
    result = result_of("overfits one batch", run)
    loss, answers = result.measurements
    assert loss.is_within and not answers.is_within
    assert result.verdict == FAILS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_that_does_not_fall_fails(runs: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftcore.train, "set_learning_rate", lambda optimizer, lr: None)
    run = runs(family, lr=0.0)
    result = result_of("overfits one batch", run)
    assert result.verdict == FAILS and not result.measurements[0].is_within


def mean_of_means(run: Run, micro_batches: list[dict[str, torch.Tensor]]) -> float:
    """The usual gradient accumulation."""
    total = 0.0
    for batch in micro_batches:
        loss = batch_loss(run.model, batch, run.options.label_smoothing)
        mean = loss.total / loss.tokens / len(micro_batches)
        run.scaler.scale(mean).backward()
        total += mean.item()
    return total


def divided_by_the_setting(run: Run, micro_batches: list[dict[str, torch.Tensor]]) -> float:
    """Divided by --grad-accum even where a step has fewer micro-batches: wrong for the last step only."""
    total = exactly(run, micro_batches) * len(micro_batches) / run.options.grad_accum
    for parameter in run.model.parameters():
        if parameter.grad is not None:
            parameter.grad *= len(micro_batches) / run.options.grad_accum
    return total


exactly = ftcore.train.accumulate_gradients


@pytest.mark.parametrize("faulty", [mean_of_means, divided_by_the_setting])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_weights_of_micro_batches_fail(
    runs: Any, family: str, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftcore.train, "accumulate_gradients", faulty)
    result = result_of("accumulates exactly", runs(family))
    assert result.verdict == FAILS
    assert not any(measurement.is_within for measurement in result.measurements[:3])


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_with_other_examples_fail(runs: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bucketing micro-batches instead of steps changes the examples of a step."""
    order = BucketBatchSampler.order
    monkeypatch.setattr(
        BucketBatchSampler, "order", lambda self: order(self)[:: 1 if self.accumulate == 1 else -1]
    )
    assert result_of("accumulates exactly", runs(family)).verdict == FAILS


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ftcore.training.state, "set_random_state"),
        (DataLoader, "load_state_dict"),
        (torch.optim.AdamW, "load_state_dict"),
        (torch.nn.Module, "load_state_dict"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_state_that_is_not_restored_fails(
    runs: Any, family: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(family)
    monkeypatch.setattr(owner, name, lambda *_: None)
    result = result_of("resumes exactly", run)
    assert result.verdict == FAILS and not result.measurements[0].is_within


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ignored_mask_fails(runs: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = getattr(ftcore.models, family)
    original = module.attention_mask_bias
    monkeypatch.setattr(
        module, "attention_mask_bias", lambda mask, *args, **kwargs: original(None, *args, **kwargs)
    )
    result = result_of("ignores padding", runs(family))
    assert result.verdict == FAILS
    assert not any(measurement.is_within for measurement in result.measurements[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_the_loss_fails(runs: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs(family)
    monkeypatch.setattr(ftcore.data.loader, "IGNORED_LABEL", 1)
    assert not result_of("ignores padding", run).measurements[0].is_within


def test_positions_that_count_padding_fail(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions under left padding as in a bare forward pass of transformers."""
    forward = ftcore.models.gpt2.GPT2Model.forward

    def from_zero(self: Any, ids: Any, mask: Any = None, position_ids: Any = None, cache: Any = None) -> Any:
        return forward(self, ids, mask, torch.arange(ids.shape[1])[None], cache)

    monkeypatch.setattr(ftcore.models.gpt2.GPT2Model, "forward", from_zero)
    assert result_of("ignores padding", runs("gpt2")).verdict == FAILS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_in_wrong_order_fails(runs: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append = LayerCache.append

    def append_rolled(self: LayerCache, key: Any, value: Any) -> Any:
        keys, values = append(self, key, value)
        return keys.roll(1, 2) if keys.shape[2] > key.shape[2] else keys, values

    monkeypatch.setattr(LayerCache, "append", append_rolled)
    result = result_of("caches exactly", runs(family))
    assert result.verdict == FAILS and not any(measurement.is_within for measurement in result.measurements)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_reports_failures(
    files: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftcore.train, "accumulate_gradients", mean_of_means)
    options = ["--model", files / family, "--train", files / "qa.jsonl", "--lr", "0.01", "--check"]
    options += ["--max-target-length", "20"]
    assert ftcore.train.main([str(option) for option in options]) == 1
    output = capsys.readouterr().out
    assert f"accumulates exactly: {FAILS}" in output and f"resumes exactly: {HOLDS}" in output
    assert "   <--" in output
    assert output.splitlines()[-1] == "4 of 5 checks hold"


def test_a_nan_loss_is_a_failure_without_traceback(runs: Any) -> None:
    run = replace(runs("t5"), model=ftcore.load_model(runs("t5").options.model))
    run.model.shared.weight.data[3] = torch.nan
    results = dict(checks.run_checks(run, ftcore.train))
    assert results["overfits one batch"].verdict == results["accumulates exactly"].verdict == FAILS
    assert "the loss is nan in step 1: " in str(results["overfits one batch"])


# --- controls


def test_a_control_within_its_bound_voids_the_check() -> None:
    def verdict(value: float, control: float) -> str:
        return Result("", [Measurement("", value, 1.0)], Measurement("", control, 1.0)).verdict

    assert verdict(0.5, 2.0) == HOLDS
    assert verdict(0.5, 0.5) == NOT_CHECKED
    assert verdict(2.0, 2.0) == verdict(2.0, 0.5) == verdict(float("nan"), 2.0) == FAILS


def test_resuming_is_not_checked_where_weights_do_not_change(runs: Any) -> None:
    assert result_of("resumes exactly", runs("t5", lr=0.0)).verdict == NOT_CHECKED


@pytest.mark.parametrize("examples", [2, 4, 6])
def test_few_examples(files: Path, tmp_path: Path, examples: int) -> None:
    """One of them is used for validation. Checks that need more examples say so."""
    data = tiny_runs.questions(tmp_path / "few.jsonl", examples)
    options = {"model": str(files / "t5"), "train": str(data), "output": str(tmp_path / "run"), "lr": 0.01}
    run = prepare(TrainOptions(**options))
    verdicts = [result_of(name, run).verdict for name in ALL[1:]]
    enough = examples == 6
    assert verdicts[:2] == [HOLDS if enough else NOT_CHECKED] * 2
    assert verdicts[2] == (NOT_CHECKED if examples == 2 else HOLDS) and verdicts[3] == HOLDS


def test_check_contradicts_resume(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending:
        ftcore.train.main(["--check", "--resume", "--output", str(tmp_path)])
    assert ending.value.code == 2
    assert "--check trains nothing, so that there is nothing to --resume" in capsys.readouterr().err
