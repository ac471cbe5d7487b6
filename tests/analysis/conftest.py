"""Puts what the test files here share where it can be imported."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
