"""Looking inside: where two modules that should compute the same part ways, and what the mistake probably is.

Read `compare.py` first. `recording.py` holds the hooks, `report.py` the table and how close is close enough,
`causes.py` the mistakes that are recognised, `trial.py` how one is tried out.
"""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.study.compare import assert_same_as_reference, compare_modules, spread_weights

__all__ = ["assert_same_as_reference", "compare_modules", "spread_weights"]

__getattr__ = lazily(
    __name__,
    {
        "assert_same_as_reference": "ftcore.study.compare",
        "compare_modules": "ftcore.study.compare",
        "spread_weights": "ftcore.study.compare",
    },
)
