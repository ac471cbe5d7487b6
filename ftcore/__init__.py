"""ftcore: the reference implementation of T5 and GPT-2 in pure PyTorch.

The names most people need, imported when first used so that `import ftcore` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.data.tokenizer import load_tokenizer
    from ftcore.models.checkpoint import load_model, save_model

__version__ = "0.1.0"
__all__ = ["load_model", "load_tokenizer", "save_model"]

_HOME = {
    "load_model": "ftcore.models.checkpoint",
    "save_model": "ftcore.models.checkpoint",
    "load_tokenizer": "ftcore.data.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ftcore' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
