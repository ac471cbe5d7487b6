"""Faster decoding and training, at the price of readability."""

from ftcore.fast.decoding import prepare_for_decoding
from ftcore.fast.training import prepare_for_training

__all__ = ["prepare_for_decoding", "prepare_for_training"]
