"""The lines of metrics.jsonl for TensorBoard too, where the extra `plot` (tensorboard) is installed."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Events:
    """Event files in a run's directory: `tensorboard --logdir runs` shows all runs below it.

    The file is opened by the first `add`, and flushed by each. Without tensorboard nothing happens.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._purge_from: int | None = None

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl, under the names that it has there."""
        if self._writer is None:
            if find_spec("tensorboard") is None:
                return
            from torch.utils.tensorboard import SummaryWriter  # an extra

            self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_from)
        for name in metrics.keys() - {"step", "epoch"}:
            if math.isfinite(metrics[name]):
                self._writer.add_scalar(name, metrics[name], metrics["step"])
        self._writer.flush()

    def forget_after(self, step: int) -> None:
        """TensorBoard leaves out what older files have of later steps; a resumed run writes it again."""
        self._purge_from = step + 1
