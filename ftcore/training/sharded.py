"""Fully sharded training (FSDP2): each rank keeps a part of every weight, gradient and moment.

Rajbhandari et al. 2020. torch's `fully_shard` splits each parameter by rows into a `DTensor`. A block's
parameters are gathered before it computes and resharded after it. Each rank saves its part of weights
and moments through torch.distributed.checkpoint, as safetensors, since the default format is a pickle. Any
number of ranks, sharded or not, can load these files.
"""

import copy
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

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
from ftcore.training.distributed import BatchLoss, on_main, rank, to_full, world_size
from ftcore.training.gradient_checkpointing import blocks

# For each sharded model, a copy of its modules before sharding, with parameters on the meta device.
_unsharded_modules: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def shard(compute_loss: BatchLoss, device: torch.device) -> nn.Module:
    """Move a model with its loss to the device and shard it, block by block: the whole might not fit."""
    model = compute_loss.model
    _unsharded_modules[model] = _without_weights(model)
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks(model):
        _shard_block(block, mesh)
    fully_shard(compute_loss, mesh=mesh)  # embeddings, head, last norms
    compute_loss.register_forward_hook(_reshard_without_backward)
    return compute_loss


def _reshard_without_backward(module: nn.Module, *_: Any) -> None:
    """FSDP2 reshards the root in the backward pass, but validation has none."""
    if isinstance(module, FSDPModule) and not torch.is_grad_enabled():
        module.reshard()


def _shard_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a block, and separately T5's position bias table, which the stack reads outside of the block."""
    for table in block.modules():
        if isinstance(table, nn.Embedding):
            fully_shard(table, mesh=mesh)
    fully_shard(block, mesh=mesh)


def gather_model(model: Model, *, main_only: bool) -> Model:
    """See `distributed.unsharded`."""
    weights = {}
    for name, parameter in model.named_parameters():
        weight = to_full(parameter.detach())
        if not main_only:
            weights[name] = weight
        elif rank() == 0:
            weights[name] = weight.cpu()  # to be written
    plain: Any = copy.deepcopy(_unsharded_modules[model])
    plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    return plain.train(model.training)


def _without_weights(model: Model) -> Model:
    """A copy whose parameters are on the meta device: shapes without memory."""
    parameters = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, parameters)


# On disk


def save_sharded(
    path: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> str:
    """Write a state, with weights and moments in a directory next to it. A collective.

    A kill leaves the old state with its directory or the new one with its own, and perhaps a directory that
    no state refers to.

    Returns:
        The directory's name.

    Raises:
        OSError: a file cannot be written.
    """
    step = state["progress"]["step"]
    directory = on_main(lambda: _new_directory(path.parent, step))
    tensors = _weights(model)
    rest = optimizer.state_dict()
    # copies: state_dict() shares its dicts with the optimizer
    rest["state"] = {number: dict(named) for number, named in rest["state"].items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, moment in rest["state"].get(number, {}).items():
            if moment.shape == parameter.shape:  # not the step count
                tensors[f"optimizer.{number}.{name}"] = moment
                rest["state"][number][name] = None
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))
    except CheckpointException as error:
        raise OSError(f"{directory}: cannot be written (is the disk full? {_cause(error)})") from None

    def write_state() -> None:
        for written in (*directory.iterdir(), directory):  # dcp.save does not flush to the disk
            flush(written)
        whole = state | {"shards": directory.name, "optimizer": rest}
        write_atomically(path, lambda temporary: torch.save(whole, temporary))

    on_main(write_state)
    return directory.name


def load_sharded(
    path: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Fill model and optimizer, sharded or not. A collective. Raises ValueError if a file is damaged."""
    if "shards" not in state:
        _load_unsharded(state, model, optimizer)
        return
    directory = path.parent / state["shards"]
    tensors = _weights(model)
    try:
        moments = {number: dict(named) for number, named in state["optimizer"]["state"].items()}
        for number, parameter in enumerate(_parameters(optimizer)):
            for name, moment in moments.get(number, {}).items():
                if moment is None:
                    moments[number][name] = torch.zeros_like(parameter)
                    tensors[f"optimizer.{number}.{name}"] = moments[number][name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dcp warns where it runs in a single process
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)))
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    except (Exception, CheckpointException) as error:  # a damaged file makes it fail in many ways
        raise ValueError(f"{directory}: damaged, the run cannot be resumed ({_cause(error)})") from None


def _cause(error: BaseException) -> str:
    """The last line of a message, which stands below a traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _load_unsharded(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a state from a single file; each rank keeps its part."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_distribute(state["model"][name], parameter))
    saved = state["optimizer"]["state"]
    moments = {
        number: {name: _distribute(moment, parameter) for name, moment in saved[number].items()}
        for number, parameter in enumerate(_parameters(optimizer))
        if number in saved
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def _distribute(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard a tensor as the parameter is, if it has its shape."""
    assert isinstance(parameter, DTensor)
    if value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    # src_data_rank=None: every rank has read the file itself
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, tied ones once."""
    return {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Parameters in the order of the optimizer's state."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _new_directory(parent: Path, step: int) -> Path:
    """A name that no state refers to: one step may be saved twice, at the end of a run and after a kill."""
    paths = (parent / (f"sharded-{step:06d}" + (f"-{attempt}" if attempt else "")) for attempt in count())
    directory = next(path for path in paths if not path.exists())
    directory.mkdir(parents=True)
    return directory
