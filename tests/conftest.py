"""Configuration of all tests: one thread, the folder of real data, and tests skipped without transformers."""

import os
import re
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ftcore.training.curves import draw_curves as DRAW_CURVES

pytest.register_assert_rewrite("tests.helpers")

TESTS = Path(__file__).resolve().parent
REAL_DATA = Path(os.environ.get("FTCORE_REAL_DATA", TESTS.parents[1] / "shared" / "data"))

# Ctrl-C is ignored in a background job and by the commands that it starts, which some tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The models are tiny: more threads only add overhead, here and in the commands that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def needs_oracle(path: Path) -> bool:
    """Whether a test file imports transformers, itself or through oracle.py."""
    imported = r"^(import|from) (transformers|tests\.helpers\.oracle|tests\.helpers import oracle)\b"
    return bool(re.search(imported, path.read_text(encoding="utf-8"), re.M))


# transformers, the reference, needs a newer Python than ftcore. Without it, files that import it are skipped.
HAS_ORACLE = find_spec("transformers") is not None
collect_ignore = [] if HAS_ORACLE else [str(path) for path in TESTS.rglob("test_*.py") if needs_oracle(path)]


def pytest_report_header() -> str:
    if HAS_ORACLE:
        return "oracle: transformers"
    return (
        f"oracle: transformers is not installed (Python 3.11 or newer); {len(collect_ignore)} files left out"
    )


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Iterator[None]:
    """Runs draw no curves, which would take longer than the run; see `curves`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftcore.training.curves.draw_curves", lambda metrics: None)
        yield


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test draw curves, as they do for users."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("ftcore.training.curves.draw_curves", DRAW_CURVES)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real vocabularies and data sets, which are not part of this repository."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data sets are not at {REAL_DATA} (set FTCORE_REAL_DATA)")
    return REAL_DATA
