"""What every test shares: one thread per worker is plenty for tiny models, and where real data lies."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("FTCORE_REAL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real vocabularies and data sets, which are not part of this repository."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data sets are not at {REAL_DATA} (set FTCORE_REAL_DATA)")
    return REAL_DATA
