"""Puts the oracle of tests/models, and what the test files here share, where they can be imported."""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]
torch.set_num_threads(1)  # the models are tiny: a second thread only waits
