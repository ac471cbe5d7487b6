"""Puts oracle.py, which the test files here share, where they can import it."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # the models are tiny: a second thread only waits
