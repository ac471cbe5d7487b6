"""What a row says of its measurements."""

from dataclasses import replace

import pytest

from ftcore.benchmark.cases import Case
from ftcore.benchmark.machine import Machine
from ftcore.benchmark.rounds import Measured
from ftcore.benchmark.report import Row, report

MACHINE = Machine("An imagined processor", 2, "cpu", 44e9, 200e9)
GREEDY = Case("greedy", "generate", rows=2, source=16, target=10)
OURS = Measured("1.0", [0.5, 0.4, 0.6, 0.5, 0.5], [[3, 4]], 400_000_000)
THEIRS = Measured("5.0", [1.0, 1.0, 1.0, 1.0, 1.0], [[3, 4]], 800_000_000)


def row(case: Case = GREEDY, theirs: Measured = THEIRS, ours: Measured = OURS, dtype: str = "fp32") -> Row:
    return Row("gpt2", case, dtype, {"ftcore": ours, "transformers": theirs}, limit=0.2, parameters=9)


def test_a_row_in_figures():
    told = row().to_dict()
    ours, theirs = told["sides"]["ftcore"], told["sides"]["transformers"]
    assert told["unit"] == "tokens/s"
    assert ours["rate"] == {"median": 40.0, "low": 40.0, "high": 40.0}
    assert theirs["rate"]["median"] == 20.0
    assert theirs["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert told["share_of_limit"] == pytest.approx(0.4)
    assert ours["peak_bytes"] == 400_000_000
    assert theirs["agreement"] == "ids equal"
    assert "ratio" not in ours


@pytest.mark.parametrize(
    ("case", "unit", "rate"),
    [
        (Case("load", "load"), "s", 0.5),
        (Case("prefill", "generate", source=100, target=1), "tokens/s", 200.0),
        (Case("greedy", "generate", source=100, target=10), "tokens/s", 20.0),
        (Case("train", "train", rows=4, steps=3), "examples/s", 24.0),
    ],
)
def test_units(case, unit, rate):
    theirs = Measured("5.0", THEIRS.seconds, None)
    measured = row(case, theirs)
    assert measured.unit == unit
    assert measured.rate("ftcore").median == pytest.approx(rate)


@pytest.mark.parametrize(
    ("kind", "theirs", "dtype", "told"),
    [
        ("generate", [[3, 4]], "fp32", "ids equal"),
        ("generate", [[3, 5]], "fp32", "ids DIFFER"),
        ("generate", [[3, 5]], "bf16", ""),
        ("generate", None, "fp32", ""),
        ("train", [2.0, 1.00003], "fp32", "loss within 3e-05"),
        ("train", [2.0, 1.01], "fp32", "loss DIFFERS within 1e-02"),
        ("train", [2.0, 1.01], "bf16", "loss within 1e-02"),
        ("train", [2.0, float("nan")], "fp32", "loss DIFFERS within nan"),
    ],
)
def test_agreement(kind, theirs, dtype, told):
    ours = Measured("1.0", [1.0], [[3, 4]] if kind == "generate" else [2.0, 1.0])
    measured = row(Case("", kind, target=10), Measured("5.0", [1.0], theirs), ours, dtype)
    assert measured.agreement("transformers") == told


def test_losses_under_dropout_have_no_equals():
    losses = Measured("5.0", [1.0], [2.0]), Measured("1.0", [1.0], [3.0])
    measured = replace(row(Case("", "train"), *losses, "fp32"), dropout=0.1)
    assert measured.agreement("transformers") == ""
    assert "fp32, dropout 0.1; medians" in report([measured], MACHINE)[1]


def test_the_table_is_markdown_of_one_width():
    lines = report(
        [row(), row(Case("load", "load"), Measured("5.0", missing="MemoryError: too large"))], MACHINE
    )
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells == [
        "gpt2", "greedy", "tokens/s", "40", "20", "2.00 (2.00–2.00)", "40%", "400 MB / 800 MB", "ids equal",
    ]  # fmt: skip
    assert "An imagined processor" in lines[0] and "44 GB/s" in lines[0] and "200 GFLOP/s" in lines[0]
    assert "transformers 5.0" in lines[1] and "medians of 5 rounds" in lines[1]
    assert lines[-1] == "transformers gpt2 load: MemoryError: too large."
    assert "–" in table[3]


def test_a_row_is_summed_up_for_those_who_wait():
    assert row().summary() == "  40 tokens/s, 2.00x transformers"
    missing = Measured("5.0", missing="does not train")
    assert row(theirs=missing).summary() == "  40 tokens/s, transformers does not train"
