"""How fast a run is, and its loss since the last line of the log."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ftcore.training.distributed import all_reduce_sum, world_size


class Meter:
    """Averages over the optimizer steps since the last `take`.

    `losses` of these steps belong to the run's state: a resumed run logs the mean that it would have logged.
    Speed is that of all processes together.
    """

    def __init__(self, losses: list[float]) -> None:
        self._losses = losses
        self._smooth_loss: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._examples = self._tokens = 0
        self._start = time.perf_counter()

    def add(self, loss: float, window: Sequence[dict[str, Tensor]]) -> None:
        """Count one optimizer step: its loss and its micro-batches."""
        self._losses.append(loss)
        self._smooth_loss = loss if self._smooth_loss is None else 0.9 * self._smooth_loss + 0.1 * loss
        self._examples += sum(len(batch["index"]) for batch in window)
        self._tokens += sum(int(batch["attention_mask"].sum()) for batch in window if len(batch["index"]))

    def postfix(self, lr: float) -> dict[str, str]:
        """What the progress bar shows: smoothed loss, learning rate, tokens per second."""
        tokens = self._tokens * world_size()  # an estimate, without communication
        rate = tokens / (time.perf_counter() - self._start)
        return {"loss": f"{self._smooth_loss:.3f}", "lr": f"{lr:.1e}", "tok/s": f"{rate:,.0f}"}

    def take(self) -> dict[str, float]:
        """The means since the last take. Tokens are those of input_ids, padding not counted."""
        seconds = time.perf_counter() - self._start
        metrics = {
            "train_loss": sum(self._losses) / len(self._losses),
            "tokens_per_second": all_reduce_sum(self._tokens) / seconds,
            "examples_per_second": all_reduce_sum(self._examples) / seconds,
        }
        self._losses.clear()
        self._reset()
        return metrics

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around a validation, which is no training time."""
        pause = time.perf_counter()
        yield
        self._start += time.perf_counter() - pause
