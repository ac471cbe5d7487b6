"""--check: each check holds for both families, and fails where the fault is that it is there for."""

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
from ftcore.decoding import generate
from ftcore.models.cache import LayerCache
from ftcore.train import prepare
from ftcore.training import checks
from ftcore.training.check_result import FAILS, HOLDS, NOT_CHECKED, Check, Figure
from ftcore.training.checks import Loop
from ftcore.training.loss import batch_loss
from ftcore.training.options import TrainOptions
from ftcore.training.setup import Run
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
    """Prepared runs of a family, made once for all tests: checks leave them as they are."""
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


def found(check: Callable[..., Check], run: Run, directory: Path) -> Check:
    door = ftcore.train
    loop = Loop(door.train, door.take_step, door.accumulate_gradients, door.grouped, generate)
    place = directory / "files"
    place.mkdir()
    return check(run, loop, place)


# --- without a fault


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_says_that_all_holds_and_leaves_nothing(
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
LEARNING = ("adafactor", "bf16")  # where it takes another way; the others need not learn by heart, it is slow


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES for name in VARIANTS if name != f"frozen {OTHER[family]}"],
)
def test_every_kind_of_run_holds(runs: Any, tmp_path: Path, family: str, name: str) -> None:
    run = runs(family, **VARIANTS[name])
    names = ALL if name in LEARNING else ALL[1:]
    assert {name: check(run, name, tmp_path).verdict for name in names} == dict.fromkeys(names, HOLDS)


def check(run: Run, name: str, directory: Path) -> Check:
    place = directory / name
    place.mkdir(parents=True)
    return found(getattr(checks, name.replace(" ", "_")), run, place)


def test_running_text(runs: Any, tmp_path: Path) -> None:
    """GPT-2's blocks differ in length only at the end of the text; T5's chunks never do."""
    blocks = runs("gpt2", "text.txt", task="lm", max_target_length=30)
    chunks = runs("t5", "text.txt", task="span-corruption", max_source_length=30)
    for name in ALL[1:]:
        assert check(blocks, name, tmp_path / "blocks").verdict == HOLDS, name
        wanted = NOT_CHECKED if name == "ignores padding" else HOLDS
        assert check(chunks, name, tmp_path / "chunks").verdict == wanted, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_stays_as_it_is(runs: Any, tmp_path: Path, family: str) -> None:
    run = runs(family)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    door = ftcore.train
    loop = Loop(door.train, door.take_step, door.accumulate_gradients, door.grouped, generate)
    assert [name for name, _ in checks.run_checks(run, loop, tmp_path)] == ALL
    torch.testing.assert_close(dict(run.model.state_dict()), before, rtol=0, atol=0)
    assert run.model.training and run.progress.step == 0 and not run.optimizer.state
    assert all(parameter.grad is None for parameter in run.model.parameters())


# --- with the fault that a check is there for


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_without_an_end(
    runs: Any, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls as it should, but the model never learns to stop."""
    whole = Dataset.__getitem__

    def without_end(self: Dataset, index: int) -> dict[str, Any]:
        example = whole(self, index)
        return example | {"labels": [*example["labels"][:-1], -100]}

    run = runs(family)
    monkeypatch.setattr(Dataset, "__getitem__", without_end)
    result = found(checks.overfits_one_batch, run, tmp_path)
    loss, answers = result.figures
    assert loss.is_within and not answers.is_within
    assert result.verdict == FAILS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_that_the_steps_do_not_lower(
    runs: Any, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftcore.train, "set_learning_rate", lambda optimizer, lr: None)
    run = runs(family, lr=0.0)
    result = found(checks.overfits_one_batch, run, tmp_path)
    assert result.verdict == FAILS and not result.figures[0].is_within


def mean_of_means(run: Run, window: list[dict[str, torch.Tensor]]) -> float:
    """What gradient accumulation usually is."""
    total = 0.0
    for batch in window:
        loss = batch_loss(run.model, batch, run.options.label_smoothing)
        mean = loss.total / loss.tokens / len(window)
        run.scaler.scale(mean).backward()
        total += mean.item()
    return total


def divided_by_the_setting(run: Run, window: list[dict[str, torch.Tensor]]) -> float:
    """The sum of the window's micro-batches, as if it had all of them: right but for a short window."""
    total = exactly(run, window) * len(window) / run.options.grad_accum
    for parameter in run.model.parameters():
        if parameter.grad is not None:
            parameter.grad *= len(window) / run.options.grad_accum
    return total


exactly = ftcore.train.accumulate_gradients


@pytest.mark.parametrize("faulty", [mean_of_means, divided_by_the_setting])
@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_weighed_wrongly(
    runs: Any, tmp_path: Path, family: str, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftcore.train, "accumulate_gradients", faulty)
    result = found(checks.accumulates_exactly, runs(family), tmp_path)
    assert result.verdict == FAILS
    assert not any(figure.is_within for figure in result.figures[:3])


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_of_other_examples(
    runs: Any, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets made of micro-batches instead of windows put other examples into a step."""
    order = BucketBatchSampler.order
    monkeypatch.setattr(
        BucketBatchSampler, "order", lambda self: order(self)[:: 1 if self.accumulate == 1 else -1]
    )
    assert found(checks.accumulates_exactly, runs(family), tmp_path).verdict == FAILS


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
def test_something_that_is_not_put_back(
    runs: Any, tmp_path: Path, family: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(family)
    monkeypatch.setattr(owner, name, lambda *_: None)
    result = found(checks.resumes_exactly, run, tmp_path)
    assert result.verdict == FAILS and not result.figures[0].is_within


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_that_is_ignored(
    runs: Any, tmp_path: Path, family: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = getattr(ftcore.models, family)
    attention_mask_bias = page.attention_mask_bias
    monkeypatch.setattr(
        page, "attention_mask_bias", lambda mask, *rest, **named: attention_mask_bias(None, *rest, **named)
    )
    result = found(checks.ignores_padding, runs(family, precision=precision), tmp_path)
    assert result.verdict == FAILS
    assert not any(figure.is_within for figure in result.figures[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_that_counts_in_the_loss(
    runs: Any, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(family)
    monkeypatch.setattr(ftcore.data.loader, "IGNORED_LABEL", 1)
    assert not found(checks.ignores_padding, run, tmp_path).figures[0].is_within


def test_positions_that_count_padding(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's positions on the left, as a bare forward pass of transformers has them."""
    forward = ftcore.models.gpt2.GPT2Model.forward

    def from_zero(self: Any, ids: Any, mask: Any = None, position_ids: Any = None, cache: Any = None) -> Any:
        return forward(self, ids, mask, torch.arange(ids.shape[1])[None], cache)

    monkeypatch.setattr(ftcore.models.gpt2.GPT2Model, "forward", from_zero)
    assert found(checks.ignores_padding, runs("gpt2"), tmp_path).verdict == FAILS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_that_loses_a_token(
    runs: Any, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = LayerCache.append

    def append_one_off(self: LayerCache, key: Any, value: Any) -> Any:
        keys, values = append(self, key, value)
        return keys.roll(1, 2) if keys.shape[2] > key.shape[2] else keys, values

    monkeypatch.setattr(LayerCache, "append", append_one_off)
    result = found(checks.caches_exactly, runs(family), tmp_path)
    assert result.verdict == FAILS and not any(figure.is_within for figure in result.figures)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_fails(
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


def test_a_loss_that_is_no_number_is_a_failure_and_no_traceback(runs: Any, tmp_path: Path) -> None:
    run = replace(runs("t5"), model=ftcore.load_model(runs("t5").options.model))
    run.model.shared.weight.data[3] = torch.nan
    door = ftcore.train
    loop = Loop(door.train, door.take_step, door.accumulate_gradients, door.grouped, generate)
    results = dict(checks.run_checks(run, loop, tmp_path))
    assert results["overfits one batch"].verdict == results["accumulates exactly"].verdict == FAILS
    assert "the loss is nan in step 1: " in str(results["overfits one batch"])


# --- what says nothing


def test_a_check_that_a_fault_would_pass_too_has_checked_nothing() -> None:
    def verdict(figure: float, fault: float) -> str:
        return Check("", [Figure("", figure, 1.0)], "", Figure("", fault, 1.0)).verdict

    assert verdict(0.5, 2.0) == HOLDS
    assert verdict(0.5, 0.5) == NOT_CHECKED
    assert verdict(2.0, 2.0) == verdict(2.0, 0.5) == verdict(float("nan"), 2.0) == FAILS


def test_weights_that_do_not_move_show_nothing_about_resuming(runs: Any, tmp_path: Path) -> None:
    assert found(checks.resumes_exactly, runs("t5", lr=0.0), tmp_path).verdict == NOT_CHECKED


@pytest.mark.parametrize("examples", [2, 4, 6])
def test_few_examples(files: Path, tmp_path: Path, examples: int) -> None:
    """One of them validates. Every check is made that can be, and says so where it cannot."""
    data = tiny_runs.questions(tmp_path / "few.jsonl", examples)
    options = {"model": str(files / "t5"), "train": str(data), "output": str(tmp_path / "run"), "lr": 0.01}
    run = prepare(TrainOptions(**options))
    verdicts = [check(run, name, tmp_path).verdict for name in ALL[1:]]
    enough = examples == 6
    assert verdicts[:2] == [HOLDS if enough else NOT_CHECKED] * 2
    assert verdicts[2] == (NOT_CHECKED if examples == 2 else HOLDS) and verdicts[3] == HOLDS


def test_resuming_and_checking_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending:
        ftcore.train.main(["--check", "--resume", "--output", str(tmp_path)])
    assert ending.value.code == 2
    assert "--check trains nothing, so that there is nothing to --resume" in capsys.readouterr().err
