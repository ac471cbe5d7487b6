"""ftcore against transformers over the whole matrix: a part of it always, 500 configurations a family on demand.

    python -m pytest tests/parity -m study -s

prints what was covered and how near the bounds anything came.
"""

import pytest
from configurations import VARIANTS, Configuration, configurations
from hypothesis import HealthCheck, Phase, given, seed, settings
from matrix import Ledger, check

PART, WHOLE = 15, 500


def run(family: str, count: int, ledger: Ledger) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # what fails is small already, and shrinking takes long
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @seed(2026)
    @given(configurations(family))
    def matrix(configuration: Configuration) -> None:
        check(configuration, ledger)

    matrix()


@pytest.mark.parametrize("family", VARIANTS)
def test_part_of_the_matrix(family):
    run(family, PART, Ledger())


@pytest.mark.study  # the whole matrix
@pytest.mark.parametrize("family", VARIANTS)
def test_the_whole_matrix(family):
    ledger = Ledger()
    try:
        run(family, WHOLE, ledger)
    finally:
        print(f"\n{family}\n\n{ledger}")
