"""Tiny runs of `python -m ftcore.train` that are stopped and resumed, and their results."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftcore.train import main
from ftcore.training.metrics_log import Meter
from tests.helpers import tiny_runs

STEPS = 8
FAMILIES = {"t5": tiny_runs.tiny_t5, "gpt2": tiny_runs.tiny_gpt2}


class Bench:
    """Runs of one family in new directories, and the results of an uninterrupted run."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        model = FAMILIES[family](folder / "model")
        data = tiny_runs.questions(folder / "train.jsonl", 18)
        self.command = f"--model {model} --train {data} --batch-size 3 --grad-accum 2 --max-steps {STEPS} "
        self.command += "--lr 0.01 --eval-every 4 --log-every 3 --eval-answers 1 --max-target-length 20 "
        uninterrupted = self.new_directory()
        assert self.train(uninterrupted) == 0
        self.wanted = outcome(uninterrupted)

    def new_directory(self) -> Path:
        self.runs += 1
        return self.folder / f"run{self.runs}"

    def stopped(self) -> Path:
        """A copy of a run that was stopped after step 2."""
        return Path(shutil.copytree(self._stopped, self.new_directory()))

    @cached_property
    def _stopped(self) -> Path:
        run = self.new_directory()
        stop_at(self, run, 2)
        return run

    def train(self, run: Path, options: str = "") -> int:
        return main([*self.command.split(), "--output", str(run), *options.split()])

    def resume(self, run: Path, options: str = "") -> int:
        return main(["--output", str(run), "--resume", *options.split()])


def outcome(run: Path) -> dict[str, Any]:
    """The results of a run: weights, optimizer and random state, and the log without timings."""
    state = torch.load(run / "state" / "training_state.pt", weights_only=True)
    return {
        "best": load_file(run / "best" / "model.safetensors"),
        "last": load_file(run / "last" / "model.safetensors"),
        "optimizer": state["optimizer"]["state"],
        "random": state["random"]["cpu"],
        "progress": state["progress"],
        "metrics": tiny_runs.metrics(run),
    }


def assert_same(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def at_step(step: int, act: Callable[[], object]) -> Any:
    """Call `act` inside the training loop, after this step."""
    patch, taken, add = pytest.MonkeyPatch(), 0, Meter.add

    def add_and_act(self: Meter, *arguments: Any) -> None:
        nonlocal taken
        add(self, *arguments)
        taken += 1
        if taken == step:
            act()

    patch.setattr(Meter, "add", add_and_act)
    return patch


def stop_at(bench: Bench, run: Path, step: int, options: str = "") -> None:
    patch = at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert bench.train(run, options) == 0
    finally:
        patch.undo()


def refusal(act: Callable[[], Any], capsys: pytest.CaptureFixture) -> str:
    """The error line of a refused command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        act()
    assert ending.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line
