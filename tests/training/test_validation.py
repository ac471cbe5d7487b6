"""Several files and validation sets, the metric that selects best/, and metrics that fail."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftcore.train
from ftcore.data import Record
from ftcore.metrics import MetricError
from ftcore.training.callbacks import Callback
from ftcore.training.options import TrainOptions
from ftcore.training.run import Progress, Run
from ftcore.training.run_files import find_files, valid_files
from ftcore.training.validation import check_metrics, find_best, improved
from tests.helpers import tiny_runs

BRIEF = ("--max-steps", "4", "--eval-every", "2", "--batch-size", "4", "--max-target-length", "12")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    for name, count, start in (("a", 7, 0), ("b", 6, 7), ("dev", 5, 20), ("test", 3, 30)):
        tiny_runs.questions(folder / f"{name}.jsonl", count, start)
    return folder


def train(files: Path, run: Path, *options: str) -> int:
    return ftcore.train.main(["--model", str(files / "t5"), "--output", str(run), *BRIEF, *options])


def refusal(capsys: pytest.CaptureFixture, files: Path, run: Path, *options: str, status: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        train(files, run, *options)
    assert ending.value.code == status
    return capsys.readouterr().err.splitlines()[-1]


def weights(run: Path) -> dict[str, list[float]]:
    return {name: weight.tolist() for name, weight in load_file(run / "last" / "model.safetensors").items()}


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in tiny_runs.metrics(run) if "train_loss" not in line]


class StopAfter(Callback):
    """Stop a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        if run.progress.step == self.step:
            run.stop("the test")


def stop_after(step: int, **options: Any) -> Path:
    """Train until a step and save. Returns the run's directory."""
    settings = {"max_steps": 4, "eval_every": 2, "batch_size": 4, "max_target_length": 12}
    with ftcore.train.prepare(TrainOptions(**settings | options)) as run:
        ftcore.train.train(run, [StopAfter(step)])
        return run.directory.path


# --- several files and sets


def test_each_set_has_the_metrics_that_it_has_alone(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = ["--train", str(files / "a.jsonl")]
    paths = {name: str(files / f"{name}.jsonl") for name in ("dev", "test")}
    train(files, tmp_path / "both", *data, "--valid", *(f"{name}={path}" for name, path in paths.items()))
    output = capsys.readouterr().out
    assert "7 examples for training, 5 for dev, 3 for test" in output and "answers    8 in each" in output
    both, rows = validations(tmp_path / "both"), []
    for name, path in paths.items():
        train(files, tmp_path / name, *data, "--valid", path)
        alone = validations(tmp_path / name)
        assert {"valid_loss", "token_accuracy", "perplexity", "exact_match", "f1"} < alone[0].keys()
        ours = [{key.removeprefix(f"{name}/"): line[key] for key in line} for line in both]
        assert [{key: line[key] for key in alone[0]} for line in ours] == alone
        assert weights(tmp_path / name) == weights(tmp_path / "both")
        assert f"step 2, {name}: valid_loss {alone[1]['valid_loss']:.4g}, " in output
        predictions = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        rows += [json.loads(line) | {"set": name} for line in predictions]
    assert set(both[0]) == {
        "step",
        "epoch",
        *(f"{name}/{key}" for name in paths for key in list(alone[0])[2:]),
    }
    predictions = (tmp_path / "both" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in predictions] == rows
    page = (tmp_path / "both" / "report.html").read_text()
    assert page.index("<h3>dev</h3>") < page.index("<h3>test</h3>") and "<dt>set</dt><dd>test</dd>" in page


def test_several_files_are_one_after_another(files: Path, tmp_path: Path) -> None:
    """By names or by a pattern, for training and for a validation set."""
    texts = [(files / name).read_text() for name in ("a.jsonl", "b.jsonl")]
    (tmp_path / "whole.jsonl").write_text("".join(texts))
    a, b, whole = str(files / "a.jsonl"), str(files / "b.jsonl"), str(tmp_path / "whole.jsonl")
    train(files, tmp_path / "1", "--train", whole, "--valid", f"dev={whole}")
    train(files, tmp_path / "2", "--train", a, b, "--valid", f"dev={a}", f"dev={b}")
    pattern = str(files / "[ab].jsonl")
    train(files, tmp_path / "3", "--train", pattern, "--valid", f"dev={pattern}")
    for number in ("2", "3"):
        assert validations(tmp_path / number) == validations(tmp_path / "1")
        assert weights(tmp_path / number) == weights(tmp_path / "1")
    saved = json.loads((tmp_path / "3" / "train_config.json").read_text())
    assert (saved["train"], saved["valid"]) == ([a, b], [f"dev={a}", f"dev={b}"])


@pytest.fixture
def parts(files: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a run on the files that match a pattern."""
    for name in ("a", "b"):
        (tmp_path / f"part-{name}.jsonl").write_text((files / f"{name}.jsonl").read_text())
    pattern = str(tmp_path / "part-*.jsonl")
    return {"model": str(files / "t5"), "train": pattern, "valid": [f"dev={pattern}"]}


def test_a_resumed_run_reads_the_files_that_it_was_started_with(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    whole = stop_after(4, output=str(tmp_path / "whole"), **parts)
    resumed = stop_after(1, output=str(tmp_path / "resumed"), **parts)
    tiny_runs.questions(tmp_path / "part-aa.jsonl", 9)
    assert ftcore.train.main(["--resume", "--output", str(resumed)]) == 0
    assert validations(resumed) == validations(whole) and weights(resumed) == weights(whole)


@pytest.mark.parametrize("option", ["train", "valid"])
def test_a_resumed_run_refuses_any_changed_file(
    parts: dict[str, Any], tmp_path: Path, option: str, capsys: pytest.CaptureFixture
) -> None:
    for other in ("train", "valid"):
        if other != option:
            parts[other] = str(Path(parts["model"]).parent / "dev.jsonl")
    run, second = stop_after(1, output=str(tmp_path / "run"), **parts), tmp_path / "part-b.jsonl"
    second.write_text(second.read_text().replace("Arlo", "Oslo"))
    line = refusal(capsys, tmp_path, run, "--resume", "--model", parts["model"])
    assert line.startswith(f"ftcore.train: {second}: the {option if option == 'train' else 'valid'}")
    assert "has changed since" in line


def test_a_run_of_an_older_version_with_single_files_resumes(files: Path, tmp_path: Path) -> None:
    """Its options are texts instead of lists, and it has no --metrics and --best."""
    options = {"model": str(files / "t5"), "train": str(files / "a.jsonl"), "valid": str(files / "dev.jsonl")}
    whole = stop_after(4, output=str(tmp_path / "whole"), **options)
    run = stop_after(1, output=str(tmp_path / "run"), **options)
    config, state = run / "train_config.json", run / "state" / "training_state.pt"
    saved = torch.load(state, weights_only=True)
    old = json.loads(config.read_text())
    for values in (old, saved["options"]):
        for name in ("metrics", "best"):
            del values[name]
        values |= {"train": options["train"], "valid": options["valid"]}
    del saved["progress"]["is_unvalidated"]
    config.write_text(json.dumps(old))
    torch.save(saved, state)
    assert ftcore.train.main(["--resume", "--output", str(run)]) == 0
    assert validations(run) == validations(whole) and weights(run) == weights(whole)


def test_names_of_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1.json").touch()
    assert valid_files([]) == {}
    assert valid_files(["a.json", "b.json"]) == {"": ["a.json", "b.json"]}
    assert valid_files(["dev=a", "test-2=b", "dev=c=d"]) == {"dev": ["a", "c=d"], "test-2": ["b"]}
    for path in ("lr=1.json", "runs/lr=0.1/a.json", "=a.json", "dev=", "a b=c"):  # no names
        assert valid_files([path]) == {"": [path]}
    with pytest.raises(
        ValueError, match=r"`valid` b.json has no name, but other files have: write NAME=FILE"
    ):
        valid_files(["dev=a.json", "b.json"])


def test_a_single_file_may_be_text() -> None:
    options = TrainOptions(train="a.json", valid="dev=b.json")
    assert (options.train, options.valid) == (["a.json"], ["dev=b.json"])


def test_a_pattern_without_files_is_refused(files: Path, tmp_path: Path) -> None:
    for train, valid in ((f"{tmp_path}/*.json", None), (str(files / "a.jsonl"), f"dev={tmp_path}/*.json")):
        options = TrainOptions(model="m", train=train, valid=valid)
        with pytest.raises(FileNotFoundError, match=re.escape(f"no file matches {tmp_path}/*.json")):
            find_files(options)


# --- --best


@pytest.fixture(scope="module")
def run(files: Path) -> Iterator[Run]:
    options = TrainOptions(
        model=str(files / "t5"), train=str(files / "a.jsonl"), output=str(files / "run"), max_steps=1
    )
    with ftcore.train.prepare(options) as run:
        yield run


def improvements(run: Run, best: str | None, sets: list[str], *metrics: dict[str, float]) -> list[bool]:
    """Whether each of these validations is the best so far."""
    loaders = dict.fromkeys(sets, run.train_loader)
    fresh = replace(run, options=replace(run.options, best=best), valid_loaders=loaders, progress=Progress())
    return [improved(fresh, line) for line in metrics]


def test_the_exact_match_selects_best_and_then_the_loss(run: Run) -> None:
    pairs = [(0.0, 3.0), (0.0, 2.0), (0.5, 2.5), (0.5, 2.5), (0.5, 2.4), (0.4, 1.0)]
    lines = [{"exact_match": match, "valid_loss": loss} for match, loss in pairs]
    expected = [True, True, True, False, True, False]  # of equal ones, the first
    assert improvements(run, None, [""], *lines) == expected
    two = [{f"dev/{key}": line[key] for key in line} | {"test/exact_match": 1.0} for line in lines]
    assert improvements(run, None, ["dev", "test"], *two) == expected
    losses = [{"valid_loss": loss} for loss in (2.0, 3.0, 1.0, 1.0)]
    assert improvements(run, None, [""], *losses) == [True, False, True, False]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ("f1", [True, True, False]),  # of the first set
        ("dev/f1", [True, True, False]),
        ("test/f1", [True, False, True]),
        ("test/f1:min", [True, True, False]),
        ("valid_loss", [True, False, True]),
        ("perplexity", [True, False, True]),
        ("test/valid_loss", [True, True, True]),
    ],
)
def test_best_names_the_metric_that_selects(run: Run, best: str, expected: list[bool]) -> None:
    values = {
        "dev/f1": (0.1, 0.5, 0.2),
        "dev/valid_loss": (2, 3, 1),
        "dev/perplexity": (8, 9, 7),
        "test/f1": (0.3, 0.1, 0.4),
        "test/valid_loss": (3, 2, 1),
    }
    lines = [{key: column[number] for key, column in values.items()} for number in range(3)]
    assert improvements(run, best, ["dev", "test"], *lines) == expected


@pytest.mark.parametrize("best", ["f2", "dev/f1", "f1:max", "test/", ""])
def test_an_unknown_metric_lists_those_there_are(best: str) -> None:
    with pytest.raises(
        MetricError, match=f"`best` {best}: no such metric.*here are f1, valid_loss, and :min"
    ):
        find_best(best, ["f1", "valid_loss"])


def test_a_set_without_gold_answers_has_no_metrics_of_answers() -> None:
    records = {"dev": [Record("s", "t", ("t",))], "test": [Record("s", "t")]}
    sets: Any = {name: SimpleNamespace(records=found) for name, found in records.items()}
    options: Any = SimpleNamespace(metrics=None, eval_answers=2, best="dev/f1")
    check_metrics(options, sets)
    options.best = "test/f1"
    with pytest.raises(MetricError, match="dev/f1, test/valid_loss, test/token_accuracy, test/perple"):
        check_metrics(options, sets)


def test_best_is_checked_before_the_first_step(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = ["--train", str(files / "a.jsonl"), "--valid", f"dev={files / 'dev.jsonl'}"]
    line = refusal(capsys, files, tmp_path / "run", *data, "--best", "rougeL")
    names = "dev/valid_loss, dev/token_accuracy, dev/perplexity, dev/exact_match, dev/f1"
    assert f"--best rougeL: no such metric; there are {names}, and :min" in line
    assert not (tmp_path / "run").exists()
    assert train(files, tmp_path / "run", *data, "--metrics", "accuracy", "--best", "accuracy") == 0
    assert {"dev/valid_loss", "dev/accuracy"} < validations(tmp_path / "run")[0].keys()
    assert "dev/f1" not in validations(tmp_path / "run")[0]


# --- metrics that fail


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module whose metric fails while the file `fail` exists; `calls` counts its calls."""
    text = """
        from pathlib import Path
        calls = 0

        def size(predictions, references):
            global calls
            calls += 1
            if Path("fail").exists() and calls >= int(Path("fail").read_text()):
                raise KeyError("lost")
            return {"size": len(predictions)}
        """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("sizes.py").write_text("\n".join(line[8:] for line in text.splitlines()))
    yield tmp_path
    sys.modules.pop("sizes", None)


@pytest.mark.parametrize("step", [2, 4])
def test_a_metric_that_fails_does_not_lose_the_run(
    files: Path, own: Path, step: int, capsys: pytest.CaptureFixture
) -> None:
    """It is saved; the validation is repeated when it is resumed, also after the last step."""
    data = ["--train", str(files / "a.jsonl"), "--valid", str(files / "dev.jsonl")]
    data += ["--metrics", "sizes:size,f1", "--best", "size"]
    assert train(files, own / "whole", *data) == 0
    calls = 4 + 2  # in that run, and in this one before its first step
    Path("fail").write_text(str(calls + step // 2))
    line = refusal(capsys, files, own / "run", *data, status=1)
    assert "--metrics sizes:size: KeyError: 'lost'" in line and "sizes.py, line 9)" in line
    assert f"; saved after step {step}, resume with python -m ftcore.train --output" in line
    assert [line["step"] for line in validations(own / "run")] == list(range(0, step, 2))
    Path("fail").unlink()
    assert ftcore.train.main(["--resume", "--output", str(own / "run")]) == 0
    assert validations(own / "run") == validations(own / "whole")
    assert weights(own / "run") == weights(own / "whole")
    best = [load_file(own / run / "best" / "model.safetensors") for run in ("run", "whole")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])


def test_a_metric_is_tried_before_the_first_step(
    files: Path, own: Path, capsys: pytest.CaptureFixture
) -> None:
    data = ["--train", str(files / "a.jsonl"), "--metrics", "sizes:size"]
    Path("fail").write_text("1")
    assert "--metrics sizes:size: KeyError: 'lost'" in refusal(capsys, files, own / "run", *data)
    assert not (own / "run").exists()
    Path("fail").write_text("3")  # in the validation of the untrained model
    assert "KeyError: 'lost'" in refusal(capsys, files, own / "run", *data, status=1)


def test_metrics_of_answers_need_answers(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gpt2 = tiny_runs.tiny_gpt2(tmp_path / "gpt2")
    (tmp_path / "emotions.txt").write_text("I laugh;joy\nI cry;sadness\nI hide;fear\n")
    options = ["--model", str(gpt2), "--task", "emotion", "--train", str(tmp_path / "emotions.txt")]
    line = refusal(capsys, files, tmp_path / "run", *options, "--metrics", "accuracy")
    assert "--metrics accuracy: the examples have no gold answers, which these metrics need" in line
    line = refusal(capsys, files, tmp_path / "run", "--metrics", "f1", "--eval-answers", "0")
    assert "--metrics contradicts --eval-answers 0" in line
    assert train(files, tmp_path / "run", *options) == 0  # by default, metrics of answers where there are any
