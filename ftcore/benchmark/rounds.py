"""The sides of a case take turns, round after round, each in a process of its own."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from ftcore.benchmark.order import Order

SIDES = ("ftcore", "transformers", "ctranslate2")  # ftcore first: the others are compared with it


@dataclass
class Measured:
    """What came of one side's rounds."""

    version: str = ""
    seconds: list[float] = field(default_factory=list)
    first: Any = None  # what the first round gave: ids, or losses
    peak_bytes: int | None = None
    missing: str | None = None  # why there is nothing


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles, within which the middle half lies."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def ratios(other: Measured, ours: Measured) -> Spread:
    """How many times ftcore's time the other takes: of each round, since a machine's pace drifts."""
    return Spread.of([theirs / mine for theirs, mine in zip(other.seconds, ours.seconds, strict=True)])


def installed_sides() -> list[str]:
    """CTranslate2 gets its models through transformers."""
    has_transformers = find_spec("transformers") is not None
    has_ctranslate2 = has_transformers and find_spec("ctranslate2") is not None
    return [side for side, here in zip(SIDES, (True, has_transformers, has_ctranslate2), strict=True) if here]


class Worker:
    """A side's process, as this one sees it."""

    def __init__(self, order: Order):
        command = [sys.executable, "-m", "ftcore.benchmark.worker", order.to_json()]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(BrokenPipeError):
                pipe.close()

    def hear(self) -> dict[str, Any]:
        """The next thing it says."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        return {
            "error": "killed, perhaps for want of memory" if status < 0 else f"ended with status {status}"
        }

    def round(self) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has died; `hear` says of what
            print(file=self._process.stdin, flush=True)
        return self.hear()

    def end(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.close()
        return self.hear()


def measure(orders: Sequence[Order], rounds: int) -> dict[str, Measured]:
    """Each side's seconds over `rounds` rounds, in turns, after one that warms up and is not counted."""
    found = {order.side: Measured() for order in orders}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for order in orders:
            worker = stack.enter_context(Worker(order))
            if _noted(worker.hear(), found[order.side]):
                workers[order.side] = worker
        for number in range(rounds + 1):
            for side, worker in list(workers.items()):
                message = worker.round()
                if not _noted(message, found[side]):
                    del workers[side]
                elif number == 0:
                    found[side].first = message["result"]
                else:
                    found[side].seconds.append(message["seconds"])
        for side, worker in workers.items():
            found[side].peak_bytes = worker.end().get("peak_bytes")
    return found


def _noted(message: dict[str, Any], measured: Measured) -> bool:
    """Whether the side can go on; notes why not."""
    measured.version = message.get("version", measured.version)
    measured.missing = message.get("cannot") or message.get("error")
    return measured.missing is None


def convert(order: Order) -> None:
    """Let a side make files of its own, in another process: that memory is not what is measured."""
    with Worker(replace(order, case=replace(order.case, kind="convert"))) as worker:
        worker.hear()
