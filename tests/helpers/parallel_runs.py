"""Several runs of python -m ftcore.train, one after another in the same torchrun processes.

    torchrun --nproc-per-node 2 parallel_runs.py FOLDER

FOLDER/runs.json is a list of runs: the `words` of the command line and, optionally, a step to `stop_at`, at
which the last process alone gets SIGTERM; with `own`, a run of `own_parts`. Each process writes its results
to FOLDER/process-RANK.json.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import ftcore.train
from ftcore.cli import parse
from ftcore.models import Model
from ftcore.training import Callback, Run, TokenLoss, TrainOptions, curves, prepare, target_logits, train
from ftcore.training.metrics_log import Meter

HAS_FAST = find_spec("ftcore.fast") is not None
if HAS_FAST:
    from ftcore.fast import compiler

    compile_separately = compiler.compile_separately

RANK, COUNT = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def traced(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Substitute for `compile_separately`: traces only, since compiling to C++ takes long."""
    return compile_separately(forward, backend="eager")


class Recorder(Callback):
    """Records the calls of a process; that of the last rank stops the run after two steps."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        self.told.append(metrics)
        if RANK == COUNT - 1 and metrics["step"] == 2:
            run.stop("a test")

    def on_validate(self, run: Run, metrics: dict[str, float]) -> None:
        self.told.append(metrics)

    def on_save(self, run: Run, directory: Path) -> None:
        self.told.append(directory.name)


def squares(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> TokenLoss:
    """A loss of one's own: squared cross-entropies."""
    logits, labels = target_logits(model, batch)
    total = F.cross_entropy(logits, labels, reduction="none").square().sum()
    return TokenLoss(total, (logits.argmax(-1) == labels).sum(), len(labels))


def own_parts(words: list[str]) -> dict[str, Any]:
    """A run from Python with a loss of its own; what its callback was told."""
    recorder, options = Recorder(), parse(TrainOptions, words, command="ftcore.train")
    with (
        redirect_stdout(StringIO()) as output,
        redirect_stderr(StringIO()) as errors,
        prepare(options, loss=squares) as run,
    ):
        train(run, [recorder])
    return {"status": 0, "output": output.getvalue(), "errors": errors.getvalue(), "told": recorder.told}


def run(words: list[str], stop_at: int | None = None, own: bool = False) -> dict[str, Any]:
    if own:
        return own_parts(words)
    add, steps = Meter.add, 0

    def add_and_stop(self: Meter, *arguments: Any) -> None:
        nonlocal steps
        add(self, *arguments)
        steps += 1
        if steps == stop_at and RANK == COUNT - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Meter.add = add_and_stop  # type: ignore[method-assign]
    try:
        with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
            status = ftcore.train.main(words)
    except SystemExit as ending:
        status = int(ending.code or 0)
    finally:
        Meter.add = add  # type: ignore[method-assign]
    return {"status": status, "output": output.getvalue(), "errors": errors.getvalue()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    curves.draw_curves = lambda metrics: None
    if HAS_FAST:
        compiler.compile_separately = traced
    results = [run(**row) for row in json.loads((folder / "runs.json").read_text())]
    (folder / f"process-{RANK}.json").write_text(json.dumps(results))
