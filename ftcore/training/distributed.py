"""Data-parallel training: `torchrun --nproc-per-node N -m ftcore.train`.

Every rank runs the same loop on its own rows of each micro-batch; losses, token counts and gradients are
summed over the ranks. In a single process all of these functions are no-ops.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ftcore.models import Model
from ftcore.training.loss import Batch, Loss, TokenLoss, batch_loss

T = TypeVar("T")
Strategy = Literal["ddp", "fsdp"]
ComputeLoss = Callable[..., TokenLoss]  # of a batch and --label-smoothing


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


# Collectives: every rank must call them, in the same order.


def all_reduce_sum(value: float) -> float:
    """Sum of a number over the ranks, in float64."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()


def any_rank(flag: bool) -> bool:
    """True where any rank's flag is: a decision that all ranks share."""
    return all_reduce_sum(flag) > 0


def all_gather(value: T) -> list[T]:
    """Each rank's value, in the order of ranks. Any picklable object."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def shard(rows: Sequence[T]) -> Sequence[T]:
    """This rank's rows: every world_size-th, since neighbors are of similar length."""
    return rows[rank() :: world_size()]


def all_gather_flat(rows: Sequence[T]) -> list[T]:
    """Inverse of `shard`: the rows of all ranks, in the original order."""
    shards = all_gather(list(rows))
    longest = max(map(len, shards))
    return [part[i] for i in range(longest) for part in shards if i < len(part)]


def on_main(function: Callable[[], T]) -> T:
    """Call a function on rank 0 while the others wait; all ranks get its result, or its error."""
    result: list[Any] = [None]
    with sync_errors():
        if rank() == 0:
            result = [function()]
    if world_size() > 1:
        dist.broadcast_object_list(result, src=0)
    return result[0]


@contextmanager
def sync_errors() -> Iterator[None]:
    """Raise a ValueError or OSError of one rank on all ranks."""
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = caught
    for found in all_gather(error):
        if found is not None:
            raise found


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 first, for example to fill a cache on disk that the others then read."""
    if rank() > 0:
        all_gather(None)
    try:
        yield
    finally:
        if rank() == 0:
            all_gather(None)


# The model


class BatchLoss(nn.Module):
    """A model's loss as the forward pass of a module, which is what DDP and FSDP2 wrap."""

    def __init__(self, model: Model, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, label_smoothing: float = 0.0) -> TokenLoss:
        """The loss of a batch of tensors, see `batch_loss`. Raises ValueError if it is not a TokenLoss."""
        loss = self.loss(self.model, batch, label_smoothing)
        if not isinstance(loss, TokenLoss):
            found = type(loss).__name__
            raise ValueError(f"loss returned a {found}; expected TokenLoss(total, correct, tokens)")
        return loss


def wrap(
    model: Model, device: torch.device, strategy: Strategy | None, loss: Loss = batch_loss
) -> ComputeLoss:
    """Move a model to the device. Returns its loss, whose backward pass averages over the ranks."""
    compute_loss = BatchLoss(model, loss)
    if strategy == "fsdp":
        from ftcore.training.sharded import shard  # this part of torch takes a second to import

        return shard(compute_loss, device)
    compute_loss.to(device)
    if strategy == "ddp":
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(compute_loss, device_ids=device_ids)
    return compute_loss


def accumulate(compute_loss: ComputeLoss, *, is_last: bool) -> AbstractContextManager:
    """Context of a micro-batch: DDP averages gradients after the last one of a step only.

    FSDP2 reduces after every micro-batch, since unsharded gradients would not fit.
    """
    if isinstance(compute_loss, DistributedDataParallel) and not is_last:
        return compute_loss.no_sync()
    return nullcontext()


def is_sharded(model: nn.Module) -> bool:
    """True after FSDP2: parameters are DTensors."""
    return hasattr(next(model.parameters()), "full_tensor")


def unsharded(model: Model, *, main_only: bool = False) -> Model:
    """The model with whole weights, usable without collectives; the model itself where it is not sharded.

    With `main_only`, only rank 0 gets the weights, on the CPU, to be written.
    """
    if not is_sharded(model):
        return model
    from ftcore.training.sharded import gather_model

    return gather_model(model, main_only=main_only)


def to_local(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter or gradient."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def to_full(tensor: Tensor) -> Tensor:
    """All of a parameter, a gradient or a number computed from them."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
