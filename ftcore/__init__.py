"""ftcore: the reference implementation of T5 and GPT-2 in pure PyTorch.

The most used names, imported on first use, so that `import ftcore` is fast.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.checkpoints.checkpoint import load_model, save_model
    from ftcore.data.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["load_model", "load_tokenizer", "save_model"]


def lazily(package: str, modules: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports names on first use; `modules` maps each name to its module.

    Commands parse their options before torch is imported, so packages imported by then must not import it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return get


__getattr__ = lazily(
    __name__,
    {
        "load_model": "ftcore.checkpoints.checkpoint",
        "save_model": "ftcore.checkpoints.checkpoint",
        "load_tokenizer": "ftcore.data.tokenizer",
    },
)
