"""Former import path, until training/setup.py calls `prepare_for_training`."""

from ftcore.fast.training import tune_malloc as keep_freed_memory

__all__ = ["keep_freed_memory"]
