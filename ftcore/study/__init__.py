"""Looking inside: where two modules that should compute the same part ways, and what the mistake probably is.

Read `compare.py` first. `recording.py` holds the hooks, `report.py` the table and how close is close enough,
`causes.py` the mistakes that are recognised.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.study.compare import assert_same_as_reference, compare_modules, spread_weights

__all__ = ["assert_same_as_reference", "compare_modules", "spread_weights"]

_HOME = {
    "assert_same_as_reference": "ftcore.study.compare",
    "compare_modules": "ftcore.study.compare",
    "spread_weights": "ftcore.study.compare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ftcore.study' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
