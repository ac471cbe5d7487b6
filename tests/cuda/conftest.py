"""Tests on a GPU: `python -m pytest -m cuda tests/cuda`. Without one they are skipped.

FTCORE_TEST_DEVICE=cpu runs them on the CPU, and FTCORE_TEST_DEVICE=pretended on the pretended device of
tests/helpers/pretended_cuda.py. Neither has CUDA's kernels; both show that the tests themselves work.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.helpers import parallel_runs, tape
from tests.helpers.pretended_cuda import PretendedCuda

NAME = os.environ.get("FTCORE_TEST_DEVICE", "cuda")
IS_REAL = NAME == "cuda"


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[torch.device]:
    if NAME == "pretended":
        with PretendedCuda():
            yield torch.device("cuda")
        return
    if IS_REAL and not torch.cuda.is_available():
        pytest.skip("no CUDA device; FTCORE_TEST_DEVICE=cpu and =pretended are dry runs")
    yield torch.device(NAME)


@pytest.fixture(scope="module", autouse=True)
def substitutes(device: torch.device) -> Iterator[None]:
    """In a dry run: tape.py instead of CUDA graphs, and blocks that are traced instead of compiled."""
    with pytest.MonkeyPatch.context() as patch:
        if not IS_REAL:
            patch.setattr("ftcore.fast.cuda_graph.capture", tape.capture)
            patch.setattr("ftcore.fast.compiler.compile_separately", parallel_runs.traced)
            patch.setattr("ftcore.fast.training.require_compiler", lambda device: None)
        yield


@pytest.fixture
def needs_compiler() -> None:
    if NAME == "pretended":
        pytest.skip("torch.compile asks for CUDA's random state: FTCORE_TEST_DEVICE=cpu")


@pytest.fixture
def needs_kernels() -> None:
    if not IS_REAL:
        pytest.skip("not in a dry run")


@pytest.fixture
def real_device() -> torch.device:
    """For processes of their own: the pretended device exists in this one only."""
    return torch.device("cuda" if IS_REAL else "cpu")
