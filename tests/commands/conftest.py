"""Puts tests/training/tiny_runs.py where the test files here can import it."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
torch.set_num_threads(1)
