"""Runs of two processes equal those of one, also when stopped and resumed by another number of processes.

One launch of two processes makes all runs that finish normally (parallel_runs.py). Tests that kill a
process or stop the launcher start their own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ftcore.train
from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.checkpoints.files import directory_lock
from ftcore.models import GPT2LMHeadModel
from ftcore.training import distributed
from ftcore.training.metrics_log import Meter
from tests.helpers import parallel_runs, tiny_runs
from tests.helpers.case_runner import in_child

FAMILIES = {"t5": tiny_runs.tiny_t5, "gpt2": tiny_runs.tiny_gpt2}
MODES = ("ddp", "fsdp")
STOP = 4  # of 8 steps: in the middle of the second epoch

# Steps of 6 and 4 examples, targets of different lengths, and a micro-batch of 1 example for 2 processes.
COMMON = "--batch-size 3 --grad-accum 2 --eval-every 4 --log-every 4 --eval-answers 2 --max-target-length 20 "
COMMON += "--lr 0.01 --label-smoothing 0.1 --keep 1"
TWENTY, EIGHT = "--max-steps 20 --dropout 0", "--max-steps 8 --dropout 0"
VARIANTS = {  # name -> family, mode, options
    "lora": ("gpt2", "fsdp", "--lora-rank 1 --lora-targets all-linear"),  # A has one row, on one process
    "frozen": ("t5", "ddp", "--freeze encoder.block.0.layer.1 shared"),
    "frozen sharded": ("t5", "fsdp", "--freeze encoder.block.0 decoder.block.0.layer.0"),
    "recomputed": ("t5", "fsdp", "--gradient-checkpointing"),
    "recomputed copies": ("t5", "ddp", "--gradient-checkpointing"),
    "compiled": ("gpt2", "ddp", "--compile"),
    "compiled shards": ("t5", "fsdp", "--compile --gradient-checkpointing"),
    "relative": ("t5", "fsdp", "--relative-steps"),
    # Steps are relative to the norm of a whole bias, whose part for keys is rounding noise: use small ones.
    "adafactor": ("gpt2", "ddp", "--optimizer adafactor --lr 0.001"),
    # Gradients of the new matrices are nearly 0 at first, and AdamW amplifies rounding: use small steps.
    "resized": ("gpt2", "fsdp", "--num-layers 2 --d-model 24 --lr 0.001"),
    "early stopping": ("gpt2", "fsdp", "--eval-every 1 --early-stopping 2 --lr 0"),  # the first is the best
    "one epoch": ("gpt2", "ddp", "--epochs 1 --save-every 2"),
    "blocks": ("gpt2", "ddp", "--task lm --train {text} --valid {other} --max-source-length 40"),
    "spans": ("t5", "fsdp", "--task span-corruption --train {text} --valid {other} --max-source-length 40"),
}

if not parallel_runs.HAS_FAST:
    VARIANTS = {name: variant for name, variant in VARIANTS.items() if "--compile" not in variant[2]}


class Bench:
    """Models and data, with runs in this process and runs planned for two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for family, build in FAMILIES.items():
            build(folder / family)
        tiny_runs.questions(folder / "train.jsonl", 16)
        tiny_runs.questions(folder / "valid.jsonl", 5, start=30)
        for name, count in (("text.txt", 90), ("other.txt", 30)):
            places = enumerate((tiny_runs.PLACES * 12)[:count])
            (folder / name).write_text("".join(f"{place} is number {n}. " for n, place in places))
        self.planned: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.results: list[list[dict[str, Any]]] = []

    def directory(self, name: str) -> Path:
        return self.folder / "runs" / name.replace(" ", "-")

    def words(self, name: str, family: str, options: str) -> list[str]:
        files = {"--train": self.folder / "train.jsonl", "--valid": self.folder / "valid.jsonl"}
        given = " ".join(f"{flag} {file}" for flag, file in files.items() if flag not in options)
        model = f"--model {self.folder / family} --output {self.directory(name)}"
        return f"{model} {given} {COMMON} {options}".split()

    def alone(self, name: str, family: str, options: str, stop_at: int | None = None) -> None:
        """Run in this process."""
        with stopping(stop_at):
            assert ftcore.train.main(self.words(name, family, options)) == 0

    def resume_alone(self, name: str, copy: str) -> int:
        shutil.copytree(self.directory(name), self.directory(copy))
        return ftcore.train.main(["--output", str(self.directory(copy)), "--resume"])

    def plan(self, name: str, words: list[str], stop_at: int | None = None, own: bool = False) -> None:
        """Add a run in two processes; `launch` starts all of them."""
        self.names.append(name)
        self.planned.append({"words": words, "stop_at": stop_at, "own": own})

    def plan_run(self, name: str, family: str, options: str, stop_at: int | None = None) -> None:
        self.plan(name, self.words(name, family, options), stop_at)

    def launch(self) -> None:
        launch, run_all = parallel_runs.launch, parallel_runs.run_all
        status, lines = in_child(lambda: launch(run_all, self.planned).items())
        assert status == 0
        self.results = [results for _, results in sorted(map(json.loads, lines))]

    def result(self, name: str, process: int = 0) -> dict[str, Any]:
        return self.results[process][self.names.index(name)]

    def weights(self, name: str, directory: str = "last") -> dict[str, Tensor]:
        return load_file(self.directory(name) / directory / "model.safetensors")

    def state(self, name: str) -> dict[str, Any]:
        return torch.load(self.directory(name) / "state" / "training_state.pt", weights_only=True)


class stopping:  # noqa: N801  (used like a function)
    """Send SIGTERM to this process after a step of its run."""

    def __init__(self, step: int | None) -> None:
        self.step, self.taken = step, 0

    def __enter__(self) -> None:
        self.add = add = Meter.add

        def add_and_stop(meter: Meter, *arguments: Any) -> None:
            add(meter, *arguments)
            self.taken += 1
            if self.taken == self.step:
                os.kill(os.getpid(), signal.SIGTERM)

        Meter.add = add_and_stop  # type: ignore[method-assign]

    def __exit__(self, *_: Any) -> None:
        Meter.add = self.add  # type: ignore[method-assign]


def tiny_overflow(directory: Path) -> None:
    """A GPT-2 that overflows at the token "Z" only."""
    model = load_model(tiny_runs.tiny_gpt2(directory, tie_word_embeddings=False))
    assert isinstance(model, GPT2LMHeadModel)
    with torch.no_grad():
        model.transformer.wte.weight[ord("Z")] = 3e38
    save_model(model, directory)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Without any run."""
    with pytest.MonkeyPatch.context() as patch:
        if parallel_runs.HAS_FAST:
            patch.setattr(parallel_runs.compiler, "compile_separately", parallel_runs.traced)
        yield Bench(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def bench(empty: Bench) -> Bench:
    """With all runs that finish normally."""
    bench, folder = empty, empty.folder
    for family in FAMILIES:
        bench.alone(f"{family} alone", family, TWENTY)
        for mode in MODES:
            bench.plan_run(f"{family} {mode}", family, f"{TWENTY} --parallel {mode}")
    for name, (family, mode, options) in VARIANTS.items():
        options = options.format(text=folder / "text.txt", other=folder / "other.txt")
        steps = "--dropout 0" if "--epochs" in options else EIGHT
        bench.alone(f"{name} alone", family, f"{steps} {options}")
        bench.plan_run(name, family, f"{steps} {options} --parallel {mode}")

    # Stopped with one number of processes and resumed with another, from copies of the stopped runs.
    bench.alone("whole", "t5", EIGHT)
    bench.alone("stopped alone", "t5", EIGHT, STOP)
    for mode in MODES:
        bench.plan_run(f"stopped {mode}", "t5", f"{EIGHT} --parallel {mode}", STOP)
        shutil.copytree(bench.directory("stopped alone"), bench.directory(f"alone to {mode}"))
        words = ["--output", str(bench.directory(f"alone to {mode}")), "--resume", "--parallel", mode]
        bench.plan(f"alone to {mode}", words)

    for mode in MODES:
        bench.plan(f"own {mode}", bench.words(f"own {mode}", "t5", f"{EIGHT} --parallel {mode}"), own=True)

    # With dropout each process has its own random state.
    for mode in MODES:
        bench.plan_run(f"dropout {mode}", "t5", f"--max-steps 8 --parallel {mode}")
        bench.plan_run(f"dropout stopped {mode}", "t5", f"--max-steps 8 --parallel {mode}", STOP)
        for name in ("refused", "again"):
            word = f"--output {bench.directory(f'dropout stopped {mode}')} --resume --parallel {mode}"
            seed = " --seed 4" if name == "refused" else ""
            bench.plan(f"dropout {name} {mode}", f"{word}{seed}".split())
    bench.plan_run("dropout to fsdp", "t5", "--max-steps 8", STOP)
    words = f"--output {bench.directory('dropout to fsdp')} --resume --parallel fsdp".split()
    bench.plan("dropout from ddp to fsdp", words)

    tiny_overflow(folder / "overflow")
    rows = [*(folder / "train.jsonl").read_text().splitlines()]
    rows[0] = '{"context": "Z is Zoe.", "question": "Z?", "answer": "Zoe"}'
    (folder / "overflow.jsonl").write_text("\n".join([*rows, ""]))
    for mode in MODES:
        options = f"{TWENTY} --save-every 1 --seed 2 --parallel {mode} --train {folder}/overflow.jsonl"
        bench.plan_run(f"overflow {mode}", "overflow", options)
        options = f"{TWENTY} --parallel {mode} --valid {folder}/overflow.jsonl"
        bench.plan_run(f"overflow in validation {mode}", "overflow", options)

    for flag in ("--check", "--dry-run"):
        bench.plan_run(flag, "t5", flag)
    bench.plan_run("no file", "t5", f"--train {folder}/nothing.jsonl")
    bench.plan_run("exists", "t5", "--output " + str(bench.directory("t5 alone")))
    bench.plan_run("typing error", "t5", "--parallel fdsp")
    bench.plan_run("in use", "t5", f"--output {folder}/in-use")
    (folder / "in-use").mkdir()
    with directory_lock(folder / "in-use", print):
        bench.launch()
    return bench


def differences(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference per tensor, relative to the largest absolute value or 1.

    GPT-2's key biases are left out: their gradient is rounding noise, so the optimizer moves them at random.
    """
    assert got.keys() == wanted.keys()
    found = {}
    for name, tensor in wanted.items():
        one, other = got[name].double(), tensor.double()
        if name.endswith("c_attn.bias"):
            one, other = (bias.view(3, -1)[::2] for bias in (one, other))
        found[name] = ((one - other).abs().max() / max(1, other.abs().max())).item()
    return found


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-6) -> None:
    worst = differences(got, wanted)
    assert max(worst.values()) <= bound, max(worst, key=lambda name: worst[name])


def assert_same_metrics(got: Path, wanted: Path) -> None:
    for one, other in zip(tiny_runs.metrics(got), tiny_runs.metrics(wanted), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


# --- the same run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_are_those_of_one_process(bench: Bench, family: str, mode: str) -> None:
    got, wanted = f"{family} {mode}", f"{family} alone"
    assert bench.result(got)["status"] == 0, bench.result(got)
    for directory in ("last", "best"):
        assert_close(bench.weights(got, directory), bench.weights(wanted, directory))
    assert_same_metrics(bench.directory(got), bench.directory(wanted))
    predictions = (bench.directory(name) / "predictions.jsonl" for name in (got, wanted))
    assert next(predictions).read_text() == next(predictions).read_text()
    report = (bench.directory(got) / "report.html").read_text()
    assert f"torchrun --nproc-per-node 2 -m ftcore.train --parallel {mode}" in report
    load_model(bench.directory(got) / "last")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_one_process(bench: Bench, name: str) -> None:
    assert bench.result(name)["status"] == 0, bench.result(name)
    assert_close(bench.weights(name), bench.weights(f"{name} alone"))
    assert_same_metrics(bench.directory(name), bench.directory(f"{name} alone"))
    checkpoints = [path.name for path in sorted(bench.directory(name).glob("checkpoints/*"))]
    assert checkpoints == (["step-000002"] if name == "one epoch" else [])


@pytest.mark.parametrize("mode", MODES)
def test_own_parts_equal_one_process(bench: Bench, mode: str) -> None:
    """Callbacks are called on each process, with the same metrics; one of them stops all."""
    alone = parallel_runs.own_parts(bench.words(f"own alone {mode}", "t5", EIGHT))["calls"]
    for process in (0, 1):
        calls = bench.result(f"own {mode}", process)["calls"]
        for one, other in zip(calls, alone, strict=True):
            assert one == (pytest.approx(other, rel=1e-5) if isinstance(other, dict) else other)
    assert [line["step"] for line in alone if isinstance(line, dict)] == [0, 1, 2] and alone[-1] == "last"
    assert_close(bench.weights(f"own {mode}"), bench.weights(f"own alone {mode}"))


def test_only_the_first_process_prints(bench: Bench) -> None:
    for number, name in enumerate(bench.names):
        other = bench.results[1][number]
        assert (other["output"], other["errors"]) == ("", ""), name
        assert other["status"] == bench.result(name)["status"], name
    output = bench.result("t5 ddp")["output"]
    assert "processes  2, ddp" in output
    assert output.count("step 0: valid_loss") == 1


# --- stopped and resumed


def test_sigterm_to_one_process_stops_all_after_the_same_step(bench: Bench) -> None:
    for mode in MODES:
        name = f"stopped {mode}"
        assert bench.result(name)["status"] == 0
        output = bench.result(name)["output"]
        assert f"stopped after step {STOP} of 8 and saved; resume with:" in output
        command = f"torchrun --nproc-per-node 2 -m ftcore.train --parallel {mode} --output"
        assert f"{command} {bench.directory(name)} --resume" in output
        assert bench.state(name)["progress"]["step"] == STOP


def test_all_processes_stop_early_after_the_same_step(bench: Bench) -> None:
    output = bench.result("early stopping")["output"]
    assert "stopped after step 3 of 8 and saved: no improvement of best/ in the last 2 validations" in output
    assert bench.state("early stopping")["progress"]["step"] == 3


@pytest.mark.parametrize("mode", MODES)
def test_more_processes_resume(bench: Bench, mode: str) -> None:
    assert bench.result(f"alone to {mode}")["status"] == 0, bench.result(f"alone to {mode}")
    assert_close(bench.weights(f"alone to {mode}"), bench.weights("whole"))
    assert_same_metrics(bench.directory(f"alone to {mode}"), bench.directory("whole"))


@pytest.mark.parametrize("mode", MODES)
def test_fewer_processes_resume(bench: Bench, mode: str) -> None:
    assert bench.resume_alone(f"stopped {mode}", f"{mode} to alone") == 0
    assert_close(bench.weights(f"{mode} to alone"), bench.weights("whole"))
    assert_same_metrics(bench.directory(f"{mode} to alone"), bench.directory("whole"))
    files = {path.name for path in (bench.directory(f"{mode} to alone") / "state").iterdir()}
    assert files == {"training_state.pt"}


@pytest.mark.parametrize("mode", MODES)
def test_as_many_processes_resume_bit_for_bit(bench: Bench, mode: str) -> None:
    """With dropout: each restores its own random state."""
    assert bench.result(f"dropout again {mode}")["status"] == 0, bench.result(f"dropout again {mode}")
    assert_close(bench.weights(f"dropout stopped {mode}"), bench.weights(f"dropout {mode}"), bound=0)
    state = bench.state(f"dropout {mode}")
    [other] = state["random_of_others"]
    assert not torch.equal(state["random"]["cpu"], other["cpu"])


def test_as_many_processes_resume_in_another_mode(bench: Bench) -> None:
    assert bench.result("dropout from ddp to fsdp")["status"] == 0
    assert_close(bench.weights("dropout to fsdp"), bench.weights("dropout ddp"))


def test_dropout_requires_the_same_number_of_processes(bench: Bench, capsys: pytest.CaptureFixture) -> None:
    name = "dropout refused"
    shutil.copytree(bench.directory("dropout ddp"), bench.directory(name))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        ftcore.train.main(["--output", str(bench.directory(name)), "--resume"])
    assert ending.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "was trained by 2 processes, it cannot continue with 1 process" in line


@pytest.mark.parametrize("mode", MODES)
def test_another_seed_is_refused_once(bench: Bench, mode: str) -> None:
    result = bench.result(f"dropout refused {mode}")
    assert result["status"] == 2
    [line] = result["errors"].splitlines()
    assert "the run was started with --seed 0, it cannot continue with --seed 4" in line


def test_sharded_state_is_safetensors_and_has_one_directory(bench: Bench) -> None:
    state = bench.directory("t5 fsdp") / "state"
    [shards] = [path for path in state.iterdir() if path.is_dir()]
    assert bench.state("t5 fsdp")["shards"] == shards.name
    assert [path.suffix for path in shards.iterdir()] == [".safetensors", ".safetensors"]


def test_a_damaged_shard_is_refused(bench: Bench, capsys: pytest.CaptureFixture) -> None:
    name = "damaged"
    shutil.copytree(bench.directory("stopped fsdp"), bench.directory(name))
    shards = next((bench.directory(name) / "state").glob("sharded-*"))
    next(shards.iterdir()).unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        ftcore.train.main(["--output", str(bench.directory(name)), "--resume"])
    assert ending.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{shards}: damaged, the run cannot be resumed" in line


# --- failures


@pytest.mark.parametrize("mode", MODES)
def test_a_non_finite_loss_of_one_process_ends_all(bench: Bench, mode: str) -> None:
    name = f"overflow {mode}"
    assert bench.result(name)["status"] == 1
    [line] = [line for line in bench.result(name)["errors"].splitlines() if not line.startswith("warning")]
    assert "ftcore.train: the loss is nan in step" in line
    assert "first in the output of transformer.h.0.ln_1" in line
    run = bench.directory(name)
    assert f"the weights of the last save are at {run / 'last'}" in line
    load_model(run / "last")
    report = json.loads((run / "non_finite.json").read_text())
    assert any("Zoe" in row["input"] for row in report["examples"])
    assert len(report["examples"]) < 3  # of that process only


@pytest.mark.parametrize("mode", MODES)
def test_a_non_finite_validation_of_one_process_ends_all(bench: Bench, mode: str) -> None:
    result = bench.result(f"overflow in validation {mode}")
    [line] = [line for line in result["errors"].splitlines() if not line.startswith("warning")]
    assert result["status"] == 1
    assert line.startswith("ftcore.train: the loss is nan: first in the output of transformer.h.0.ln_1")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("--check", "--check is for one process: start it with python -m ftcore.train"),
        ("--dry-run", "--dry-run is for one process: start it with python -m ftcore.train"),
        ("no file", "nothing.jsonl"),
        ("exists", "already holds a run: --resume continues it, --overwrite replaces it"),
        ("typing error", "--parallel: invalid choice: 'fdsp'"),
        ("in use", "another process is at work on"),
    ],
)
def test_wrong_input_is_one_line_for_all_processes(bench: Bench, name: str, complaint: str) -> None:
    result = bench.result(name)
    assert result["status"] == 2
    [line] = result["errors"].splitlines()
    assert complaint in line
    assert not bench.directory(name).exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "--parallel fsdp is for processes that torchrun starts: torchrun --nproc-per-node 2 -m ftcore"),
        ("--optimizer adafactor", "--parallel fsdp contradicts --optimizer adafactor"),
        ("--precision fp16", "--parallel fsdp contradicts --precision fp16"),
    ],
)
def test_refused_without_torchrun(capsys: pytest.CaptureFixture, options: str, complaint: str) -> None:
    with pytest.raises(SystemExit) as ending:
        ftcore.train.main(["--parallel", "fsdp", *options.split()])
    assert ending.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line


# --- killed


@dataclass
class Launch:
    """A long run in two processes, after its first save."""

    launcher: ForkProcess
    folder: Path

    def kill(self, rank: int) -> None:
        os.kill(int((self.folder / f"pid-{rank}").read_text()), signal.SIGKILL)

    def log(self) -> str:
        """What all processes printed, once they have ended."""
        self.launcher.join(120)
        assert self.launcher.exitcode  # after a lost process or a signal
        return (self.folder / "log").read_text()


def start(empty: Bench, name: str, mode: str, folder: Path) -> Launch:
    options = f"--max-steps 100000 --dropout 0 --save-every 3 --eval-every 100000 --parallel {mode}"
    arguments = (folder / "log", parallel_runs.train_with_pid, empty.words(name, "t5", options), folder)
    launcher = get_context("fork").Process(target=parallel_runs.launch_with_log, args=arguments)
    launcher.start()
    while not (empty.directory(name) / "state" / "training_state.pt").exists():
        assert launcher.is_alive(), (folder / "log").read_text()
        time.sleep(0.05)
    return Launch(launcher, folder)


def assert_resumes(empty: Bench, name: str) -> None:
    """The saved state resumes in one process."""
    saved = empty.state(name)["progress"]["step"]
    with stopping(2):
        assert empty.resume_alone(name, f"{name} resumed") == 0
    assert empty.state(f"{name} resumed")["progress"]["step"] == saved + 2


@pytest.mark.parametrize(("mode", "rank"), [("ddp", 1), ("fsdp", 0)])
def test_a_killed_process_ends_the_others_with_the_resume_command(
    empty: Bench, tmp_path: Path, mode: str, rank: int
) -> None:
    name = f"killed {mode}"
    started = start(empty, name, mode, tmp_path)
    started.kill(rank)
    [line] = re.findall(r"ftcore\.train: (.*)", started.log())
    assert "another process of this run was lost in step" in line
    assert "resume from step" in line
    command = f"torchrun --nproc-per-node 2 -m ftcore.train --parallel {mode} --output"
    assert f"with {command} {empty.directory(name)} --resume" in line
    assert_resumes(empty, name)


@pytest.mark.parametrize(("mode", "number"), [("fsdp", "SIGTERM"), ("ddp", "SIGHUP")])
def test_a_stopped_launcher_saves(empty: Bench, tmp_path: Path, mode: str, number: str) -> None:
    name = f"stopped by {number}"
    started = start(empty, name, mode, tmp_path)
    os.kill(started.launcher.pid, signal.Signals[number])
    log, step = started.log(), empty.state(name)["progress"]["step"]
    assert f"stopped after step {step} of 100000 and saved; resume with:" in log, log
    assert_resumes(empty, name)


def test_the_command_under_torchrun(empty: Bench) -> None:
    """The tests above fork the processes that torchrun starts."""
    words = empty.words("command", "t5", "--max-steps 2 --parallel fsdp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ftcore.train", *words]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0 and finished.stdout.count("step 2") == 1, finished.stderr[-5000:]
    load_model(empty.directory("command") / "last")


# --- single functions


def test_rows_are_sharded_and_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for rows in ([], [1], [1, 2, 3, 4], list(range(9))):
        shards = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shards.append(distributed.shard(rows))
        monkeypatch.setattr(distributed, "all_gather", lambda rows, shards=shards: shards)
        assert distributed.all_gather_flat(shards[0]) == rows
