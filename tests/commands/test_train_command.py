"""python -m ftcore.train: output files, failing runs, and one-line errors."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftcore.train
from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.cli import parse
from ftcore.data import load_tokenizer
from ftcore.lora.lora import linear_layers
from ftcore.train import main
from ftcore.training import defaults, run_files, validation
from ftcore.training.metrics_log import Meter
from ftcore.training.options import TrainOptions
from ftcore.training.scoring import Answer, LossScore
from tests.helpers import tiny_runs
from tests.helpers.terminal import terminal

QUICK = ("--batch-size", "4", "--max-target-length", "20", "--eval-answers", "2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data of all tests here, read only."""
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    tiny_runs.tiny_gpt2(folder / "gpt2")
    tiny_runs.questions(folder / "qa.jsonl", 18)
    tiny_runs.questions(folder / "valid.jsonl", 4, start=50)
    (folder / "emotion.txt").write_text("".join(f"i feel {x};joy\ni am {x};anger\n" for x in "abcdef"))
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 12)
    tiny_runs.write_lines(
        folder / "pairs.jsonl", ({"source": f"say {n}", "target": f"{n}!"} for n in range(12))
    )
    return folder


def test_the_progress_bar_has_room_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter([])
    meter.add(2.345, [{"index": torch.zeros(16), "attention_mask": torch.ones(16, 256)}])
    with terminal(80) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        run = SimpleNamespace(total_steps=10_000, progress=SimpleNamespace(step=0))
        with ftcore.train.training_bar(run) as bar:
            bar.set_postfix_str(meter.postfix())
            bar.start_t -= 7200  # two hours for the first half
            bar.update(5_000)
            line = str(bar)
    assert len(line) <= 80
    assert line.startswith(" 50%|") and "| 5000/10000 [2:00:00<" in line
    assert ", loss 2.345, " in line and line.endswith(" tok/s]")
    assert len(line.split("|")[1]) >= 15  # the bar


def train(files: Path, output: Path, *options: str, model: str = "t5", data: str = "qa.jsonl") -> int:
    paths = ["--model", str(files / model), "--train", str(files / data), "--output", str(output)]
    return main([*paths, *QUICK, *options])


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The error line of a refused command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    [line] = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("ftcore.train: ")
    return line


# --- runs and their files


@pytest.mark.parametrize(
    ("model", "task", "data"),
    [
        ("t5", "qa", "qa.jsonl"),
        ("gpt2", "qa", "qa.jsonl"),
        ("t5", "emotion", "emotion.txt"),
        ("gpt2", "emotion", "emotion.txt"),
        ("gpt2", "lm", "text.txt"),
        ("t5", "span-corruption", "text.txt"),
        ("t5", "text2text", "pairs.jsonl"),
        ("gpt2", "text2text", "pairs.jsonl"),
    ],
)
def test_every_task_learns(files: Path, tmp_path: Path, model: str, task: str, data: str) -> None:
    run = tmp_path / "run"
    options = ("--task", task, "--max-steps", "12", "--lr", "0.01", "--log-every", "4")
    if task == "span-corruption":
        options += ("--max-source-length", "32")  # else the text is too short for one example
    assert train(files, run, *options, model=model, data=data) == 0
    lines = tiny_runs.metrics(run)
    valid_losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    train_losses = [line["train_loss"] for line in lines if "train_loss" in line]
    assert valid_losses[-1] < valid_losses[0] and train_losses[-1] < train_losses[0]
    assert lines[0]["step"] == 0 and lines[-1]["step"] == 12
    has_answers = task in ("qa", "text2text") or (model, task) == ("t5", "emotion")
    assert ("exact_match" in lines[0]) == ("f1" in lines[-1]) == has_answers
    for directory in (run / "best", run / "last"):
        load_model(directory)
        load_tokenizer(directory)


def test_keys_and_steps_of_the_log(files: Path, tmp_path: Path) -> None:
    train(files, tmp_path / "run", "--epochs", "2", "--log-every", "2", "--valid", str(files / "valid.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = {"train_loss", "learning_rate", "grad_norm", "tokens_per_second", "examples_per_second"}
    validated = {"valid_loss", "token_accuracy", "perplexity", "exact_match", "f1"}
    # 18 examples, 4 a step: 5 steps an epoch
    assert [line["step"] for line in lines if trained < line.keys()] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in lines if validated < line.keys()] == [0, 5, 10]
    assert all(line.keys() - {"step", "epoch"} in (trained, validated) for line in lines)
    assert all(line["epoch"] == line["step"] / 5 for line in lines)
    assert all(
        line["perplexity"] == pytest.approx(math.exp(line["valid_loss"])) for line in lines if "f1" in line
    )


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_lora_trains_adapters_only(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, model: str
) -> None:
    run = tmp_path / "run"
    assert train(files, run, "--lora-rank", "2", "--lora-targets", "all-linear", model=model) == 0
    assert "the others are frozen" in capsys.readouterr().out
    before, after = load_model(files / model), load_model(run / "last")
    changed = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {f"{name}.weight" for name in linear_layers(before)}
    adapted = load_model(run / "last" / "adapter")  # on the model that --model named
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--lora-alpha", "4"), "--lora-alpha needs --lora-rank"),
        (("--lora-dropout", "0.1"), "--lora-dropout needs --lora-rank"),
        (("--lora-rank", "0"), "--lora-rank is 0, expected at least 1"),
        (("--lora-rank", "2", "--lora-alpha", "-1"), "--lora-alpha is -1.0, expected at least 0"),
        (("--lora-rank", "2", "--lora-dropout", "1"), "--lora-dropout is 1.0, expected from 0"),
        (("--lora-rank", "2", "--freeze", "encoder"), "--lora-rank contradicts --freeze"),
        (("--lora-rank", "2", "--from-scratch"), "--lora-rank contradicts --from-scratch"),
        (("--lora-rank", "2", "--relative-steps"), "--lora-rank contradicts --relative-steps"),
        (("--lora-rank", "2", "--optimizer", "adafactor"), "--lora-rank contradicts --optimizer adafactor"),
        (("--lora-rank", "2", "--lora-targets", "c_attn"), "targets: 'c_attn' names no layer"),
    ],
)
def test_invalid_lora_options_are_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...], complaint: str
) -> None:
    paths = ["--model", str(files / "t5"), "--train", str(files / "qa.jsonl")]
    assert complaint in refusal(capsys, *paths, "--output", str(tmp_path / "run"), *options)


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_transformers_opens_best_and_last(files: Path, tmp_path: Path, model: str) -> None:
    transformers = pytest.importorskip("transformers")
    train(files, tmp_path / "run", "--max-steps", "2", model=model)
    name = "T5ForConditionalGeneration" if model == "t5" else "GPT2LMHeadModel"
    for directory in (tmp_path / "run" / "best", tmp_path / "run" / "last"):
        theirs, ours = getattr(transformers, name).from_pretrained(directory), load_model(directory)
        assert theirs.state_dict().keys() == ours.state_dict().keys()
        ids = torch.tensor([[5, 6, 7]])
        extra = {"decoder_input_ids": ids} if model == "t5" else {}
        with torch.no_grad():
            torch.testing.assert_close(ours(ids, **extra), theirs(ids, **extra).logits)
        text = "is it so?"
        assert transformers.AutoTokenizer.from_pretrained(directory)(text).input_ids == load_tokenizer(
            directory
        ).encode(text)


def test_best_is_not_the_last(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact match decides, then the loss. Step 0, which is not trained, is never kept."""
    scores = iter([(1.0, 0.1), (0.2, 3.0), (0.5, 2.0), (0.5, 1.0), (0.4, 0.5)])  # exact match, loss
    weights, matches = [], []

    def score_loss(model: Any, *_: Any) -> LossScore:
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        match, loss = next(scores)
        matches.append(match)
        return LossScore(loss, 0.5, 10)

    def score_answers(*_: Any, **__: Any) -> list[Answer]:
        return [Answer("source", "prediction", ("reference",), matches[-1], f1=1.0)]

    monkeypatch.setattr(validation, "score_loss", score_loss)
    monkeypatch.setattr(validation, "score_answers", score_answers)
    train(files, tmp_path / "run", "--max-steps", "4", "--eval-every", "1", "--lr", "0.1")
    for directory, step in (("best", 3), ("last", 4)):
        saved = load_model(tmp_path / "run" / directory).state_dict()
        torch.testing.assert_close(dict(saved), weights[step], rtol=0, atol=0)


@pytest.mark.parametrize("model", ["t5", "gpt2"])
@pytest.mark.parametrize(("task", "data"), [("qa", "qa.jsonl"), ("lm", "text.txt")])
def test_weights_depend_neither_on_validations_nor_on_settings_for_writing(
    files: Path, tmp_path: Path, model: str, task: str, data: str
) -> None:
    task = "span-corruption" if (model, task) == ("t5", "lm") else task
    sampling = {"do_sample": True, "temperature": 2.0}
    logged, weights = [], []
    for number, settings in enumerate((None, sampling)):
        start = shutil.copytree(files / model, tmp_path / f"model{number}")
        if settings:
            (start / "generation_config.json").write_text(json.dumps(settings))
        for every in ("1", "4"):
            run = tmp_path / f"run{number}-{every}"
            options = ["--task", task, "--dropout", "0.3", "--max-steps", "4", "--eval-every", every]
            options += ["--max-source-length", "32", "--model", str(start)]
            assert train(files, run, *options, data=data) == 0
            weights.append((run / "last" / "model.safetensors").read_bytes())
            logged.append(tiny_runs.metrics(run)[-1])
    assert weights[1:] == weights[:1] * 3 and logged[1:] == logged[:1] * 3


@pytest.mark.parametrize(
    ("task", "data", "line", "name"),
    [
        ("qa", "qa.jsonl", "compared as in SQuAD 1.1", "exact_match (SQuAD) "),
        ("text2text", "pairs.jsonl", "compared exactly, as the tokenizer writes them", "exact_match 0"),
    ],
)
def test_the_log_says_how_answers_are_found_and_compared(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, task: str, data: str, line: str, name: str
) -> None:
    train(files, tmp_path / "run", "--max-steps", "1", "--task", task, "--num-beams", "2", data=data)
    printed = capsys.readouterr().out
    assert f"answers    2 in each validation: beam search with 2 beams, at most 20 tokens, {line}" in printed
    assert f", {name}" in printed.split("step 0: ")[1].splitlines()[0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("exact match (SQuAD)" in page) == (task == "qa")


@pytest.mark.parametrize("answer", ["+", ""])
def test_a_constant_answer_is_not_right_for_two_signs(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    rows = ({"source": f"review {n}", "target": "+-"[n % 2]} for n in range(12))
    data = str(tiny_runs.write_lines(tmp_path / "signs.jsonl", rows))
    monkeypatch.setattr(
        "ftcore.training.scoring.generate_from_ids", lambda _model, _tokenizer, ids, **_: [answer] * len(ids)
    )
    options = ["--task", "text2text", "--max-steps", "1", "--valid", data, "--eval-answers", "99"]
    train(files, tmp_path / "run", *options, data=data)
    expected = 0.5 if answer == "+" else 0
    assert {line.get("exact_match", expected) for line in tiny_runs.metrics(tmp_path / "run")} == {expected}


def test_max_steps_may_take_several_epochs(files: Path, tmp_path: Path) -> None:
    train(files, tmp_path / "run", "--epochs", "1", "--max-steps", "12")
    assert tiny_runs.metrics(tmp_path / "run")[-1]["epoch"] == pytest.approx(12 / 4, abs=0.7)


def test_save_every_and_keep(files: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(files, run, "--max-steps", "7", "--save-every", "2", "--keep", "2")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    load_model(run / "checkpoints" / "step-000006")
    load_tokenizer(run / "checkpoints" / "step-000006")


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_from_scratch_needs_no_weights_and_follows_the_seed(files: Path, tmp_path: Path, model: str) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (files / model).iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())

    def first_weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        run = tmp_path / name
        options = ("--from-scratch", "--max-steps", "1", "--lr", "0", "--seed", str(seed))
        train(tmp_path, run, *options, model="bare", data=str(files / "qa.jsonl"))
        return load_file(run / "last" / "model.safetensors")

    one, same, other = first_weights("a", 1), first_weights("b", 1), first_weights("c", 2)
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_dropout_is_set_and_saved(files: Path, tmp_path: Path) -> None:
    for model, keys in (("t5", ["dropout_rate"]), ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])):
        run = tmp_path / model
        train(files, run, "--max-steps", "1", "--dropout", "0.25", model=model)
        config = json.loads((run / "last" / "config.json").read_text())
        assert [config[key] for key in keys] == [0.25] * len(keys)


def test_without_dropout_the_seed_changes_only_the_order(files: Path, tmp_path: Path) -> None:
    """A step has all examples, so the order only changes rounding."""
    weights = []
    for seed in ("1", "2"):
        options = (
            "--valid",
            str(files / "valid.jsonl"),
            "--batch-size",
            "18",
            "--max-steps",
            "1",
            "--seed",
            seed,
        )
        train(files, tmp_path / seed, *options, "--dropout", "0", "--lr", "1e-3")
        weights.append(tiny_runs.metrics(tmp_path / seed)[-2]["grad_norm"])
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ((), ("adamw", 3e-4, False, "linear", 0.05, 0.01, 1.0)),
        (("--relative-steps",), ("adamw", 1e-2, True, "linear", 0.05, 0.01, 1.0)),
        (("--optimizer", "adafactor"), ("adafactor", 1e-3, True, "constant", 0, 0.0, 0.0)),
        (
            ("--optimizer", "adafactor", "--lr", "0.01", "--schedule", "cosine", "--warmup", "2"),
            ("adafactor", 0.01, True, "cosine", 2, 0.0, 0.0),
        ),
        (
            ("--optimizer", "adafactor", "--clip-norm", "2"),
            ("adafactor", 1e-3, True, "constant", 0, 0.0, 2.0),
        ),
    ],
)
def test_defaults_depend_on_the_optimizer(
    files: Path, tmp_path: Path, options: tuple[str, ...], settings: tuple[Any, ...]
) -> None:
    train(files, tmp_path / "run", "--max-steps", "2", "--eval-answers", "0", *options)
    used = json.loads((tmp_path / "run" / "train_config.json").read_text())
    names = ("optimizer", "lr", "relative_steps", "schedule", "warmup", "weight_decay", "clip_norm")
    assert tuple(used[name] for name in names) == settings


@pytest.mark.parametrize(
    ("options", "lr", "relative"),
    [
        (("--task", "qa"), 5e-3, True),
        (("--task", "qa", "--no-relative-steps"), 3e-4, False),
        (("--task", "qa", "--optimizer", "adafactor"), 5e-3, True),
        (("--task", "emotion"), 5e-4, False),
        (("--task", "emotion", "--relative-steps"), 1e-2, True),
        (("--task", "emotion", "--optimizer", "adafactor"), 1e-3, True),
    ],
)
def test_embedded_learning_rates_depend_on_relative_steps(
    options: tuple[str, ...], lr: float, relative: bool
) -> None:
    given = parse(TrainOptions, options, command="ftcore.train")
    resolved = defaults.resolve(given, run_files.find_files(given), is_t5="qa" in options)
    assert (resolved.lr, resolved.relative_steps) == (lr, relative)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", (5, 32, 5e-3, True, 0.0)),
        ("--model weights/t5-mini", (5, 32, 5e-3, True, 0.0)),
        ("--model ./weights/../weights/t5-mini/", (5, 32, 5e-3, True, 0.0)),
        (f"--model {run_files.CLONE}/weights/t5-mini", (5, 32, 5e-3, True, 0.0)),
        ("--model weights/t5-mini --task text2text --train README.md", (5, 32, 5e-3, True, 0.0)),
        ("--model weights/t5-mini --lr 0.02 --batch-size 4", (5, 4, 0.02, True, 0.0)),
        ("--model weights/t5-mini --lora-rank 2", (5, 32, 3e-3, False, 0.0)),
        ("--model weights/t5-mini --no-relative-steps", (5, 32, 3e-4, False, 0.0)),
        ("--model weights/gpt2-mini", (3, 16, 5e-4, False, 0.01)),
        ("--model weights/gpt2-mini --task lm --train README.md", (3, 16, 5e-4, False, 0.01)),
        ("--model elsewhere/weights/t5-mini", (3, 8, 3e-4, False, 0.01)),
        ("--model runs/t5-mini", (3, 8, 3e-4, False, 0.01)),
    ],
)
def test_embedded_models_bring_their_defaults(
    options: str, settings: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they are trained on, and however they are named."""
    monkeypatch.chdir(run_files.CLONE)
    given = parse(TrainOptions, options.split(), command="ftcore.train")
    resolved = defaults.resolve(given, run_files.find_files(given), is_t5="gpt2" not in options)
    names = ("epochs", "batch_size", "lr", "relative_steps", "weight_decay")
    assert tuple(getattr(resolved, name) for name in names) == settings


def test_the_defaults_of_an_embedded_model_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, data = run_files.CLONE / "weights" / "t5-mini", tiny_runs.questions(tmp_path / "x.jsonl", 4)
    options = ["--dry-run", "--model", str(model), "--train", str(data), "--batch-size", "2", "--lr", "5e-3"]
    assert ftcore.train.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "defaults   of this model: --epochs 5 --lr 0.005 --relative-steps --weight-decay 0.0" in lines


def test_label_smoothing_changes_only_the_training_loss(files: Path, tmp_path: Path) -> None:
    """With a learning rate of 0, so that the losses can be compared."""
    logs = []
    for smoothing in ("0", "0.1"):
        options = ("--max-steps", "1", "--lr", "0", "--dropout", "0", "--label-smoothing", smoothing)
        train(files, tmp_path / smoothing, *options)
        logs.append(tiny_runs.metrics(tmp_path / smoothing))
    (_, plain, validated), (_, smoothed, validated_too) = logs
    assert validated == validated_too
    assert plain["train_loss"] != smoothed["train_loss"]


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_padding_to_the_full_length_does_not_change_the_loss(files: Path, tmp_path: Path, model: str) -> None:
    losses = []
    for name, options in (("short", ()), ("full", ("--pad-to-max-length",))):
        limits = ("--max-source-length", "60", "--dropout", "0", "--max-steps", "3", "--log-every", "1")
        train(files, tmp_path / name, *limits, *options, model=model)
        losses.append(
            [line.get("train_loss", line.get("valid_loss")) for line in tiny_runs.metrics(tmp_path / name)]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_packing_does_not_change_the_loss(files: Path, tmp_path: Path, model: str) -> None:
    """Every step has all examples, so their order does not matter."""
    losses = []
    for name, options in (("unpacked", ()), ("packed", ("--packing",))):
        steps = ("--batch-size", "18", "--max-steps", "3", "--dropout", "0", "--log-every", "1")
        train(files, tmp_path / name, *steps, *options, model=model)
        losses.append(
            [line.get("train_loss", line.get("valid_loss")) for line in tiny_runs.metrics(tmp_path / name)]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bf16_is_close_to_fp32(files: Path, tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        train(files, tmp_path / precision, "--precision", precision, "--max-steps", "3", "--dropout", "0")
        losses.append(tiny_runs.metrics(tmp_path / precision)[-2]["train_loss"])
        weights = load_file(tmp_path / precision / "last" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2**-6)  # bfloat16 rounds to 2^-9


def test_truncated_sources_are_counted(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(
        files,
        tmp_path / "run",
        "--max-source-length",
        "10",
        "--max-steps",
        "1",
        "--valid",
        str(files / "valid.jsonl"),
    )
    warnings = capsys.readouterr().err.splitlines()
    assert "warning: 18 of 18 training sources are truncated to --max-source-length 10 tokens" in warnings
    assert "warning: 4 of 4 validation sources are truncated to --max-source-length 10 tokens" in warnings


def test_without_output_a_new_directory_is_created(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["--model", str(files / "t5"), "--train", str(files / "qa.jsonl"), "--max-steps", "1", *QUICK])
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_summary_answers_and_next_command_are_printed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(files, tmp_path / "run", "--max-steps", "1", model="gpt2")
    output = capsys.readouterr().out
    assert "18 examples" not in output and "examples for training" in output
    assert "gold: " in output and "answer: " in output
    assert f"python -m ftcore.generate --model {tmp_path / 'run' / 'best'}" in output
    for line in output.splitlines():
        assert not line.startswith("question:"), "a multi-line source is printed on one line"


def test_the_curves_are_drawn(files: Path, tmp_path: Path, curves: None) -> None:
    train(files, tmp_path / "run", "--max-steps", "2")
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


# --- failing runs


def test_a_non_finite_loss_ends_the_run(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as ending:
        train(files, run, "--lr", "1e30", "--warmup", "0", "--max-steps", "9", "--save-every", "1")
    assert ending.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("ftcore.train: the ") and " in step 2: first in the " in line
    assert f"the batch is in {run / 'non_finite.json'}; a lower --lr may help" in line
    assert line.endswith(f"the weights of the last save are at {run / 'last'}")
    assert all(tensor.isfinite().all() for tensor in load_file(run / "last" / "model.safetensors").values())


def test_a_non_finite_gradient_does_not_change_the_weights(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(parameters: Any, limit: float) -> torch.Tensor:
        return torch.tensor(math.inf)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    with pytest.raises(SystemExit) as ending:
        train(files, tmp_path / "run", "--max-steps", "9")
    assert ending.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "the gradient's norm is inf in step 1: a second run of its batches gave finite" in line
    assert line.endswith("; a lower --lr may help")
    assert not (tmp_path / "run" / "last").exists()


def test_ctrl_c_in_a_subprocess(files: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the worker processes too."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ftcore.train", "--model", files / "t5", "--train", files / "qa.jsonl"]
    command += ["--output", run, "--max-steps", "100000", "--save-every", "1", "--keep", "1", *QUICK]
    command += ["--workers", "1", "--eval-every", "100000"]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if (run / "state" / "training_state.pt").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"resume with:\n  python -m ftcore.train --output {run} --resume" in output
    assert not errors.strip(), errors
    load_model(run / "last")


@pytest.mark.parametrize("moment", ["prepare", "validate"])
def test_ctrl_c_before_the_first_step_is_one_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ftcore.train, moment, interrupted)
    assert train(files, tmp_path / "run") == 130
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted; earlier saves are complete"


# --- refused


def test_wrong_files(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def complaint(content: str, task: str = "qa", suffix: str = ".jsonl") -> str:
        path = tmp_path / f"data{suffix}"
        path.write_text(content)
        return refusal(
            capsys,
            "--model",
            str(files / "t5"),
            "--task",
            task,
            "--train",
            str(path),
            "--output",
            str(tmp_path / "run"),
        )

    good = '{"context": "a", "question": "b", "answer": "c"}\n'
    assert "data.jsonl: the file is empty" in complaint("")
    assert "data.jsonl, line 2: broken JSON" in complaint(good + '{"context": \n')
    assert "data.jsonl, line 2: no key 'answer' or 'answers'" in complaint(
        good + '{"context": "a", "question": "b"}\n'
    )
    assert "data.txt, line 1: no ';' between text and label" in complaint("joy\n", "emotion", ".txt")
    assert "cannot split 1 record" in complaint(good)
    assert "decoder-only" in complaint("some text", "lm", ".txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--task", "poetry"], "--task: invalid choice: 'poetry' (choose from"),
        (["--train", "/nowhere/data.json"], "/nowhere/data.json"),
        (["--valid", "/nowhere/data.json"], "/nowhere/data.json"),
        (["--model", "/nowhere/model"], "/nowhere/model': no such directory"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a CUDA device"),
        (["--device", "tpu"], "--device is 'tpu', which torch does not find here"),
        (["--device", "cuda:99"], "--device is 'cuda:99', which torch does not find here"),
        (["--epochs", "0"], "--epochs is 0, expected at least 1"),
        (["--lr", "-1"], "--lr is -1.0, expected at least 0"),
        (["--lr", "nan"], "--lr is nan, expected at least 0"),
        (["--seed", "-1"], "--seed is -1, expected at least 0"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
        (["--warmup", "30.5"], "--warmup is 30.5, expected a whole number of steps, or a share below 1"),
        (["--dropout", "1"], "--dropout is 1.0, expected from 0 to below 1"),
        (["--optimizer", "adafactor", "--no-relative-steps"], "adafactor contradicts --no-relative-steps"),
        (["--packing", "--pad-to-max-length"], "--packing contradicts --pad-to-max-length"),
        (["--label-smoothing", "1"], "--label-smoothing is 1.0, expected from 0 to below 1"),
        (["--valid-share", "1"], "--valid-share is 1.0"),
        (["--max-target-length", "1"], "max_target_length 1"),
        (["--bach-size", "3"], "did you mean '--batch-size'?"),
        (["--resume"], "--resume needs --output"),
    ],
)
def test_wrong_options(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--model": str(files / "t5"), "--train": str(files / "qa.jsonl")}
    known = [part for option, value in given.items() if option not in arguments for part in (option, value)]
    assert complaint in refusal(capsys, *known, *arguments)
    assert not any(tmp_path.iterdir())  # no directory was created


def test_wrong_checkpoints(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def complaint(model: Path) -> str:
        data = str(files / "qa.jsonl")
        return refusal(capsys, "--model", str(model), "--train", data, "--output", str(tmp_path / "run"))

    assert "no config.json" in complaint(files)
    small = tiny_runs.tiny_t5(tmp_path / "small", vocab_size=300)
    assert "the tokenizer has 384 ids, but the embedding only 300 rows" in complaint(small)
    cut = tiny_runs.tiny_t5(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights}: cannot be read" in complaint(cut)
    other = tiny_runs.tiny_t5(tmp_path / "other")
    (other / "tokenizer_config.json").unlink()
    assert str(other) in complaint(other)
    short = tiny_runs.tiny_gpt2(tmp_path / "short", n_positions=20)
    assert "the model has only 20 positions (n_positions): lower --max-source-length" in complaint(short)
    assert not (tmp_path / "run").exists()


def test_padding_beyond_the_positions_is_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, data = str(files / "gpt2"), str(files / "qa.jsonl")
    line = refusal(
        capsys, "--model", model, "--train", data, "--output", str(tmp_path / "x"), "--pad-to-max-length"
    )
    assert "an example of 640 tokens, but the model has only 128 positions" in line


def test_the_output_of_another_run(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    train(files, run, "--max-steps", "1")
    given = ("--model", str(files / "t5"), "--train", str(files / "qa.jsonl"), "--output")
    line = refusal(capsys, *given, str(run))
    assert f"{run} already holds a run: --resume continues it, --overwrite replaces it" in line
    assert "exists and holds no run: choose another --output" in refusal(
        capsys, *given, str(run / "metrics.jsonl")
    )
    assert "exists and holds no run" in refusal(capsys, *given, str(tmp_path), "--overwrite")
    assert train(files, run, "--max-steps", "2", "--overwrite") == 0
    assert tiny_runs.metrics(run)[-1]["step"] == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "x"),
        ("model", "nowhere/t5"),
        ("train", "nowhere.jsonl"),
        ("valid", "nowhere.jsonl"),
        ("freeze", ["nothing"]),
        ("precision", "fp8"),
    ],
)
def test_a_wrong_option_of_a_resumed_run_names_its_file(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, key: str, value: object
) -> None:
    run = tmp_path / "run"
    train(files, run, "--max-steps", "1")
    config = run / "train_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    assert str(config) in refusal(capsys, "--output", str(run), "--resume")


def test_the_default_run_outside_a_clone(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(run_files, "CLONE", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys)
    assert "the default of --model, is not here: it comes with a clone of the project" in line
    assert "Pass --model, --train and --output" in line
    assert "the default of --train, is not here" in refusal(capsys, "--model", str(files / "t5"))
    assert "--task text2text has no default for --train" in refusal(
        capsys, "--task", "text2text", "--model", str(files / "t5")
    )


def test_a_model_without_start_token_gets_the_published_one(files: Path, tmp_path: Path) -> None:
    tiny_runs.tiny_t5(tmp_path / "bare", decoder_start_token_id=None)
    train(tmp_path, tmp_path / "run", "--max-steps", "1", model="bare", data=str(files / "qa.jsonl"))
    assert json.loads((tmp_path / "run" / "last" / "config.json").read_text())["decoder_start_token_id"] == 0


def test_overwriting_the_run_that_the_model_comes_from(files: Path, tmp_path: Path) -> None:
    """The weights are memory-mapped from a file that is deleted."""
    run = tmp_path / "run"
    train(files, run, "--max-steps", "1")
    save_model(load_model(run / "last"), tmp_path / "copy")
    options = ("--overwrite", "--max-steps", "1", "--lr", "0")
    train(tmp_path, run, *options, model="run/last", data=str(files / "qa.jsonl"))
    before, after = (
        load_file(tmp_path / "copy" / "model.safetensors"),
        load_file(run / "last" / "model.safetensors"),
    )
    torch.testing.assert_close(after, before, rtol=0, atol=0)
