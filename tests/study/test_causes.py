"""Each mistake gets its name, correct layers are equal, and what is not known gets no invented cause."""

import pytest
from mistakes import MISTAKES, Case, case

from ftcore.study import compare_modules
from ftcore.study.report import Report


def report_of(case: Case, **options: object) -> Report:
    return compare_modules(
        case.mine,
        case.reference,
        case.inputs,
        reference_inputs=case.reference_inputs,
        where=case.where,
        **options,
    )


ALL = [
    pytest.param(family, mistake, name, id=f"{family}-{mistake.__name__}")
    for family, mistakes in MISTAKES.items()
    for mistake, name in mistakes.items()
]


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize(("family", "mistake", "name"), ALL)
def test_a_mistake_is_named(family, mistake, name, is_ours, monkeypatch):
    spoilt = case(family, is_ours, monkeypatch)
    mistake(spoilt)
    report = report_of(spoilt, backward=False)
    assert [cause.name for cause in report.causes] == [name], str(report)
    (cause,) = report.causes
    half = name == "half precision"  # its rounding is the difference, and stays
    assert cause.after < (1e-2 if half else cause.before / 4)
    assert cause.module == report.culprit
