"""Puts the oracle of tests/models, and what the test files here share, where they can be imported."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]
