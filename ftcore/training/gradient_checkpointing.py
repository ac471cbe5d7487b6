"""Gradient checkpointing (Chen et al. 2016): less memory for activations, paid with a second forward pass."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from ftcore.models import Model
from ftcore.training.blocks import blocks, train_with


def checkpoint_blocks(model: Model) -> None:
    """Let every block keep nothing but its inputs for the backward pass, and compute the rest again there.

    Dropout draws the same numbers again, so the gradients are the same bit for bit. A hook on a block runs
    once; one on a module inside it runs again in the backward pass. A block with a cache, which a second pass
    would fill twice, is what it was.
    """
    for block in blocks(model):
        train_with(block, partial(checkpoint, block.forward, use_reentrant=False))
