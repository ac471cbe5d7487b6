"""Rows, quartiles, the table and JSON."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.benchmark.cases import Case, Job, growth_cases
from ftcore.benchmark.report import AXES, Quartiles, Row, draw_growth, report
from ftcore.benchmark.roofline import Machine
from ftcore.benchmark.worker import Measurement

MACHINE = Machine("Imagined processor", 2, "cpu", 44e9, 200e9)
GREEDY = Case("greedy", "generate", rows=2, source=16, target=10)
OURS = Measurement([0.5, 0.4, 0.6, 0.5, 0.5], [[3, 4]], 400_000_000, version="1.0")
FAST = replace(OURS, seconds=[0.25, 0.2, 0.3, 0.25, 0.25])
THEIRS = Measurement([1.0, 1.0, 1.0, 1.0, 1.0], [[3, 4]], 800_000_000, version="5.0")


def make_row(
    case: Case = GREEDY,
    theirs: Measurement = THEIRS,
    ours: Measurement = OURS,
    dtype: str = "fp32",
    dropout: float = 0.0,
) -> Row:
    job = Job("", case, "model", vocab_size=9, dtype=dtype, device="cpu", threads=2, dropout=dropout)
    return Row("gpt2", 9, job, {"ftcore": ours, "transformers": theirs}, roofline=0.2)


def test_the_json_of_a_row():
    values = make_row().to_dict()
    ours, theirs = values["results"]["ftcore"], values["results"]["transformers"]
    assert values["unit"] == "tokens/s"
    assert ours["rate"] == {"median": 40.0, "low": 40.0, "high": 40.0}
    assert theirs["rate"]["median"] == 20.0
    assert theirs["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert values["roofline_share"] == pytest.approx(0.4)
    assert ours["peak_bytes"] == 400_000_000
    assert theirs["agreement"] == "ids equal"
    assert (values["job"]["case"]["beams"], values["parameters"]) == (1, 9)


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
    theirs = Measurement(THEIRS.seconds, None)
    row = make_row(case, theirs)
    assert row.unit == unit
    assert row.rate("ftcore").median == pytest.approx(rate)


@pytest.mark.parametrize(
    ("kind", "theirs", "dtype", "agreement"),
    [
        ("generate", [[3, 4]], "fp32", "ids equal"),
        ("generate", [[3, 5]], "fp32", "ids DIFFER"),
        ("generate", [[3, 5]], "bf16", ""),
        ("generate", None, "fp32", ""),
        ("train", [2.0, 1.00003], "fp32", "loss within 3e-05"),
        ("train", [2.0, 1.01], "fp32", "loss DIFFERS within 1e-02"),
        ("train", [2.0, 1.01], "bf16", "loss within 1e-02"),
        ("train", [2.0, float("nan")], "fp32", "loss NOT FINITE"),
        ("train", [2.0, float("inf")], "bf16", "loss NOT FINITE"),
    ],
)
def test_agreement(kind, theirs, dtype, agreement):
    ours = Measurement([1.0], [[3, 4]] if kind == "generate" else [2.0, 1.0])
    row = make_row(Case("", kind, target=10), Measurement([1.0], theirs), ours, dtype)
    assert row.agreement("transformers") == agreement


def test_losses_with_dropout_are_not_compared():
    losses = Measurement([1.0], [2.0]), Measurement([1.0], [3.0])
    row = make_row(Case("", "train"), *losses, dropout=0.1)
    assert row.agreement("transformers") == ""
    assert "fp32, dropout 0.1; medians" in report([row], MACHINE)[1]


def table_of(rows: list[Row]) -> list[list[str]]:
    """The cells of the Markdown table, whose lines are equally long."""
    table = [line for line in report(rows, MACHINE) if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def as_fast(row: Row, ours: Measurement = FAST, way: str = "ftcore-fast") -> Row:
    return replace(row, results={way: ours, "transformers": row.results["transformers"]})


def test_the_table_is_markdown_with_a_line_for_each_backend():
    row = make_row()
    load = make_row(Case("load", "load"), Measurement(missing="MemoryError: too large"))
    head, _, *lines = table_of([row, as_fast(row), load])
    assert head == [
        "model", "row", "backend", "speed", "time / ftcore", "time / ftcore-fast", "of roofline",
        "peak memory", "agreement",
    ]  # fmt: skip
    assert lines == [
        ["gpt2", "greedy", "ftcore", "40 tokens/s", "", "", "40%", "400 MB", ""],
        ["gpt2", "greedy", "ftcore-fast", "80 tokens/s", "", "", "80%", "400 MB", ""],
        [
            "gpt2", "greedy", "transformers", "20 tokens/s", "2.00 (2.00–2.00)", "4.00 (4.00–4.00)", "",
            "800 MB", "ids equal",
        ],
        ["gpt2", "load", "ftcore", "0.5 s", "", "", "40%", "400 MB", ""],
        ["gpt2", "load", "transformers", "–", "", "", "", "–", ""],
    ]  # fmt: skip


def test_around_the_table_stand_machine_versions_and_reasons():
    failed = Measurement(missing="MemoryError: too large")
    rows = [make_row(), *(make_row(Case(name, "load"), failed) for name in ("load", "greedy"))]
    lines = report([*rows, as_fast(rows[1])], MACHINE)
    assert "Imagined processor" in lines[0] and "44 GB/s" in lines[0] and "200 GFLOP/s" in lines[0]
    assert "ftcore 1.0, transformers 5.0; fp32; medians of 5 rounds" in lines[1]
    assert lines[-2:] == ["", "transformers, gpt2 load, greedy: MemoryError: too large."]


def test_rows_of_the_json_are_marked_by_the_way_ftcore_runs():
    ways = {way: as_fast(make_row(), way=way).to_dict()["row"] for way in ("ftcore-fast", "ftcore-compiled")}
    assert ways == {"ftcore-fast": "greedy --fast", "ftcore-compiled": "greedy --compile"}


def test_progress_has_the_median_ratios():
    assert as_fast(make_row()).summary() == "ftcore-fast  80 tokens/s  transformers 4.00"


def test_a_ratio_is_taken_round_by_round():
    """The machine is slower by half in the last two rounds, which does not change the ratio."""
    ours, other = Measurement([1.0, 1.0, 1.0, 2.0, 2.0]), Measurement([3.0, 3.0, 3.0, 6.0, 6.0])
    assert make_row(ours=ours, theirs=other).ratio("transformers") == Quartiles(3.0, 3.0, 3.0)


def test_agreements_that_differ_are_listed_by_the_way_ftcore_runs():
    row = make_row()
    different = as_fast(row, replace(FAST, output=[[3, 5]]))
    assert table_of([row, different])[-1][-1] == "ftcore: ids equal; ftcore-fast: ids DIFFER"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_a_quarter_of_the_values_lies_on_either_side_of_the_quartiles(values):
    quartiles = Quartiles.of(values)
    assert quartiles.median == pytest.approx(statistics.median(values))
    below = [value for value in values if value <= quartiles.low * (1 + 1e-9)]
    above = [value for value in values if value >= quartiles.high * (1 - 1e-9)]
    assert min(len(below), len(above)) * 4 >= len(values)
    assert quartiles.low * (1 - 1e-9) <= quartiles.median <= quartiles.high * (1 + 1e-9)


def test_the_quartiles_of_five_are_the_second_and_the_fourth():
    assert Quartiles.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Quartiles(3.0, 2.0, 4.0)


def test_the_figure_of_growth_names_its_axes_and_has_its_legend_outside():
    pytest.importorskip("matplotlib")
    figure = draw_growth([make_row(case) for case in growth_cases(is_first=True)])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["ftcore", "transformers", "lower bound"]
    assert len(figure.axes) == 2 * len(AXES)
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert axes.get_xlabel() in AXES.values() and axes.get_ylabel()
    assert "0.5" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
