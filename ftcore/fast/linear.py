"""Former import path, until training/loss.py uses `F.linear`."""

from ftcore.fast.layers import linear as linear
