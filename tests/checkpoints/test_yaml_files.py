"""YAML files of options: values, errors with their lines, and files that want to do harm."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.checkpoints.yaml_files import MAX_BRACKETS, MAX_LENGTH, read_yaml

yaml = pytest.importorskip("yaml")


def read(folder: Path, text: str) -> dict[str, Any]:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return read_yaml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2", -2),
        ("010", 10),
        ("'3'", "3"),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        ("", None),
        ("~", None),
        ("null", None),
        ("[1, a, '2']", [1, "a", "2"]),
        ("\n- 1\n- b # two\n", [1, "b"]),
        ("runs/a b", "runs/a b"),
        ("é", "é"),
    ],
)
def test_values(tmp_path: Path, text: str, value: Any) -> None:
    got = read(tmp_path, f"# of last week\nlr: {text}\n")
    assert got == {"lr": value} and type(got["lr"]) is type(value)


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
)
# PyYAML writes the text "0E0" without quotes, which is a number here, as in JSON.
values |= st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=9
).filter(lambda text: not re.fullmatch(r"-?\d+(\.\d+)?[eE][+-]?\d+", text))


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from(["lr", "task", "no", "set"]), values | st.lists(values, max_size=3), min_size=1
    )
)
def test_what_pyyaml_and_json_write_is_read(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    assert read(folder, yaml.safe_dump(options, allow_unicode=True)) == options
    assert read(folder, json.dumps(options, ensure_ascii=False)) == options


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lr: 1\n\nlr: 2", ", line 3: broken YAML: key 'lr' twice"),
        ("a: 1\nlr: b: c", ", line 2: broken YAML: mapping values are not allowed here"),
        ("a: 1\nb: [", ", line 2: broken YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n\tb: 2", ", line 2: broken YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n? [b]\n: 2", ", line 2: broken YAML: a key that is not a text"),
        ("a: 1\n---\nb: 2", ", line 2: broken YAML: but found another document"),
        ("a: \x07", ": broken YAML: unacceptable character #x0007"),
        ('a: "\\ud800"', ": broken YAML: 'utf-8' codec can't encode"),
        ('a: "\\UFFFFFFFF"', ": broken YAML: "),
        (f"a: {'9' * 6000}", ": broken YAML: "),
        ("- lr\n- 1", ': expected lines such as "lr: 1e-3", found list'),
        ("# nothing", ': expected lines such as "lr: 1e-3", found NoneType'),
        ("", ": the file is empty"),
        ("a: &a [1]\nb: *a", ", line 1: broken YAML: anchors, aliases and tags (&, *, !) are not read"),
        ("a: 1\nb: *a", ", line 2: broken YAML: anchors, aliases and tags (&, *, !) are not read"),
        (
            "a: !!python/object/apply:os.system [touch executed]",
            ", line 1: broken YAML: anchors, aliases and tags",
        ),
        ("a: !!str 3", ", line 1: broken YAML: anchors, aliases and tags"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'run.yaml'}{complaint}") and "\n" not in str(error.value)


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 9)}]\n" for n in range(40))
SLOW = [
    "[" * MAX_BRACKETS,
    "[" * 9 * MAX_BRACKETS,
    "{" * MAX_LENGTH,
    "- " * 20_000,
    "? " * 20_000,
    "x" * MAX_LENGTH,
]


@pytest.mark.parametrize("text", [BOMB, *SLOW, "x" * (MAX_LENGTH + 1)])
def test_no_file_takes_long(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"run\.yaml"):
        read(tmp_path, text)
    assert time.process_time() - start < 3


def test_pyyaml_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(
        ValueError, match=r"run\.yaml: YAML is read by PyYAML, which is missing: pip install pyyaml$"
    ):
        read(tmp_path, "lr: 1")
