"""ftcore: the reference implementation of T5 and GPT-2 in pure PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.checkpoints.checkpoint import load_model, save_model
    from ftcore.data.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["load_model", "load_tokenizer", "save_model"]

# Imported when first used: `import ftcore` is fast, and commands read their options before torch is imported.
_MODULES = {
    "load_model": "ftcore.checkpoints.checkpoint",
    "save_model": "ftcore.checkpoints.checkpoint",
    "load_tokenizer": "ftcore.data.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
