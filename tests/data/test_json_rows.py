"""Objects are the same in every layout of JSON, one at a time, and errors name item and line."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore.data import json_rows as json_rows_module
from ftcore.data.rows import read_rows
from tests.helpers.case_runner import in_child, limit_address_space, memory

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab[{,"\\ é'), inner, max_size=3),
    max_leaves=6,
)
ROW = st.dictionaries(st.sampled_from(["source", "target", "é", 'a"]']), VALUE, min_size=1)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path, expected="rows")]


def layouts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Name of a file and its text, for each layout."""
    lines, indented = [json.dumps(row) for row in rows], json.dumps(rows, indent=1, ensure_ascii=False)
    return {
        "lines.jsonl": "\n".join(lines),
        "lines.json": "\n\n".join(lines) + "\n",
        "array.json": json.dumps(rows),
        "indented.json": indented,
        "array.jsonl": indented,
        "arrays.json": "".join(json.dumps([row]) + "\n" for row in rows),
        "objects.json": "\n".join(json.dumps(row, indent=2) for row in rows),
        "data.json": json.dumps({"version": "v2.0", "count": 1.5, "data": rows, "more": [1]}),
        "data-indented.json": json.dumps({"data": rows}, indent=2),
        "marks.json": "\ufeff" + "\ufeff".join(f"[{line}]\n" for line in lines),
    }


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=4), block=st.sampled_from([1, 10, 2**16]), zipped=st.booleans()
)
def test_rows_are_the_same_in_every_layout(
    tmp_path: Path, rows: list[dict[str, Any]], block: int, zipped: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows_module, "_BLOCK", block)
        for name, text in layouts(rows).items():
            content = gzip.compress(text.encode(), 1) if zipped else text.encode()
            assert read(write(tmp_path / (name + ".gz" * zipped), content)) == rows, name


@pytest.mark.parametrize("content", ["[]", " [ ]\n", '{"data": []}', '{"data": [], "more": {"data": [1]}}'])
def test_empty_arrays_have_no_rows(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path / "a.json", content)) == []


def test_errors_name_item_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"a": 1},\n {"a": 2}, {"a":\n 3}]')
    names = [where.removeprefix(f"{path}, ") for where, _ in read_rows(path, expected="rows")]
    assert names == ["item 1, line 1", "item 2, line 2", "item 3, line 2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n{"a": oops}\n]', "item 2, line 2: broken JSON: Expecting value (column 7)"),
        ('[{"a": 1},\n{"a":\noops}\n]', "item 2, line 3: broken JSON: Expecting value (column 1)"),
        ('[{"a": 1}\n{"a": 2}]', "item 2, line 2: broken JSON: '{' instead of ',' or ']'"),
        ('[{"a": 1}, {"a": ', "item 2: broken JSON: Expecting value (column 7)"),
        ('[{"a": 1},', "item 2: broken JSON: Expecting value (column 1)"),
        ('[{"a": 1}', "item 2, line 1: broken JSON: the end of the file instead of ',' or ']'"),
        ('[{"a": 1}] x', "item 2: broken JSON: Expecting value (column 1)"),
        ('[{"a": 1}, ["b"]]', "item 2, line 1: ['b'] is not a record; expected an object {...}"),
        ('[{"a": 1}, 12', "item 2, line 1: 12 is not a record"),
        ('[{"a": NaN}]', "item 1: broken JSON: 'NaN' is not a finite number"),
        ('[{"a": ' + "[" * 9999, "item 1: broken JSON: more than 100 levels"),
        ('[{"a": "\\ud800"}]', "item 1: broken JSON: a \\u escape of a lone surrogate"),
        ('[{"a": 1},\n{"a": "\0"}]', "line 2: a NUL character"),
        ('{"data": [{"a": 1}]', "item 2, line 1: broken JSON: the end of the file instead of ',' or '}'"),
        ('{"data": [{"a": 1}], 1}', "item 2, line 1: broken JSON: '}' instead of ':'"),
        ('{\n"a": 1,\n}', "item 1, line"),
    ],
)  # fmt: skip
def test_broken_json(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, {message}")


def test_a_large_array_is_not_held_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"text": "word " * 2000}] * 1000))  # 10 MB
    tracemalloc.start()
    try:
        count = sum(len(row["text"]) for _, row in read_rows(path, expected="rows"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000_000 and peak < 2e6


# Each begins with a text and goes on with a gigabyte of one repeated.
BOMBS = {
    "zeros": ("", "\0"),
    "a line": ("", "x"),
    "blanks": ("", " "),
    "brackets": ("", "["),
    "a string in a line": ('{"source": "', "x"),
    "a string in an array": ('[{"source": "', "x"),
    "a list in an object": ('{"data": [{"source": [0', ",0"),
    "a field": ('source,target\n"', "x"),
    "fields": ("source,target\n", "a,"),
}


def bomb(start: str, repeated: str) -> bytes:
    """A gzip file of one MB. Members of a gzip file may be concatenated."""
    return gzip.compress(start.encode(), 1) + gzip.compress(repeated.encode() * 2**23, 1) * (
        2**7 // len(repeated)
    )


@pytest.mark.parametrize("name", BOMBS)
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / ("a.csv.gz" if "field" in name else "a.json.gz"), bomb(*BOMBS[name]))
    assert path.stat().st_size < 10**7

    def refused() -> list[Any]:
        limit_address_space()
        before = memory()
        try:
            read(path)
        except ValueError as error:
            return [str(error), memory() - before]
        return ["read", 0]

    status, (message, used) = in_child(refused)
    assert status == 0
    assert str(path) in message and ("decompress the file first" in message or "NUL" in message)
    assert int(used) < 200 * 2**20
