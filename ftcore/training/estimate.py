"""Estimate a run's memory and time per epoch from two of its micro-batches."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ftcore.training.loss import CHUNK, Batch, batch_loss, count_targets
from ftcore.training.run import Run
from ftcore.training.state import random_state, set_random_state


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, after the forward pass of the largest micro-batch, and seconds.

    Not included: PyTorch itself, temporary buffers of kernels, optimizer steps, validations.
    """

    weights: int
    gradients: int
    moments: int  # optimizer state
    activations: int  # measured: tensors saved for the backward pass
    logits: int  # of one chunk of target tokens
    largest: tuple[int, int]  # (rows, positions) of the largest micro-batch
    seconds_per_epoch: float  # extrapolated from forward and backward passes of a median micro-batch

    @property
    def memory(self) -> int:
        """The sum in bytes."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits

    def lines(self) -> list[str]:
        """Lines of text for the console."""
        rows, width = self.largest
        seconds = self.seconds_per_epoch
        time = f"{seconds:.2g} s" if seconds < 90 else f"{seconds / 60:,.0f} min"
        return [
            f"memory     about {_size(self.memory)} plus PyTorch itself: weights {_size(self.weights)}, "
            f"gradients {_size(self.gradients)}, optimizer {_size(self.moments)},",
            f"           activations {_size(self.activations)} (measured on the largest batch, "
            f"{rows} x {width} tokens), logits {_size(self.logits)}",
            f"time       about {time} per epoch (measured on a batch of median length), without validations",
        ]


def estimate(run: Run) -> Estimate:
    """Run the largest and a median micro-batch of the current epoch, without an optimizer step.

    Weights, gradients, random state and the position in the data are unchanged afterwards.
    """
    rows, *widths = run.train_loader.shapes().T
    positions = rows * (sum(widths) if run.model.config.is_encoder_decoder else widths[0])
    median = int(positions.argsort()[len(positions) // 2])
    state = random_state()
    try:
        largest, middle = _batch(run, int(positions.argmax())), _batch(run, median)
        activations = _saved_bytes(run, largest)
        seconds = min(_seconds(run, middle) for _ in range(2))  # the first one warms up
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        set_random_state(state)
    vocabulary = run.model.lm_head.weight.shape[0]
    targets = min(count_targets(run.model, largest), max(1, CHUNK // vocabulary))
    row_count, width = largest["input_ids"].shape
    return Estimate(
        weights=_bytes(run.model.parameters()),
        gradients=_bytes(parameter for parameter in run.model.parameters() if parameter.requires_grad),
        moments=optimizer_bytes(run.optimizer),
        activations=activations,
        logits=2 * 4 * targets * vocabulary,  # in float32, and one temporary of the same size
        largest=(row_count, width),
        seconds_per_epoch=seconds * float(positions.sum() / positions[median]),
    )


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Size of the state: two moments per weight (AdamW), or one per row and column (Adafactor)."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(optimizer, torch.optim.Adafactor):
        return 2 * _bytes(parameters)
    count = 0
    for parameter in parameters:
        *batch, rows, columns = parameter.shape if parameter.dim() > 1 else (1, *parameter.shape, 0)
        count += torch.Size(batch).numel() * (rows + columns)
    return 4 * count


def _batch(run: Run, number: int) -> Batch:
    """A micro-batch of the current epoch on the run's device; the loader's position stays."""
    loader = run.train_loader
    size = loader.batch_sampler.batch_size
    indices = loader.batch_sampler.order()[number * size : (number + 1) * size].tolist()
    batch = loader.collate_fn([loader.dataset[index] for index in indices])
    return {name: tensor.to(run.device) for name, tensor in batch.items()}


def _saved_bytes(run: Run, batch: Batch) -> int:
    """Storage that autograd keeps for the backward pass, without the weights and the batch."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*run.model.parameters(), *batch.values())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), run.autocast():
        loss = batch_loss(run.model, batch, run.options.label_smoothing)
    del loss  # kept alive until here, so that no address was reused
    return sum(saved.values())


def _seconds(run: Run, batch: Batch) -> float:
    """Duration of a forward and backward pass."""
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
    """1234567 -> "1.23 MB" """
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
