"""ftcore: the reference implementation of T5 and GPT-2 in pure PyTorch.

The names most people need, imported when first used so that `import ftcore` costs nothing.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.checkpoints.checkpoint import load_model, save_model
    from ftcore.data.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["load_model", "load_tokenizer", "save_model"]


def lazily(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are imported from their modules (`homes`) when first used.

    A command's options are read before torch is imported, so no package on the way may import it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get


__getattr__ = lazily(
    __name__,
    {
        "load_model": "ftcore.checkpoints.checkpoint",
        "save_model": "ftcore.checkpoints.checkpoint",
        "load_tokenizer": "ftcore.data.tokenizer",
    },
)
