"""How torchrun's processes begin, find each other, speak with one voice, and end."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from functools import cache
from itertools import count

import torch
import torch.distributed as dist

from ftcore.training.inputs import find_device

# How long a process waits for the others. Answering a validation set, or tokenising a corpus, may take hours;
# and the end of a process is not noticed by waiting.
PATIENCE = timedelta(days=2)
LAST_WORDS = timedelta(minutes=1)  # how long the others wait at the end for what the first has to say

_runs = count()  # in this process: what a second one writes to the store is not the first's


def by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@cache
def meeting_point() -> tuple[dist.Store, int, int]:
    """torchrun's store, the number of this process, and of how many."""
    return next(dist.rendezvous("env://"))


def own_device(name: str | None) -> torch.device:
    """The CPU, or the CUDA device of the process's number on this machine."""
    device = find_device(name)
    if device.type == "cpu":
        return device
    if device.type != "cuda" or name not in (None, "cuda"):
        raise ValueError(f"--device {name}: each process takes a device of its own: pass cuda or cpu")
    here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > devices:
        raise ValueError(
            f"{here} processes on a machine with {devices} CUDA devices: lower --nproc-per-node, or pass "
            "--device cpu"
        )
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


@cache
def connect(device: str) -> None:
    """Connect the processes, until their end and not only that of a run.

    Right behind a collective, gloo's threads may still want to let go of tensors, for which they need Python,
    while whoever takes gloo down waits for its threads and may not let Python go.
    """
    store, rank, processes = meeting_point()
    # gloo in any case, for what is on no GPU: Python objects, sums of a few numbers
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=PATIENCE)
    atexit.register(_disconnect)


def _disconnect() -> None:
    if not hasattr(sys, "last_value"):  # else an error has ended this process, and not the others
        gc.collect()  # torch's wrappers, which hold the connection too
        dist.destroy_process_group()


@contextmanager
def first_speaks() -> Iterator[None]:
    """Let the first process alone print. The others stay until it has said how the run has ended.

    For at the end of one process torchrun ends all, and it might be that of the one which has to say why. An
    error that nobody has foreseen is everybody's own: its traceback is printed.
    """
    if not by_torchrun():
        yield
        return
    store, rank, _ = meeting_point()
    said = f"ftcore has said how run {next(_runs)} ended"
    if rank == 0:
        try:
            yield
        finally:
            sys.stdout.flush()
            with suppress(RuntimeError):  # torchrun has ended, and its store
                store.set(said, "")
        return
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except SystemExit:
        _wait(store, said)
        raise
    _wait(store, said)


def _wait(store: dist.Store, key: str) -> None:
    with suppress(RuntimeError):  # the first has ended without a word, or torchrun has
        store.wait([key], LAST_WORDS)
