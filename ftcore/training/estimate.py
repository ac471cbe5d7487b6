"""How much memory a run takes and how long an epoch: two of its micro-batches are tried out beforehand."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ftcore.training.loss import CHUNK, batch_loss, count_targets
from ftcore.training.setup import Run
from ftcore.training.state import random_state, set_random_state

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Estimate:
    """Bytes when most is held, at the end of the largest micro-batch's forward pass, and seconds.

    Not in it: torch itself, what kernels need for a moment, optimizer steps and validations.
    """

    weights: int
    gradients: int
    moments: int  # what the optimizer remembers
    activations: int  # measured: what the forward pass keeps for the backward pass
    logits: int  # of the targets that the loss has in hand
    largest: tuple[int, int]  # rows and positions of that micro-batch
    seconds_per_epoch: float  # measured: forward and backward of a middling micro-batch, for all positions

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations + self.logits

    def lines(self) -> list[str]:
        rows, width = self.largest
        return [
            f"memory     about {_size(self.memory)} besides torch itself: weights {_size(self.weights)}, "
            f"gradients {_size(self.gradients)}, optimizer {_size(self.moments)},",
            f"           activations {_size(self.activations)} (measured on the largest batch, "
            f"{rows} x {width} tokens), logits {_size(self.logits)}",
            f"time       about {_duration(self.seconds_per_epoch)} an epoch (measured on a middling batch), "
            "besides validations",
        ]


def estimate(run: Run) -> Estimate:
    """Try the largest and a middling micro-batch of this epoch, without a step.

    The run is left as it was: weights, random numbers, gradients, place in the data.
    """
    loader = run.train_loader
    rows, *widths = loader.shapes().T
    positions = rows * (sum(widths) if run.model.config.is_encoder_decoder else widths[0])
    with _undone(run):
        largest = _batch(run, int(positions.argmax()))
        activations = _saved_bytes(run, largest)
        middle = int(positions.argsort()[len(positions) // 2])
        middling = _batch(run, middle)
        seconds = min(_seconds(run, middling) for _ in range(2))  # the first one also warms up
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    vocabulary = run.model.lm_head.weight.shape[0]
    targets = min(count_targets(run.model, largest), max(1, CHUNK // vocabulary))
    rows, columns = largest["input_ids"].shape
    return Estimate(
        weights=_bytes(run.model.parameters()),
        gradients=_bytes(trained),
        moments=moment_bytes(run.optimizer),
        activations=activations,
        logits=2 * 4 * targets * vocabulary,  # in float32, and another array of that size on the way
        largest=(rows, columns),
        seconds_per_epoch=seconds * float(positions.sum()) / float(positions[middle]),
    )


def moment_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the optimizer will remember: of AdamW two numbers a weight, of Adafactor one a row and column."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(optimizer, torch.optim.Adafactor):
        return 2 * _bytes(parameters)
    numbers = 0
    for parameter in parameters:
        *outer, rows, columns = parameter.shape if parameter.dim() > 1 else (1, *parameter.shape, 0)
        matrices = torch.Size(outer).numel()
        numbers += matrices * (rows + columns)
    return 4 * numbers


@contextmanager
def _undone(run: Run) -> Iterator[None]:
    state = random_state()
    try:
        yield
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        set_random_state(state)


def _batch(run: Run, number: int) -> Batch:
    """A micro-batch of this epoch on the run's device; the loader does not move."""
    loader = run.train_loader
    size = loader.batch_sampler.batch_size
    positions = loader.batch_sampler.order()[number * size : (number + 1) * size].tolist()
    batch = loader.collate_fn([loader.dataset[position] for position in positions])
    return {name: tensor.to(run.device) for name, tensor in batch.items()}


def _saved_bytes(run: Run, batch: Batch) -> int:
    """The storages that a forward pass keeps for its backward pass, besides the weights and the batch."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*run.model.parameters(), *batch.values())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), run.autocast():
        loss = batch_loss(run.model, batch, run.options.label_smoothing)
    del loss  # held until here, so that no address was used twice
    return sum(kept.values())


def _seconds(run: Run, batch: Batch) -> float:
    """Forward and backward."""
    start = time.perf_counter()
    with run.autocast():
        loss = batch_loss(run.model, batch, run.options.label_smoothing)
    (loss.total / max(1, loss.tokens)).backward()
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return time.perf_counter() - start


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(count: float) -> str:
    """1234567 -> "1.2 MB" """
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _duration(seconds: float) -> str:
    """4000 -> "1 h 7 min" """
    if seconds < 90:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 90 else f"{minutes} min"
