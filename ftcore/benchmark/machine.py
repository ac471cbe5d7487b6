"""What this machine can do at most, measured: the limits that no program on it passes."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}  # of int8 only weights are
_TRIES = 7


@dataclass(frozen=True)
class Machine:
    name: str
    threads: int
    device: str
    bandwidth: float  # bytes read from memory in a second
    flops: float  # of a large matrix product in the case's precision, in a second

    def lines(self) -> list[str]:
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        where = threads if self.device == "cpu" else self.device
        return [
            f"{self.name}, {where}, torch {torch.__version__}: reads {self.bandwidth / 1e9:.0f} GB/s "
            f"and multiplies matrices at {self.flops / 1e9:,.0f} GFLOP/s (both measured)."
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"torch": torch.__version__, "python": platform.python_version()}


def measure_machine(device: str, dtype: str, threads: int, *, quick: bool = False) -> Machine:
    """The best of several tries, as a limit should be."""
    torch.set_num_threads(threads)
    on_cuda = torch.device(device).type == "cuda"
    bytes_read = 2**31 if on_cuda else 2**26 if quick else 2**29  # far more than caches hold
    numbers = torch.ones(bytes_read // 4, device=device)
    width = 8192 if on_cuda else 256 if quick else 2048
    matrix = torch.ones(width, width, dtype=_DTYPES[dtype], device=device)
    return Machine(
        name=torch.cuda.get_device_name(device) if on_cuda else _processor(),
        threads=threads,
        device=device,
        bandwidth=bytes_read / _best(lambda: numbers.sum(), device),
        flops=2 * width**3 / _best(lambda: matrix @ matrix, device),
    )


def _best(work: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _processor() -> str:
    """ "AMD EPYC 9554, 2 cores with AVX512" """
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores with {torch.backends.cpu.get_cpu_capability()}"
