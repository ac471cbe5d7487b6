"""python -m ftcore.tune: results, failures, interrupted and killed searches, and refused ones."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftcore.train
import ftcore.tune
from ftcore.checkpoints.checkpoint import load_model
from ftcore.checkpoints.files import directory_lock
from ftcore.cli import parse
from ftcore.training.options import TrainOptions
from ftcore.tune import main
from tests.helpers import tiny_runs
from tests.helpers.resumed_runs import at_step

pytest.importorskip("optuna")

QUICK = (
    "--batch-size 4 --max-target-length 20 --max-steps 4 --eval-every 2 --eval-answers 0 --valid-share 0.2"
)
SEARCH = "--search lr=1e-3..1e-1 dropout=0..0.3 batch_size=2,4 --trials 3"
HALVED = f"{SEARCH} --halving 2 --eval-every 1"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data of all tests here, read only."""
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    tiny_runs.questions(folder / "qa.jsonl", 10)
    return folder


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftcore.tune, "save_picture", lambda *_: False)


def tune(files: Path, output: Path, options: str = SEARCH) -> int:
    given = f"--model {files / 't5'} --train {files / 'qa.jsonl'} --output {output} {QUICK}"
    return main([*given.split(), *options.split()])


def resume(output: Path, options: str = "") -> int:
    return main(["--output", str(output), "--resume", *options.split()])


def rows(output: Path) -> list[dict[str, str]]:
    """Rows of trials.csv, without the time."""
    with (output / "trials.csv").open(newline="") as file:
        return [
            {name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)
        ]


def refusal(capsys: pytest.CaptureFixture, act: Callable[[], Any], status: int = 2) -> str:
    """The error message of a command that exits with `status`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        act()
    assert ending.value.code == status
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("ftcore.tune: ")
    return line


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted search."""
    output = tmp_path_factory.mktemp("whole") / "tune"
    assert tune(files, output) == 0
    return output


# Results


def test_only_the_best_trial_keeps_its_weights(whole: Path) -> None:
    table = rows(whole)
    assert [row["state"] for row in table] == ["complete"] * 3
    losses = [float(row["valid_loss"]) for row in table]
    assert losses == sorted(losses) and len(set(losses)) == 3
    assert {int(row["trial"]) for row in table} == {1, 2, 3}
    for row in table:
        run = whole / "trials" / f"{int(row['trial']):03d}"
        metrics = [line for line in tiny_runs.metrics(run) if line["step"] == int(row["best_step"])]
        assert any(line.get("valid_loss") == float(row["valid_loss"]) for line in metrics)
        saved = json.loads((run / "train_config.json").read_text())
        assert [str(saved[name]) for name in ("lr", "dropout", "batch_size")] == [
            row["lr"],
            row["dropout"],
            row["batch_size"],
        ]
        has_weights = {path.parent.name for path in run.rglob("model.safetensors")}
        assert has_weights == ({"best", "last"} if row is table[0] else set())
        assert (run / "state").exists() == (row is table[0])
    load_model(whole / "trials" / f"{int(table[0]['trial']):03d}" / "best")


def test_the_printed_command_repeats_the_best_trial_exactly(
    files: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (whole / "trials.csv").read_bytes()
    (whole / "trials.csv").unlink()
    assert resume(whole) == 0  # no trial is left: prints the results again
    assert (whole / "trials.csv").read_bytes() == before
    output = capsys.readouterr().out
    [line] = [line for line in output.splitlines() if "python -m ftcore.train" in line]
    words = shlex.split(line)
    given = words[words.index("ftcore.train") + 1 :]
    assert ftcore.train.main([*given, "--output", str(tmp_path / "run")]) == 0
    [winner] = (whole / "trials").glob("*/best")
    weights, wanted = (load_file(best / "model.safetensors") for best in (tmp_path / "run" / "best", winner))
    torch.testing.assert_close(weights, wanted, rtol=0, atol=0)
    saved = json.loads((winner.parent / "train_config.json").read_text())
    again = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert saved | {"output": ""} == again | {"output": ""}
    assert parse(TrainOptions, given, command="x").output is None
    head, *table = [line for line in output.splitlines() if line.startswith(("trial  ", "    "))][-4:]
    assert head.split()[:5] == ["trial", "state", "lr", "dropout", "batch_size"]
    assert [row.split()[0] for row in table] == [row["trial"] for row in rows(whole)]


def test_more_trials_extend_a_search(files: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "tune"
    assert tune(files, output, SEARCH.replace("--trials 3", "--trials 2")) == 0
    assert len(rows(output)) == 2
    assert resume(output, "--trials 3") == 0
    assert rows(output) == rows(whole)
    assert resume(output, "--trials 1") == 0  # nothing is left to do, and no result is lost
    assert rows(output) == rows(whole)
    assert tune(files, output, f"{SEARCH} --seed 1 --trials 1 --overwrite") == 0
    [row] = rows(output)
    assert row["lr"] not in {row["lr"] for row in rows(whole)}
    assert sorted(path.name for path in (output / "trials").iterdir()) == ["001"]


def test_bad_trials_are_pruned(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All learning rates but one are too small."""
    options = "--search lr=0.03,1e-9,1e-8,1e-7 --halving 2 --eval-every 1"
    assert tune(files, tmp_path / "tune", options) == 0
    best, *others = rows(tmp_path / "tune")
    assert (best["lr"], best["state"], best["steps"]) == ("0.03", "complete", "4")
    assert len(others) == 3  # of the default of 20: there are no more settings
    after = [row for row in others if int(row["trial"]) > int(best["trial"])]
    assert after and all((row["state"], row["steps"]) == ("pruned", "1") for row in after)
    assert "pruned: lr 1e-0" in capsys.readouterr().out


def test_a_trial_that_stops_early_is_complete(files: Path, tmp_path: Path) -> None:
    """Without an improvement after the first step."""
    options = "--search dropout=0..0.3 --trials 2 --lr 0 --eval-every 1 --early-stopping 1"
    assert tune(files, tmp_path / "search", options) == 0
    assert [(row["state"], row["steps"]) for row in rows(tmp_path / "search")] == [("complete", "2")] * 2


def test_a_failed_trial_is_recorded_and_the_search_continues(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune(files, tmp_path / "a", "--search lr=1e30,0.01 --clip-norm 0 --warmup 0") == 0
    table = rows(tmp_path / "a")
    assert [(row["lr"], row["state"]) for row in table] == [("0.01", "complete"), ("1e+30", "failed")]
    assert "is not finite" in table[1]["error"] or "is nan" in table[1]["error"]
    assert not list((tmp_path / "a").glob(f"trials/*{table[1]['trial']}/**/model.safetensors"))

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(ftcore.tune, "train", out_of_memory)
    capsys.readouterr()
    assert tune(files, tmp_path / "b", "--search lr=0.1,0.01") == 0
    output = capsys.readouterr().out
    assert "failed: lr 0.1, steps 0, seconds" in output
    assert "error CUDA out of memory. Tried to allocate" in output
    assert [row["state"] for row in rows(tmp_path / "b")] == ["failed", "failed"]
    assert "python -m ftcore.train" not in output  # no best trial


def test_a_bug_is_not_a_failed_trial(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ftcore.tune, "train", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        tune(files, tmp_path / "tune")


def test_search_of_model_sizes(files: Path, tmp_path: Path) -> None:
    assert tune(files, tmp_path / "tune", "--search num_layers=1,2 --max-steps 1") == 0
    assert {row["num_layers"] for row in rows(tmp_path / "tune")} == {"1", "2"}


def test_picture(files: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.undo()
    assert resume(whole) == 0
    assert (whole / "trials.png").read_bytes().startswith(b"\x89PNG")


# Interrupted and killed


@pytest.mark.parametrize(("step", "ended"), [(1, 0), (7, 1), (8, 2)])  # over all trials, of 4 steps each
def test_interrupted_and_resumed(
    files: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, step: int, ended: int
) -> None:
    output = tmp_path / "tune"
    patch = at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert tune(files, output) == 0
    finally:
        patch.undo()
    printed = capsys.readouterr().out
    assert f"stopped after {ended} of 3 trials; resume with:" in printed
    assert f"python -m ftcore.tune --output {output} --resume" in printed
    assert resume(output) == 0
    assert rows(output) == rows(whole)


def in_a_child(act: Callable[[], Any]) -> int:
    """Exit status of a forked child that calls `act`."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        act()
    finally:
        os._exit(0)


@pytest.fixture(scope="module")
def halved(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted search with successive halving."""
    output = tmp_path_factory.mktemp("halved") / "tune"
    assert tune(files, output, HALVED) == 0
    return output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
# Calls of fsync: before the first trial, in it, of its line in the journal, of the table, in the last trial.
@pytest.mark.parametrize("operation", [2, 25, 41, 42, 90])
def test_killed_and_resumed(files: Path, halved: Path, tmp_path: Path, operation: int) -> None:
    output, fsync, count = tmp_path / "tune", os.fsync, 0

    def killing(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def act() -> None:
        os.fsync = killing
        tune(files, output, HALVED)

    assert os.WIFSIGNALED(in_a_child(act))
    assert (resume(output) if (output / "tune_config.json").exists() else tune(files, output, HALVED)) == 0
    assert rows(output) == rows(halved)


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--search is missing, for example --search lr=1e-4..1e-2 batch_size=8,16,32"),
        ("--search bach_size=1,2", "'bach_size' cannot be searched, did you mean 'batch_size'?"),
        ("--search dropout=0..1", "--search dropout: --dropout is 1.0, expected from 0 to below 1"),
        ("--search lr=1,2 --trials 0", "--trials is 0, expected from 1 to below 10000"),
        ("--search lr=1,2 --trials 2147483647", "--trials is 2147483647, expected from 1 to below 10000"),
        ("--search lr=1,2 --halving 1", "--halving is 1, expected at least 2"),
        ("--search lr=1,2 --metric loss", "invalid choice: 'loss'"),
        ("--search lr=1,2 --check", "--check is about one run: python -m ftcore.train --check"),
        (
            "--search lr=1,2 --eval-answers 1 --metrics rouge --metric f1",
            "--metric f1 is not among --metrics rouge",
        ),
        ("--search lr=1,2 --dry-run", "--dry-run is about one run: python -m ftcore.train --dry-run"),
        ("--search lr=1,2 --trails 3", "did you mean '--trials'?"),
        ("--search num_heads=2,3 d_model=15,16 --model {gpt2}", "n_embd is 1"),
        (
            "--search optimizer=adamw,adafactor relative_steps=true,false",
            "--optimizer adafactor contradicts --no-relative-steps",
        ),
        ("--search lr=1,2 --train nowhere.jsonl", "nowhere.jsonl"),
        ("--search lr=1,2 --model ./nowhere", "nowhere"),
    ],
)
def test_refused_before_the_first_trial(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: str, message: str
) -> None:
    if "{gpt2}" in options:
        options = options.format(gpt2=tiny_runs.tiny_gpt2(tmp_path / "gpt2"))
    assert message in refusal(capsys, lambda: tune(files, tmp_path / "tune", options))
    assert not (tmp_path / "tune" / "trials.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--halving 3 --eval-every 4",
            "--halving compares intermediate validations, but these 4 steps have only one",
        ),
        ("--metric f1", "--metric f1 needs validation examples with answers, found none"),
    ],
)
def test_validations_that_cannot_be_compared(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: str, message: str
) -> None:
    assert message in refusal(capsys, lambda: tune(files, tmp_path / "tune", f"--search lr=1,2 {options}"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--search lr=1e-3..1 batch_size=2,4",
            "started with --search lr=1e-3..1e-1 dropout=0..0.3 batch_size=2,4",
        ),
        ("--max-steps 5", "started with --max-steps 4, it cannot continue with --max-steps 5"),
        ("--halving 3", "started without --halving, it cannot continue with --halving 3"),
        ("--seed 3", "started with --seed 0, it cannot continue with --seed 3"),
        ("--overwrite", "choose one"),
    ],
)
def test_a_search_is_not_resumed_with_other_options(
    whole: Path, capsys: pytest.CaptureFixture, options: str, message: str
) -> None:
    before = rows(whole)
    assert message in refusal(capsys, lambda: resume(whole, options))
    assert rows(whole) == before


def test_directories_that_are_not_free(
    files: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = refusal(capsys, lambda: tune(files, whole))
    assert f"{whole} already holds a search: --resume continues it, --overwrite replaces it" in line
    run = whole / "trials" / "001"
    assert f"{run} exists and holds no search" in refusal(capsys, lambda: tune(files, run))
    for _ in range(2):  # a search without results may be replaced
        message = refusal(capsys, lambda: tune(files, tmp_path / "new", f"{SEARCH} --train nowhere.jsonl"))
        assert "nowhere.jsonl" in message
    assert f"{tmp_path} holds no search to resume" in refusal(capsys, lambda: resume(tmp_path))


def test_a_second_process_is_refused(files: Path, whole: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("fcntl")
    with directory_lock(whole, print):
        line = refusal(capsys, lambda: resume(whole))
        assert line == refusal(capsys, lambda: tune(files, whole, f"{SEARCH} --overwrite"))
    assert f"another process is at work on {whole}" in line


def test_optuna_is_not_installed(files: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "from ftcore.tune import main\n"
        f"main('--model {files / 't5'} --train x --output {tmp_path / 'tune'} --search lr=1,2'.split())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("ftcore.tune: a search needs optuna, which is not installed: pip install optuna")
    assert not (tmp_path / "tune").exists()


def test_help_needs_neither_torch_nor_optuna() -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['optuna'] = None; "
        "sys.argv = ['tune', '--help']; runpy.run_module('ftcore.tune', run_name='__main__')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "--search NAME=RANGE" in shown.stdout and "--batch-size N" in shown.stdout
