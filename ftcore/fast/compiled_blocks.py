"""Former import path, until training/setup.py calls `prepare_for_training`."""

from ftcore.fast.compiler import compile_blocks as compile_blocks
