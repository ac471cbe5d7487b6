"""Puts tests/models/oracle.py and tests/training/tiny_runs.py where the test files here can import them."""

import sys
from pathlib import Path

import torch

for folder in ("models", "training"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
torch.set_num_threads(1)
