"""Several runs of python -m ftcore.train, one after another in the same torchrun processes.

    torchrun --nproc-per-node 2 parallel_runs.py FOLDER

FOLDER/runs.json is a list of runs: the `words` of the command line and, optionally, a step to `stop_at`, at
which the last process alone gets SIGTERM. Each process writes its results to FOLDER/process-RANK.json.
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

import ftcore.train
from ftcore.training import curves
from ftcore.training.metrics_log import Meter

HAS_FAST = find_spec("ftcore.fast") is not None
if HAS_FAST:
    from ftcore.fast import compiler

    compile_separately = compiler.compile_separately

RANK, COUNT = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def traced(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Substitute for `compile_separately`: traces only, since compiling to C++ takes long."""
    return compile_separately(forward, backend="eager")


def run(words: list[str], stop_at: int | None = None) -> dict[str, Any]:
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
