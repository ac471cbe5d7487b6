"""What every test shares: where real data lies, and one thread."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("FTCORE_REAL_DATA", ROOT.parent / "shared" / "data"))


torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real vocabularies and data sets, which are not part of this repository."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data sets are not at {REAL_DATA} (set FTCORE_REAL_DATA)")
    return REAL_DATA
