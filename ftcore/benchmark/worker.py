"""Timing: each backend runs in its own process, and the processes take turns, round after round."""

import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ftcore.benchmark.backends import BACKENDS
from ftcore.benchmark.cases import Job
from ftcore.benchmark.inputs import random_prompts, read_batches


@dataclass
class Measurement:
    """One backend's results in one case."""

    seconds: list[float] = field(default_factory=list)  # per round
    output: Any = None  # token ids or losses of the warm-up round
    peak_bytes: int | None = None
    missing: str | None = None  # reason why there are no results


def measure(jobs: Sequence[Job], rounds: int) -> dict[str, Measurement]:
    """Alternate between the jobs for `rounds` timed rounds, after one warm-up round. Keys are backends."""
    results = {job.backend: Measurement() for job in jobs}
    spawn = multiprocessing.get_context("spawn")
    workers = {job.backend: ProcessPoolExecutor(1, spawn, initializer=initialize) for job in jobs}
    with ExitStack() as stack:
        for worker in workers.values():
            stack.enter_context(worker)

        def call(job: Job, function: Callable[..., Any], *arguments: Any) -> Any:
            """Run a function in the job's process. After an exception the job has no results and no turns."""
            if job.backend in workers:
                try:
                    return workers[job.backend].submit(function, *arguments).result()
                except Exception as error:  # a limitation of the library, or out of memory, for example
                    reason = (str(error).splitlines() or [""])[0]
                    if not isinstance(error, NotImplementedError):
                        reason = f"{type(error).__name__}: {reason}"
                    results[job.backend] = Measurement(missing=reason)
                    del workers[job.backend]
            return None

        for job in jobs:
            call(job, start, job)
        for number in range(rounds + 1):
            for job in jobs:
                if timed := call(job, run_round, job.device):
                    seconds, output = timed
                    if number == 0:
                        results[job.backend].output = output
                    else:
                        results[job.backend].seconds.append(seconds)
        for job in jobs:
            results[job.backend].peak_bytes = call(job, peak_bytes, job.device)
    return results


# In a worker process

_work: Callable[[], Any]  # what a round times


def initialize() -> None:
    """Discard the libraries' output, which would mix with the table, and exit if the parent is killed."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def start(job: Job) -> None:
    """Prepare a job in this process, with its number of threads."""
    global _work
    torch.set_num_threads(job.threads)
    _work = prepare(job)


def prepare(job: Job) -> Callable[[], Any]:
    """Do what a job does once, and return what its rounds do."""
    backend, kind = BACKENDS[job.backend](job), job.case.kind
    if kind == "convert":
        return backend.convert
    if kind == "load":
        return backend.load
    if kind == "ready":
        return lambda: backend.prepare(backend.load())
    if kind == "generate":
        prompts = random_prompts(job.case, job.vocab_size).to(job.device)
        model = backend.prepare(backend.load())
        return torch.inference_mode()(lambda: backend.generate(model, prompts))
    step = backend.training_step()
    batches = read_batches(Path(job.batches), padded=job.padded)
    return lambda: [step(batch) for batch in batches]


def run_round(device: str) -> tuple[float, Any]:
    """Return seconds and output: token ids, losses or None."""
    gc.collect()
    synchronize(device)
    begin = time.perf_counter()
    output = _work()
    synchronize(device)
    seconds = time.perf_counter() - begin
    return seconds, output if isinstance(output, list) else None  # not a model


def synchronize(device: str) -> None:
    """Wait for CUDA's asynchronous kernels."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: str) -> int:
    """Peak memory of this process: torch's allocations on CUDA, else resident memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # on Linux, getrusage would include the parent's memory before exec
        with open("/proc/self/status", encoding="ascii") as status:
            [line] = [line for line in status if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
