"""Timing: each backend runs in its own process, and the processes take turns, round after round."""

import gc
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftcore import __version__
from ftcore.benchmark.backends import BACKENDS
from ftcore.benchmark.cases import Case, Job
from ftcore.benchmark.engines import ENGINES
from ftcore.benchmark.process import WorkerProcess


@dataclass
class Measurement:
    """One backend's results in one case."""

    seconds: list[float] = field(default_factory=list)  # per round
    output: Any = None  # token ids or losses of the first round, which may be the warm-up
    peak_bytes: int | None = None
    missing: str | None = None  # reason why there are no results
    version: str | None = None  # of the library


def measure(jobs: Sequence[Job], rounds: int, *, warm_up: bool = True) -> dict[str, Measurement]:
    """Alternate between the jobs for `rounds` timed rounds, after a warm-up round. Keys are backends."""
    results = {job.backend: Measurement() for job in jobs}
    with ExitStack() as stack:
        workers = {job.backend: stack.enter_context(WorkerProcess(job.python)) for job in jobs}

        def call(job: Job, function: Callable[..., Any], *arguments: Any) -> Any:
            """Run a function in the job's process. After an error the job has no results and no turns."""
            if job.backend in workers:
                try:
                    return workers[job.backend].call(function, *arguments)
                except RuntimeError as error:
                    results[job.backend] = Measurement(missing=str(error))
                    del workers[job.backend]
            return None

        with ThreadPoolExecutor(max(1, len(jobs))) as pool:  # imports take longer than all rounds on a GPU
            versions = pool.map(lambda job: call(job, start, job), jobs)
            for job, found in zip(jobs, versions, strict=True):
                results[job.backend].version = found
        for number in range(rounds + warm_up):
            for job in jobs:
                if timed := call(job, run_round, job.device):
                    seconds, output = timed
                    if number == 0:
                        results[job.backend].output = output
                    if number >= warm_up:
                        results[job.backend].seconds.append(seconds)
        for job in jobs:
            results[job.backend].peak_bytes = call(job, peak_bytes, job.device)
    return results


def measure_in_new_processes(jobs: Sequence[Job], rounds: int) -> dict[str, Measurement]:
    """Like `measure`, but each round runs in new processes, between which only files are kept.

    For "ready-first" there is one round, and no warm-up round that would write the files.
    """
    is_first = jobs[0].case.name == "ready-first"
    parts = [measure(jobs, 1, warm_up=False) for _ in range(1 if is_first else 1 + rounds)]
    results, *more = parts if is_first else parts[1:]
    for part in more:
        for backend, result in part.items():
            results[backend].seconds += result.seconds
    return results


# In a worker process

_work: Callable[[], Any]  # what a round times


def start(job: Job) -> str:
    """Prepare a job in this process, with its number of threads. Returns the version of the library."""
    global _work
    if job.cache:
        os.environ |= {"XDG_CACHE_HOME": job.cache, "TORCHINDUCTOR_CACHE_DIR": job.cache}
    torch.set_num_threads(job.threads)
    _work = prepare(job)
    return version(job.backend)


DISTRIBUTIONS = {"llama.cpp": "llama-cpp-python", "transformers-static": "transformers"}


def version(backend: str) -> str:
    """Version of a backend's library."""
    if backend.startswith("ftcore"):
        return __version__
    return importlib.metadata.version(DISTRIBUTIONS.get(backend, backend))


def prepare(job: Job) -> Callable[[], Any]:
    """Do what a job does once, and return what its rounds do."""
    backend, kind = (BACKENDS | ENGINES)[job.backend](job), job.case.kind
    if kind == "convert":
        return backend.convert
    if kind == "load":
        return backend.load
    if kind == "train":
        from ftcore.benchmark.inputs import read_batches  # needs packages that an engine's Python may lack

        step = backend.training_step()
        batches = read_batches(Path(job.batches), padded=job.padded)
        return lambda: [step(batch) for batch in batches]
    prompts = random_prompts(job.case, job.vocab_size).to(job.device)
    model = backend.load()  # before "ready", for the imports
    if kind == "generate":
        model = backend.prepare(model)
        return torch.inference_mode()(lambda: backend.generate(model, prompts))
    return torch.inference_mode()(lambda: backend.generate(backend.prepare(backend.load()), prompts))


def random_prompts(case: Case, vocab_size: int) -> Tensor:
    """Draw ids, (rows, source), the same each time, without the first five, which are special in T5."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(min(5, vocab_size - 1), vocab_size, (case.rows, case.source), generator=generator)


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
