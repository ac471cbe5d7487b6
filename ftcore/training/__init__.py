"""Training from Python: a run from options, and the parts of a loop of your own. See docs/python.md."""

# ruff: noqa: F401  # __all__ is computed
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.train import prepare, train
    from ftcore.training.callbacks import Callback
    from ftcore.training.distributed import rank
    from ftcore.training.loss import TokenLoss, batch_loss, count_targets, target_logits
    from ftcore.training.optim import adafactor, adamw, learning_rate, set_learning_rate
    from ftcore.training.options import TrainOptions
    from ftcore.training.run import Run
    from ftcore.training.scoring import score_answers, score_loss

# Imported when first used: commands read their options, which are in this package, before torch is imported.
_MODULES = {
    "ftcore.train": ("prepare", "train"),
    "ftcore.training.callbacks": ("Callback",),
    "ftcore.training.distributed": ("rank",),
    "ftcore.training.loss": ("TokenLoss", "batch_loss", "count_targets", "target_logits"),
    "ftcore.training.optim": ("adafactor", "adamw", "learning_rate", "set_learning_rate"),
    "ftcore.training.options": ("TrainOptions",),
    "ftcore.training.scoring": ("score_answers", "score_loss"),
    "ftcore.training.run": ("Run",),
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
