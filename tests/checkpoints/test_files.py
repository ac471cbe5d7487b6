"""Text and JSON from files that may hold anything."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.checkpoints.files import (
    FORMATS,
    MAX_JSON_DEPTH,
    parse_json,
    read_json,
    read_json_lines,
    read_text,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(VALUES, st.booleans())
def test_parse_json_reads_what_json_writes(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only), "x.json") == value


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('{"a": NaN}', "x.json: broken JSON: 'NaN' is not a finite number"),
        ("[-Infinity]", "x.json: broken JSON: '-Infinity' is not"),
        ("1e999", "x.json: broken JSON: '1e999' is not"),
        ("9" * 5000, "x.json: broken JSON: Exceeds the limit"),
        ('"\\ud800"', "x.json: broken JSON: a \\u escape of a lone surrogate"),
        ('{"\\uDFFF": 1}', "x.json: broken JSON: a \\u escape of a lone surrogate"),
        ("[" * 100_000, f"x.json: broken JSON: more than {MAX_JSON_DEPTH} levels"),
        ('{"a":' * 1000 + "1" + "}" * 1000, f"more than {MAX_JSON_DEPTH} levels"),
        ("[" * 101 + "]" * 101, f"more than {MAX_JSON_DEPTH} levels"),
        ('{\n"a" 1}', "x.json, line 2: broken JSON: Expecting ':' delimiter (column 5)"),
        ("", "x.json: broken JSON: Expecting value"),
    ],
)
def test_parse_json_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_json(text, "x.json")
    assert complaint in str(error.value)
    assert len(str(error.value)) < 300


def test_brackets_in_strings_are_no_levels() -> None:
    assert parse_json(json.dumps(["[{" * 200]), "x.json") == ["[{" * 200]
    parse_json("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH, "x.json")


@pytest.mark.parametrize("start", FORMATS, ids=repr)
@pytest.mark.parametrize("read", [read_text, read_json])
def test_formats_are_named_by_their_first_bytes(start: bytes, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(start + b"\0 anything")
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == f"{path}: {FORMATS[start]}"


def test_formats_as_their_libraries_write_them(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, name in [
        (gzip.compress(b"{}", mtime=0), "gzip"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-32"), "UTF-32"),
        (b"\n  <!DOCTYPE HTML><html>", "a web page"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_json(path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_read_json_lines_skips_broken_lines_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_json_lines(path, pytest.fail) == []
    path.write_bytes(b'{"a": 1}\n\xff{\n{"a": \n[2]\n{"a": 3, "b": "\xe2\x80\xa8"}\n{"a": ')
    warnings: list[str] = []
    assert read_json_lines(path, warnings.append) == [{"a": 1}, {"a": 3, "b": "\u2028"}]
    assert [warning.partition(":")[0] for warning in warnings] == [f"{path}, line {n}" for n in (2, 3, 4)]
