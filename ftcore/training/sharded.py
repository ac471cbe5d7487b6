"""Fully sharded: each process keeps a part of every weight, gradient and moment (Rajbhandari et al. 2020).

torch's FSDP2 cuts each parameter into rows, one part a process, a `DTensor`. Before a block computes, its
parameters are gathered; behind it they are parts again. Weights and optimizer are saved as they lie, each
process its parts, by torch.distributed.checkpoint: as safetensors, since its own format is a pickle. From
these files any number of processes takes what it needs, sharded or not.
"""

import copy
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ftcore.checkpoints.files import flush, write_atomically
from ftcore.models import Model
from ftcore.training.blocks import blocks
from ftcore.training.distributed import Batch, BatchLoss, DataParallel, Mode, OneProcess
from ftcore.training.loss import TokenLoss


class FullySharded(DataParallel):
    """Each process has a part of every weight."""

    mode: Mode | None = "fsdp"

    def _wrapped(self, loss: BatchLoss) -> nn.Module:
        self._frame = _without_weights(loss.model)
        # A block at a time goes to the device and is cut there: the whole might have no room.
        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in blocks(loss):
            _shard_block(block, mesh)
        fully_shard(loss, mesh=mesh)  # what is in no block: embeddings, head, last norms
        return loss

    def batch_loss(self, model: Model, batch: Batch, label_smoothing: float = 0.0) -> TokenLoss:
        loss = super().batch_loss(model, batch, label_smoothing)
        if not torch.is_grad_enabled():  # else the backward pass does it
            cast(FSDPModule, self._loss).reshard()
        return loss

    def synchronized(self, last: bool) -> Any:
        return OneProcess.synchronized(self, last)  # at each micro-batch: whole gradients have no room

    def whole(self, model: Model, *, only_on_first: bool = False) -> Model:
        weights = {}
        for name, parameter in model.named_parameters():
            weight = parameter.detach().full_tensor()  # type: ignore[attr-defined]
            if not only_on_first:
                weights[name] = weight
            elif self.is_first:
                weights[name] = weight.cpu()  # to be written
        plain = copy.deepcopy(self._frame)
        plain.load_state_dict(weights, strict=False, assign=True)
        plain.tie_weights()
        return plain.train(model.training)

    def item(self, tensor: Tensor) -> float:
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item()

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _without_weights(model: Model) -> Model:
    """Its modules anew, around parameters that have a shape and nothing else."""
    shapes = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, shapes)


def _shard_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """A unit a block; T5's table of position biases is one of its own, because the stack reads it outside."""
    for table in block.modules():
        if isinstance(table, nn.Embedding):
            fully_shard(table, mesh=mesh)
    fully_shard(block, mesh=mesh)


# ---------------------------------------------------------------------------------------------- on disk


def save_beside(
    path: Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parallel: OneProcess,
) -> str:
    """Write a state whose weights and moments lie in a directory beside it; all processes call it.

    A kill leaves the old state with its directory or the new one with its own, and perhaps a directory that
    no state names.

    Returns:
        The directory's name.
    """
    step = state["progress"]["step"]
    directory = parallel.on_first(lambda: _new_directory(path.parent, step))
    tensors = _weights(model)
    rest = optimizer.state_dict()
    # Copies: those in `rest` are the optimizer's own.
    rest["state"] = {number: dict(named) for number, named in rest["state"].items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, moment in rest["state"].get(number, {}).items():
            if moment.shape == parameter.shape:  # a count of steps is not
                tensors[f"optimizer.{number}.{name}"] = moment
                rest["state"][number][name] = None
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))

    def point_to_it() -> None:
        for written in (*directory.iterdir(), directory):  # torch waits before its last bytes are there
            flush(written)
        whole = state | {"shards": directory.name, "optimizer": rest}
        write_atomically(path, lambda beside: torch.save(whole, beside))

    parallel.on_first(point_to_it)
    return directory.name


def load_beside(
    path: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Fill model and optimizer, sharded or not, from a state, sharded or not; all processes call it.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if "shards" not in state:
        _load_whole(state, model, optimizer)
        return
    directory = path.parent / state["shards"]
    tensors = _weights(model)
    rest = state["optimizer"]
    moments = {number: dict(named) for number, named in rest["state"].items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, moment in moments.get(number, {}).items():
            if moment is None:
                moments[number][name] = torch.zeros_like(parameter)
                tensors[f"optimizer.{number}.{name}"] = moments[number][name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one process alone is no mistake
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)))
    except (Exception, CheckpointException) as error:  # what any of the processes has met with, and where
        raise ValueError(f"{directory}: damaged, the run cannot be resumed ({_last_line(error)})") from None
    optimizer.load_state_dict(rest | {"state": moments})


def _load_whole(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Each process takes its part of a state that has everything in one file."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_part(state["model"][name], parameter))
    saved = state["optimizer"]
    moments = {
        number: {name: _part(moment, parameter) for name, moment in saved["state"][number].items()}
        for number, parameter in enumerate(_parameters(optimizer))
        if number in saved["state"]
    }
    optimizer.load_state_dict(saved | {"state": moments})


def _part(value: Tensor, parameter: Tensor) -> Tensor:
    """Cut as the parameter is, if it has its shape."""
    assert isinstance(parameter, DTensor)
    if value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    # No source: every process has read the file itself.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Tied ones once."""
    return {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """In the order in which an optimizer's state numbers them."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _new_directory(parent: Path, step: int) -> Path:
    """One that no state names: the same step is saved twice where a run ends, and after a kill."""
    for attempt in count():
        directory = parent / (f"sharded-{step:06d}" + (f"-{attempt}" if attempt else ""))
        if not directory.exists():
            directory.mkdir(parents=True)
            return directory
    raise AssertionError("count() has no end")


def _last_line(error: BaseException) -> str:
    """What happened, below the traceback that torch puts into the message."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
