"""torch.compile: skips without a compiler, counts of compiled graphs."""

from collections.abc import Callable, Iterator

import pytest
import torch

from ftcore.fast.compiler import require_compiler


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips the test without a C++ compiler."""
    try:
        require_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def compilations(compiler: None) -> Iterator[Callable[[], int]]:
    """Number of graphs compiled during a test: `compilations()`."""
    from torch._dynamo.utils import counters  # takes seconds to import

    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
