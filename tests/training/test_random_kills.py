"""Runs killed at 200 random moments, a study that is not part of the suite:

    python -m pytest tests/training/test_random_kills.py -m study -s

A run that saves every second step is killed and resumed until it ends; its results must equal those of an
uninterrupted run. Then the next run starts. The summary printed at the end is in docs/training.md.
test_resume.py kills before each change on disk instead; here the time is random, also during a write.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftcore.train
from ftcore.checkpoints.checkpoint import load_model
from ftcore.data import load_tokenizer
from tests.helpers import tiny_runs

KILLS, STEPS, SAVE_EVERY = 200, 60, 2
pytestmark = [
    pytest.mark.study,  # about five minutes
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child"),
]


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_killed_at_random_moments(family: str, tmp_path: Path) -> None:
    make_model = tiny_runs.tiny_t5 if family == "t5" else tiny_runs.tiny_gpt2
    data = tiny_runs.questions(tmp_path / "train.jsonl", 18)
    command = f"--model {make_model(tmp_path / 'model')} --train {data} --batch-size 3 --max-steps {STEPS} "
    command += "--lr 0.01 --eval-every 10 --log-every 1 --eval-answers 1 --max-target-length 20 "
    command += f"--save-every {SAVE_EVERY} --keep 3"
    rng, seen, lost = random.Random(7), Counter[str](), Counter[int]()

    whole = tmp_path / "whole"
    began = time.monotonic()
    assert finished_before(train(command, whole), seconds=600)
    seconds = time.monotonic() - began
    wanted = outcome(whole)

    number = 0
    while seen["kills"] < KILLS // 2:
        number += 1
        run = tmp_path / f"run{number}"
        act = train(command, run)
        while not finished_before(act, rng.uniform(0, seconds / 3)) and seen["kills"] < KILLS // 2:
            seen["kills"] += 1
            seen["during a write"] += any(run.rglob(".*.part"))
            act = check_and_resume(command, run, seen, lost)
        if seen["kills"] == KILLS // 2:
            assert finished_before(act, seconds=600)
        seen["runs bitwise equal to the uninterrupted one"] += 1
        torch.testing.assert_close(outcome(run), wanted, rtol=0, atol=0)

    print(f"\n{family}: a whole run takes {seconds:.1f} s; {dict(seen)}; steps lost: {sorted(lost.items())}")


def check_and_resume(command: str, run: Path, seen: Counter[str], lost: Counter[int]) -> Callable[[], object]:
    """Check the files that a kill has left; returns a function that resumes or restarts the run."""
    for directory in (run / "best", run / "last", *run.glob("checkpoints/step-*")):
        if directory.exists():  # unfinished ones have hidden names
            load_model(directory)
            load_tokenizer(directory)
            seen["checkpoints that loaded"] += 1
    state = run / "state" / "training_state.pt"
    if not state.exists():
        seen["before the first save"] += 1
        return train(command + (" --overwrite" if (run / "train_config.json").exists() else ""), run)
    saved = torch.load(state, weights_only=True)["progress"]["step"]
    # Every step is logged. The text after the last newline is empty or an incomplete line.
    *lines, _ = (run / "metrics.jsonl").read_text().split("\n")
    taken = max(json.loads(line)["step"] for line in lines)
    assert 0 <= taken - saved <= SAVE_EVERY
    lost[taken - saved] += 1
    return lambda: ftcore.train.main(["--output", str(run), "--resume"])


def train(command: str, run: Path) -> Callable[[], object]:
    return lambda: ftcore.train.main([*command.split(), "--output", str(run)])


def finished_before(act: Callable[[], object], seconds: float) -> bool:
    """Run `act` in a child process; False if it was killed after `seconds`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            status = 1 if act() else 0
        finally:
            os._exit(status)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "the run failed; its message is above"
    return True


def outcome(run: Path) -> dict[str, Any]:
    """The results of a run: weights, optimizer and random state, and the log without timings."""
    state = torch.load(run / "state" / "training_state.pt", weights_only=True)
    return {
        "weights": [load_file(run / place / "model.safetensors") for place in ("best", "last")],
        "optimizer": state["optimizer"]["state"],
        "random": state["random"]["cpu"],
        "progress": state["progress"],
        "metrics": tiny_runs.metrics(run),
    }
