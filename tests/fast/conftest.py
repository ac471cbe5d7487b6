"""Counts the graphs that torch.compile compiles."""

from collections.abc import Callable, Iterator

import pytest
import torch

from ftcore.fast.compiler import require_compiler


@pytest.fixture
def compilations() -> Iterator[Callable[[], int]]:
    """Number of graphs compiled during a test: `compilations()`. Skips the test without a C++ compiler."""
    from torch._dynamo.utils import counters  # takes seconds to import

    try:
        require_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
