"""Runs of `ftcore.train` in two processes, which are forked: importing torch again would take seconds."""

import os
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch.nn.functional as F
from torch import Tensor
from torch.distributed.launcher import LaunchConfig, elastic_launch

import ftcore.train
from ftcore.cli import parse
from ftcore.models import Model
from ftcore.training import Callback, Run, TokenLoss, TrainOptions, prepare, target_logits, train
from ftcore.training.metrics_log import Meter

HAS_FAST = find_spec("ftcore.fast") is not None
if HAS_FAST:
    from ftcore.fast import compiler

    compile_separately = compiler.compile_separately


def is_last_rank() -> bool:
    return os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)


def traced(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Substitute for `compile_separately`: traces only, since compiling to C++ takes long."""
    return compile_separately(forward, backend="eager")


class Recorder(Callback):
    """Records the calls of a process; that of the last rank stops the run after two steps."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        self.calls.append(metrics)
        if is_last_rank() and metrics["step"] == 2:
            run.stop("a test")

    def on_validate(self, run: Run, metrics: dict[str, float]) -> None:
        self.calls.append(metrics)

    def on_save(self, run: Run, directory: Path) -> None:
        self.calls.append(directory.name)


def squares(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> TokenLoss:
    """A loss of one's own: squared cross-entropies."""
    logits, labels = target_logits(model, batch)
    total = F.cross_entropy(logits, labels, reduction="none").square().sum()
    return TokenLoss(total, (logits.argmax(-1) == labels).sum(), len(labels))


def own_parts(words: list[str]) -> dict[str, Any]:
    """A run from Python with a loss of its own; the calls of its callback."""
    recorder, options = Recorder(), parse(TrainOptions, words, command="ftcore.train")
    with (
        redirect_stdout(StringIO()) as output,
        redirect_stderr(StringIO()) as errors,
        prepare(options, loss=squares) as run,
    ):
        train(run, [recorder])
    return {"status": 0, "output": output.getvalue(), "errors": errors.getvalue(), "calls": recorder.calls}


def run(words: list[str], stop_at: int | None = None, own: bool = False) -> dict[str, Any]:
    """One run; at step `stop_at`, the last rank alone gets SIGTERM. With `own`, one of `own_parts`."""
    if own:
        return own_parts(words)
    add, steps = Meter.add, 0

    def add_and_stop(self: Meter, *arguments: Any) -> None:
        nonlocal steps
        add(self, *arguments)
        steps += 1
        if steps == stop_at and is_last_rank():
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


def run_all(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    signal.alarm(400)  # ends a collective that waits for a rank in vain
    return [run(**row) for row in rows]


def train_with_pid(words: list[str], folder: Path) -> int:
    """A run in a process that others find in the file pid-RANK."""
    (folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    return ftcore.train.main(words)


def launch(work: Callable[..., Any], *arguments: Any) -> dict[int, Any]:
    """Call `work` in two processes without CUDA, as torchrun does; returns rank -> result."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config = LaunchConfig(1, 1, 2, run_id=str(uuid4()), max_restarts=0, start_method="fork")
    config.rdzv_backend, config.rdzv_endpoint = "c10d", "localhost:0"  # a free port
    return elastic_launch(config, work)(*arguments)


def launch_with_log(log: Path, *arguments: Any) -> None:
    """`launch` with standard output and error in a file."""
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        launch(*arguments)
