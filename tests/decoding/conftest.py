"""Puts the random models of tests/models/oracle.py where the test files here can import them."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
torch.set_num_threads(1)
