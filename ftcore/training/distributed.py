"""More than one process: `torchrun --nproc-per-node N -m ftcore.train`, the same run as with one.

Every process has the model, or with FSDP its part of it, and goes through the same loop. Of each micro-batch
it gets some of the rows. What depends on all rows is summed over the processes: target tokens, loss,
gradient. What only one can do, such as writing a file, the first does while the others wait; and where one
cannot go on, none does.

`run.parallel` is a `OneProcess`, which does nothing, a `DataParallel`, or the `FullySharded` of sharded.py.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ftcore.cli import FAILED_RUN
from ftcore.models import Model
from ftcore.training.inputs import find_device
from ftcore.training.interrupt import GRACE, Interrupt, speaking_when_stuck
from ftcore.training.launch import by_torchrun, connect, meeting_point, own_device
from ftcore.training.loss import TokenLoss, batch_loss
from ftcore.training.options import TrainOptions

T = TypeVar("T")
Batch = dict[str, Tensor]
Mode = Literal["ddp", "fsdp"]


class OneProcess:
    """The processes of a run, where there is one: nothing is dealt, and there is nobody to agree with."""

    mode: Mode | None = None
    rank = 0  # the number of this process
    count = 1  # of processes

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def find_device(self, name: str | None) -> torch.device:
        return find_device(name)

    def place(self, model: Model, device: torch.device, seed: int) -> None:
        """Put a model on this process's device, and let its gradients be those of all processes."""
        model.to(device)

    def batch_loss(self, model: Model, batch: Batch, label_smoothing: float = 0.0) -> TokenLoss:
        """The loss of this process's rows; see loss.py."""
        return batch_loss(model, batch, label_smoothing)

    def synchronized(self, last: bool) -> AbstractContextManager:
        """Around a micro-batch's forward and backward pass; the gradients meet at the window's last."""
        return nullcontext()

    def sum(self, value: float) -> float:
        """Over all processes."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process: what all have to decide alike."""
        return flag

    def gather(self, value: T) -> list[T]:
        """What it is on each process, in their order."""
        return [value]

    def deal(self, rows: Sequence[T]) -> Sequence[T]:
        """Those of this process: of N every N-th, so that neighbours of similar length part."""
        return rows[self.rank :: self.count]

    def collect(self, rows: Sequence[T]) -> list[T]:
        """The opposite: what became of all rows, in their order."""
        shares = self.gather(list(rows))
        turns = range(max(map(len, shares)))
        return [share[turn] for turn in turns for share in shares if turn < len(share)]

    def on_first(self, act: Callable[[], T]) -> T:
        """Let the first process do something while the others wait. All have its result, or its error."""
        return act()

    def agreed(self) -> AbstractContextManager:
        """Around what each process does by itself: an error of one (ValueError, OSError) is one of all."""
        return nullcontext()

    def first_before_others(self) -> AbstractContextManager:
        """Around what leaves a file behind, made by the first, that saves the others the work."""
        return nullcontext()

    def whole(self, model: Model, *, only_on_first: bool = False) -> Model:
        """The model with all of its weights, to be used without the other processes."""
        return model

    def item(self, tensor: Tensor) -> float:
        """The number in a scalar that was computed from parameters or gradients."""
        return tensor.item()

    def local(self, tensor: Tensor) -> Tensor:
        """What of a parameter or gradient lies in this process."""
        return tensor

    def noticing_losses(self, situation: Callable[[], str]) -> AbstractContextManager:
        """Around the work: if another process is lost, say so with this `situation`, and end."""
        return nullcontext()

    def command(self) -> str:
        """What starts as many processes again, up to the options."""
        return "python -m ftcore.train"


class DataParallel(OneProcess):
    """All processes have the whole model, and their gradients are summed: torch's DistributedDataParallel."""

    mode: Mode | None = "ddp"

    def __init__(self, device: torch.device) -> None:
        """Wait for the others."""
        connect(device.type)
        self._store, self.rank, self.count = meeting_point()
        self.device = device

    def find_device(self, name: str | None) -> torch.device:
        return self.device

    def place(self, model: Model, device: torch.device, seed: int) -> None:
        self._loss = self._wrapped(BatchLoss(model))
        if not self.is_first:  # else all would drop the same units of different rows
            torch.manual_seed((seed + self.rank * 0x9E3779B97F4A7C15) % 2**63)

    def _wrapped(self, loss: "BatchLoss") -> nn.Module:
        own = [self.device] if self.device.type == "cuda" else None
        loss.to(self.device)
        return nn.parallel.DistributedDataParallel(loss, device_ids=own)

    def batch_loss(self, model: Model, batch: Batch, label_smoothing: float = 0.0) -> TokenLoss:
        return self._loss(batch, label_smoothing)

    def synchronized(self, last: bool) -> AbstractContextManager:
        assert isinstance(self._loss, nn.parallel.DistributedDataParallel)
        return nullcontext() if last else self._loss.no_sync()

    def sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def any(self, flag: bool) -> bool:
        return self.sum(flag) > 0

    def gather(self, value: T) -> list[T]:
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # every process has given one

    def on_first(self, act: Callable[[], T]) -> T:
        result: list[T | None] = [None]
        with self.agreed():
            if self.is_first:
                result = [act()]
        dist.broadcast_object_list(result, src=0)
        return result[0]  # type: ignore[return-value]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        error: Exception | None = None
        try:
            yield
        except (ValueError, OSError) as caught:
            error = caught
        for found in self.gather(error):
            if found is not None:
                raise found

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        if not self.is_first:
            self._meet()
        try:
            yield
        finally:
            if self.is_first:
                self._meet()

    def _meet(self) -> None:
        self.gather(None)

    @contextmanager
    def noticing_losses(self, situation: Callable[[], str]) -> Iterator[None]:
        # torchrun sends SIGTERM to those that are left. `Interrupt` lets them live long enough to speak.
        stuck = f"{GRACE} seconds after it was asked to stop, is another process lost?"
        with Interrupt(), speaking_when_stuck(lambda: self._say_once(f"still at work {stuck} {situation()}")):
            try:
                yield
            except RuntimeError as error:
                if not _is_loss(error):
                    raise
                self._say_once(f"another process of this run was lost {situation()}")
                os._exit(FAILED_RUN)  # leaving in good order would mean to wait for who is lost

    def _say_once(self, line: str) -> None:
        """Whoever notices first that a process is lost says so: it may be the first process itself."""
        try:
            others_have = self._store.add("ftcore has said that one is lost", 1) > 1
        except RuntimeError:  # the store is lost too
            others_have = False
        if not others_have:
            print(f"ftcore.train: {line}", file=sys.__stderr__, flush=True)

    def command(self) -> str:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        machines = f"--nnodes {self.count // here} " if here < self.count else ""
        return f"torchrun {machines}--nproc-per-node {here} -m ftcore.train --parallel {self.mode}"


class BatchLoss(nn.Module):
    """A batch's loss as a module's forward pass: what torch's wrappers do, they do around that."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, label_smoothing: float) -> TokenLoss:
        return batch_loss(self.model, batch, label_smoothing)


# ---------------------------------------------------------------------------------------------- starting


def join(options: TrainOptions) -> OneProcess:
    """Join the processes that torchrun has started; without torchrun there is one.

    Raises:
        ValueError: the options are for one process, or for several; or there is no device for each of them.
    """
    if not by_torchrun():
        require_processes(options)
        return OneProcess()
    for name in ("check", "dry_run"):
        if getattr(options, name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is for one process: start it with python -m ftcore.train")
    device = own_device(options.device)
    if options.parallel == "fsdp":
        from ftcore.training.sharded import FullySharded  # its part of torch takes a second to import

        return FullySharded(device)
    return DataParallel(device)


def require_processes(options: TrainOptions, parallel: OneProcess | None = None) -> None:
    """Raise ValueError where --parallel asks for processes that are not there."""
    if options.parallel and not (parallel and parallel.mode):
        raise ValueError(
            f"--parallel {options.parallel} is for processes that torchrun starts: "
            f"torchrun --nproc-per-node 2 -m ftcore.train --parallel {options.parallel} ..."
        )


def _is_loss(error: RuntimeError) -> bool:
    """Whether torch found that another process is no longer there. It has no exception of its own for it."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
