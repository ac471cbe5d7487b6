"""Looking inside: every activation of a model to see and to change, and two modules held against each other.

To see and to change, read `hooks.py`. `names.py` says what activations are called, and `passes.py` makes one
tensor of the many passes of a generation. `lens.py` is a first analysis, in a few lines.

Where two modules that should compute the same part ways, and what the mistake probably is: read `compare.py`.
`matching.py` says what of the two belongs together, `recording.py` lists the runs of all modules, `report.py`
holds the table and how close is close enough, `causes.py` the mistakes that are recognised, `trial.py` how
one is tried out, and `random_weights.py` weights under which mistakes show.
"""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.study.compare import assert_same_as_reference, compare_modules
    from ftcore.study.hooks import logit_lens, patch, record
    from ftcore.study.matching import randomize_weights

__all__ = [
    "assert_same_as_reference",
    "compare_modules",
    "logit_lens",
    "patch",
    "randomize_weights",
    "record",
]

__getattr__ = lazily(
    __name__,
    {
        "assert_same_as_reference": "ftcore.study.compare",
        "compare_modules": "ftcore.study.compare",
        "logit_lens": "ftcore.study.hooks",
        "patch": "ftcore.study.hooks",
        "record": "ftcore.study.hooks",
        "randomize_weights": "ftcore.study.matching",
    },
)
