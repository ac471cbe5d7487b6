"""Processes started by torchrun: how they connect, how they end, and what happens when one is lost."""

import atexit
import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count

import torch
import torch.distributed as dist

from ftcore.output import FAILED_RUN
from ftcore.training.distributed import Strategy, world_size
from ftcore.training.inputs import find_device
from ftcore.training.interrupt import Interrupt
from ftcore.training.options import TrainOptions

# Collectives may wait for hours, while rank 0 tokenizes a corpus. A lost process is noticed in another way.
COLLECTIVE_TIMEOUT = timedelta(days=2)
EXIT_TIMEOUT = timedelta(minutes=1)  # how long the other ranks wait for rank 0's last message

_runs = count()  # makes the store's keys unique where one process starts several runs


def started_by_torchrun() -> bool:
    """Whether torchrun has set this process's rank."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@cache
def rendezvous() -> tuple[dist.Store, int, int]:
    """torchrun's key-value store, this process's rank, the world size."""
    return next(dist.rendezvous("env://"))


def connect(options: TrainOptions) -> Strategy | None:
    """Initialize the process group, where torchrun has started several; returns how they share the model.

    Raises:
        ValueError: options that need one process or several, or more processes than devices.
    """
    if not started_by_torchrun():
        if options.parallel:
            raise ValueError(
                f"`parallel` {options.parallel} is for processes that torchrun starts: "
                f"torchrun --nproc-per-node 2 -m ftcore.train --parallel {options.parallel} ..."
            )
        return None
    for name in ("check", "dry_run"):
        if getattr(options, name):
            raise ValueError(f"`{name}` is for one process: start it with python -m ftcore.train")
    _init_process_group(local_device(options.device).type)
    return options.parallel or "ddp"


def local_device(name: str | None) -> torch.device:
    """The device of this process: of several on one machine, each takes the CUDA device of its local rank.

    Raises:
        ValueError: there is no such device, or not one for each process.
    """
    device = find_device(name)
    if not started_by_torchrun() or device.type == "cpu":
        return device
    if device.type != "cuda" or name not in (None, "cuda"):
        raise ValueError(f"`device` {name}: each process uses its own device: pass cuda or cpu")
    here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > devices:
        raise ValueError(
            f"{here} processes on a machine with {devices} CUDA devices: lower --nproc-per-node, or pass "
            "`device` cpu"
        )
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


@cache
def _init_process_group(device_type: str) -> None:
    """Connect once per process, and disconnect when it exits.

    Destroying the group directly after a collective can deadlock: gloo's threads may still need the GIL to
    release tensors, while the destructor holds it and waits for these threads.
    """
    store, rank, world_size = rendezvous()
    # gloo on CUDA too: Python objects and scalar sums go through CPU tensors
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )
    atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if not hasattr(sys, "last_value"):  # after an uncaught exception the other ranks may never answer
        gc.collect()  # DDP and FSDP hold the group too
        dist.destroy_process_group()


@contextmanager
def wait_for_main() -> Iterator[None]:
    """Keep the other ranks alive until rank 0 has printed how the run ended.

    torchrun kills all processes as soon as one of them exits with an error.
    """
    if not started_by_torchrun():
        yield
        return
    store, rank, _ = rendezvous()
    key = f"ftcore: run {next(_runs)} has ended"
    try:
        yield
    finally:
        sys.stdout.flush()
        with suppress(RuntimeError):  # the store ends with torchrun or with rank 0
            if rank == 0:
                store.set(key, "")
            elif not isinstance(sys.exc_info()[1], Exception):  # an uncaught exception ends at once
                store.wait([key], EXIT_TIMEOUT)


@contextmanager
def watch_peers(situation: Callable[[], str]) -> Iterator[None]:
    """Report the loss of another process, and exit.

    Args:
        situation: progress and resume command, for the message.
    """
    if world_size() == 1:
        yield
        return
    # torchrun sends SIGTERM to the surviving ranks. Interrupt defers it, so that they can log the failure.
    with Interrupt():
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_peer(error):
                raise
            _report_once(f"another process of this run was lost {situation()}")
            os._exit(FAILED_RUN)  # a regular exit would wait for the lost process


def _report_once(line: str) -> None:
    """Print from the first rank that notices: the lost process may be rank 0."""
    try:
        reported = rendezvous()[0].add("ftcore: lost process reported", 1) > 1
    except RuntimeError:  # the store is lost too
        reported = False
    if not reported:
        print(f"ftcore.train: {line}", file=sys.stderr, flush=True)


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because a process is gone. torch has no exception class for it."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def start_command(strategy: Strategy | None, *options: str) -> str:
    """The command line, quoted for a shell, that starts as many processes again."""
    if strategy is None:
        return shlex.join(["python", "-m", "ftcore.train", *options])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    nodes = ["--nnodes", str(world_size() // here)] if here < world_size() else []
    torchrun = ["torchrun", *nodes, "--nproc-per-node", str(here), "-m", "ftcore.train"]
    return shlex.join([*torchrun, "--parallel", strategy, *options])
