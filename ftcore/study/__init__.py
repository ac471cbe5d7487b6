"""Record and patch the activations of a model; compare two modules that should compute the same.

Activations: `hooks.py` records and patches them, `names.py` defines their names, `passes.py` joins the
forward passes of a generation into one tensor, and `lens.py` reads predictions from them.

Comparison: start with `compare.py`. `matching.py` aligns inputs, names and weights, `recording.py` records
every module call, `report.py` has the tolerance and the table. `causes.py` lists the known mistakes, and
`fault_injection.py` runs the reference with one of them.
"""

from ftcore.study.compare import assert_same_as_reference, compare_modules
from ftcore.study.hooks import patch, record
from ftcore.study.lens import logit_lens
from ftcore.study.matching import randomize_weights

spread_weights = randomize_weights  # deprecated alias, to be removed in the next release

__all__ = [
    "assert_same_as_reference",
    "compare_modules",
    "logit_lens",
    "patch",
    "randomize_weights",
    "record",
    "spread_weights",
]
