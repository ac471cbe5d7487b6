"""A Hugging Face directory <-> a model: configuration, weights, hub. Names are imported when first used."""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.checkpoints.checkpoint import (
        load_as,
        load_model,
        model_from_config,
        new_model,
        save_model,
    )
    from ftcore.checkpoints.hub import resolve_directory

__all__ = ["load_as", "load_model", "model_from_config", "new_model", "resolve_directory", "save_model"]

__getattr__ = lazily(
    __name__,
    {
        "load_as": "ftcore.checkpoints.checkpoint",
        "load_model": "ftcore.checkpoints.checkpoint",
        "model_from_config": "ftcore.checkpoints.checkpoint",
        "new_model": "ftcore.checkpoints.checkpoint",
        "resolve_directory": "ftcore.checkpoints.hub",
        "save_model": "ftcore.checkpoints.checkpoint",
    },
)
