"""A side's process: `python -m ftcore.benchmark.worker ORDER`, an `Order` as JSON.

It prepares the order and says so, then does one round for each line that it reads, and at the end says how
much memory it took. What it says is one JSON object a line; what libraries print goes to standard error.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ftcore.benchmark.order import Order
from ftcore.benchmark.inputs import read_batches, read_prompts


def main() -> int:
    order = Order.from_json(sys.argv[1])
    tell = _private_stdout()
    try:
        for message in answers(order, sys.stdin):
            tell(message)
    except Exception as error:  # whatever a side fails of, out of memory say, is a cell of the table
        lines = str(error).strip().splitlines()
        tell({"error": f"{type(error).__name__}: {lines[0] if lines else ''}"})
        return 1
    return 0


def _private_stdout() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for what this process says; prints of others go to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda message: print(json.dumps(message), file=stream, flush=True)


def answers(order: Order, lines: Any) -> Iterator[dict[str, Any]]:
    """What the process says, message by message; `lines` yields one for each round that is asked for."""
    side: Any = import_module(f"ftcore.benchmark.side_{order.side}")
    if reason := side.cannot(order):
        yield {"cannot": reason, "version": side.version}
        return
    torch.set_num_threads(order.threads)
    work = prepare(side, order)
    yield {"ready": True, "version": side.version}
    if work is None:
        return
    for _ in lines:
        gc.collect()
        synchronize(order.device)
        start = time.perf_counter()
        result = work()
        synchronize(order.device)
        yield {"seconds": time.perf_counter() - start, "result": result}
    yield {"peak_bytes": peak_bytes(order.device)}


def prepare(side: Any, order: Order) -> Callable[[], Any] | None:
    """What a round is; None where there is nothing to do but the preparation."""
    if order.case.kind == "convert":
        side.convert(order)
        return None
    if order.case.kind in ("load", "ready"):

        def load() -> None:
            model = side.load(order)
            if order.case.kind == "ready":
                side.ready(model, order)

        return load
    if order.case.kind == "generate":
        prompts = read_prompts(Path(order.inputs)).to(order.device)
        model = side.ready(side.load(order), order)

        def write() -> list[list[int]]:
            with torch.inference_mode():
                return side.write(model, prompts, order.case)

        return write
    batches = read_batches(Path(order.inputs), padded=order.padded)
    step = side.trainer(order)
    return lambda: [step(batch) for batch in batches]


def synchronize(device: str) -> None:
    """CUDA computes in the background: wait for it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: str) -> int:
    """The most memory that this process has held: on CUDA what torch has allocated there, else its RAM."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # not getrusage: on Linux, its figure begins with that of the parent process
        with open("/proc/self/status", encoding="ascii") as status:
            [line] = [line for line in status if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
