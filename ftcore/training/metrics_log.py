"""A run's metrics: averages over steps, metrics.jsonl, and the same values for TensorBoard."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import read_json_lines, write_errors, write_text
from ftcore.output import warn
from ftcore.training.distributed import all_reduce_sum, world_size
from ftcore.training.loss import Batch


class Meter:
    """Mean loss and throughput of the optimizer steps since the last `flush`, over all ranks.

    `losses` is part of the run's saved state, so that a resumed run logs the same means.
    """

    def __init__(self, losses: list[float]) -> None:
        self._losses = losses
        self._smoothed_loss: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._examples = self._tokens = 0
        self._start = time.perf_counter()

    def add(self, loss: float, batches: Sequence[Batch]) -> None:
        """Count one optimizer step: its loss and its micro-batches."""
        self._losses.append(loss)
        self._smoothed_loss = loss if self._smoothed_loss is None else 0.9 * self._smoothed_loss + 0.1 * loss
        self._examples += sum(len(batch["index"]) for batch in batches)
        self._tokens += sum(int(batch["attention_mask"].sum()) for batch in batches if len(batch["index"]))

    def postfix(self) -> str:
        """Smoothed loss and tokens per second, for the progress bar."""
        tokens = self._tokens * world_size()  # an estimate, without a collective at every step
        rate = tokens / (time.perf_counter() - self._start)
        return f"loss {self._smoothed_loss:.3f}, {rate:,.0f} tok/s"

    def flush(self) -> dict[str, float]:
        """Return the averages and reset them. Tokens are those of input_ids, without padding."""
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
        """Exclude a validation from the measured time."""
        pause = time.perf_counter()
        yield
        self._start += time.perf_counter() - pause


class MetricsLog:
    """metrics.jsonl, one JSON object per line, and TensorBoard event files where tensorboard is installed."""

    def __init__(self, path: Path, tensorboard: Path) -> None:
        self._path = path
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._purge_step: int | None = None

    def append(self, metrics: dict[str, Any]) -> None:
        """Write one line. NaN and infinity are left out, since JSON has neither."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        with write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        if self._writer is None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # optional dependency

            self._writer = SummaryWriter(str(self._tensorboard), purge_step=self._purge_step)
        if self._writer is not None:
            for name in finite.keys() - {"step", "epoch"}:
                self._writer.add_scalar(name, finite[name], finite["step"])
            self._writer.flush()

    def read(self) -> list[dict[str, Any]]:
        """The lines; other ones, which `append` has not written, are skipped with a warning."""
        return read_json_lines(self._path, warn, _is_line)

    def truncate(self, step: int) -> None:
        """Drop everything after `step`, from which a resumed run continues."""
        kept = [line for line in self.read() if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._purge_step = step + 1  # TensorBoard then ignores later steps in older event files


def _is_line(line: dict[str, Any]) -> bool:
    return type(line.get("step")) is int and all(type(value) in (int, float) for value in line.values())
