"""Speed at the expense of readability: models prepared for decoding and for training.

Optional: the rest of ftcore imports this package only on request, by `--fast` or `--compile`, and works
without it. Private torch APIs are used in here only.
"""

from ftcore.fast.decoding import prepare_for_decoding
from ftcore.fast.training import prepare_for_training

__all__ = ["prepare_for_decoding", "prepare_for_training"]
