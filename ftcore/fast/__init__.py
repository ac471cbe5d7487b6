"""Speed at the expense of readability: models prepared for decoding and for training.

Optional: nothing outside imports this package unless it is asked for, by `--fast`, `--compile` or a call of
the two functions below. Private torch APIs are used in here only.
"""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.fast.decoding import prepare_for_decoding
    from ftcore.fast.training import prepare_for_training

__all__ = ["prepare_for_decoding", "prepare_for_training"]

__getattr__ = lazily(
    __name__,
    {
        "prepare_for_decoding": "ftcore.fast.decoding",
        "prepare_for_training": "ftcore.fast.training",
    },
)
