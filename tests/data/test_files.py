"""Rows are the same from all formats, and whatever a file contains, it is read or refused by name."""

import csv
import gzip
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ftcore.data import CORPUS_TASKS, TASKS, Record, read_records
from ftcore.data.files import expand_files
from ftcore.data.rows import read_rows

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": "Ada lived in London.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Where did Ada live?",
                            "is_impossible": False,
                            "answers": [{"text": "London", "answer_start": 13}],
                        }
                    ],
                }
            ],
        }
    ],
}
ROWS: dict[str, dict[str, Any]] = {
    "qa": {"context": "Ada lived in London.", "question": "Where?", "answers": {"text": ["London"]}},
    "emotion": {"text": "i am late", "label": "fear"},
    "text2text": {"source": "b a", "target": "a b"},
    "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}
RECORD_TASKS = [task for task in TASKS if task not in CORPUS_TASKS]
SQUAD_RECORD = Record(
    "question: Where did Ada live? context: Ada lived in London.",
    "London",
    ("London",),
    "Ada lived in London.",
)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(*rows: dict[str, Any]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def read(task: str, path: Path, **arguments: Any) -> list[Record]:
    return read_records(task, path, decoder_only=False, **arguments)


def records_or_error(task: str, path: Path) -> list[Record] | None:
    """The records, or None for a file that is refused in one printable line that names it."""
    try:
        return read(task, path)
    except ValueError as error:
        message = str(error)
        assert str(path) in message and message.isprintable() and len(message) < 700, message
        return None


def positions(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield (key,)
        yield from ((key, *rest) for rest in positions(child))


def replaced(value: Any, position: tuple[Any, ...], new: Any) -> Any:
    if not position:
        return new
    copy = value.copy()
    copy[position[0]] = replaced(copy[position[0]], position[1:], new)
    return copy


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just("<huge number>")  # see `dump`
    | st.floats()
    | st.text(st.characters())  # also lone surrogates and control characters
    | st.sampled_from(["\x1b[31m" * 300, "['a' 'b']", "{'text': array(['a'])}", "(" * 3000 + ")"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=8,
)


def dump(value: Any) -> str:
    return json.dumps(value).replace('"<huge number>"', "9" * 5000)  # more digits than Python converts


EVERY_PLACE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(EVERY_PLACE, max_examples=300)
@given(position=st.sampled_from(list(positions(SQUAD))), value=ANY_JSON)
def test_any_value_at_any_place_of_a_squad_document(
    tmp_path: Path, position: tuple[Any, ...], value: Any
) -> None:
    path = write(tmp_path / "a.json", dump(replaced(SQUAD, position, value)))
    records_or_error("qa", path)


@settings(EVERY_PLACE, max_examples=300)
@given(
    place=st.sampled_from([(task, position) for task in RECORD_TASKS for position in positions(ROWS[task])]),
    value=ANY_JSON,
    suffix=st.sampled_from([".json", ".jsonl", ""]),
)
def test_any_value_at_any_place_of_a_line(
    tmp_path: Path, place: tuple[str, tuple[Any, ...]], value: Any, suffix: str
) -> None:
    task, position = place
    row = replaced(ROWS[task], position, value)
    records_or_error(task, write(tmp_path / f"a{suffix}", dump(ROWS[task]) + "\n" + dump(row)))


@settings(EVERY_PLACE, max_examples=300)
@example(task="qa", content='""1', suffix=".tsv")
@given(
    task=st.sampled_from(TASKS[:2]),
    content=st.text(st.sampled_from("{}[]()\",;:'\\ \n\r\0\ufeff\x1b1ae"), max_size=40)
    | st.binary(max_size=40),
    suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt"]),
)
def test_any_content(tmp_path: Path, task: str, content: str | bytes, suffix: str) -> None:
    records_or_error(task, write(tmp_path / f"a{suffix}", content))


# --- JSON lines and CSV

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))
SCALAR = TEXT | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
ANSWERS = (
    SCALAR
    | st.lists(SCALAR, max_size=3)
    | st.lists(st.fixed_dictionaries({"text": SCALAR, "answer_start": st.integers()}), max_size=2)
    | st.fixed_dictionaries({"text": SCALAR | st.lists(SCALAR, max_size=3)})
)


@settings(EVERY_PLACE, max_examples=300)
@given(
    answers=ANSWERS,
    key=st.sampled_from(["answer", "answers"]),
    question=SCALAR,
    is_impossible=st.booleans(),
    write_value=st.sampled_from([str, json.dumps]),
)
@example(["Bonn", "Bonn city"], "answers", "Where?", False, str)
@example({"text": ["Rome"], "answer_start": [13]}, "answers", "Where?", False, str)
@example(["it's", '"so"'], "answers", "Where?", False, str)
def test_answers_are_the_same_in_json_lines_and_csv(
    tmp_path: Path, answers: Any, key: str, question: Any, is_impossible: bool, write_value: Any
) -> None:
    row = {"context": "c", "question": question, key: answers, "is_impossible": is_impossible}
    lines = write(tmp_path / "a.jsonl", json_lines(row))
    as_text = write_value(answers) if isinstance(answers, list | dict) else answers
    cells = write(tmp_path / "a.csv", table(row | {key: as_text}))
    assert records_or_error("qa", cells) == records_or_error("qa", lines)


@settings(EVERY_PLACE, max_examples=200)
@given(label=SCALAR | st.lists(SCALAR), text=SCALAR)
@example(4, "fine")
@example(True, "fine")
@example(["joy"], "fine")
def test_labels_are_the_same_in_json_lines_and_csv(tmp_path: Path, label: Any, text: Any) -> None:
    row = {"text": text, "label": label}
    lines, cells = write(tmp_path / "a.jsonl", json_lines(row)), write(tmp_path / "a.csv", table(row))
    assert records_or_error("emotion", cells) == records_or_error("emotion", lines)


@pytest.mark.parametrize("label", [4, True, 2.5])
def test_labels_may_be_numbers(tmp_path: Path, label: object) -> None:
    (record,) = read("emotion", write(tmp_path / "a.jsonl", json_lines({"text": "fine", "label": label})))
    assert record.target == str(label)


@pytest.mark.parametrize(
    "answers",
    [
        "['Bonn' 'Bonn city']",  # a NumPy array as text
        "{'text': array(['Rome'], dtype=object), 'answer_start': array([13])}",
        "['Rome', 'Ro",  # a spreadsheet's cell is cut at 32,767 characters
        "array(['Rome'], dtype=object)",
        "['Rome'] or ['Bonn']",
        "{'Rome'}",
        "[b'Rome']",
        "['\\ud83d']",
        "[" * 500 + "'Rome'" + "]" * 500,
    ],
)
def test_lists_that_cannot_be_read_are_no_answers(tmp_path: Path, answers: str) -> None:
    row = {"context": "c", "question": "q", "answers": answers}
    for path in (write(tmp_path / "a.csv", table(row)), write(tmp_path / "a.jsonl", json_lines(row))):
        with pytest.raises(
            ValueError, match=r"line [12]: key 'answers' is .*cannot be read; write it as JSON"
        ):
            read("qa", path)


@pytest.mark.parametrize("answer", ["[sic]", "{sigh}", "(the 'big' one)", "(1815)", "1815", "[1] and [2]"])
def test_answers_with_brackets_are_text(tmp_path: Path, answer: str) -> None:
    row = {"context": "c", "question": "q", "answer": answer}
    assert read("qa", write(tmp_path / "a.csv", table(row)))[0].target == answer


def test_fields_of_csv_may_exceed_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    row = {"source": "x " * 100_000, "target": "y"}
    assert read("text2text", write(tmp_path / "a.csv", table(row)))[0].source == row["source"]


# --- what a file should not contain


@pytest.mark.parametrize(
    ("task", "name", "content", "skipped"),
    [
        ("emotion", "a.txt", "text;label\nfine;joy\n", [1]),
        ("emotion", "a.txt", "Text; Label\r\nfine;joy\r\n", [1]),
        ("emotion", "a.csv", "text,label\nfine,joy\ntext,label\n", [3]),
        ("emotion", "a.csv", "text,label\nfine,joy\n\ufefftext,label\n", [3]),
        (
            "emotion",
            "a.jsonl",
            json_lines({"text": "text", "label": "label"}, {"text": "fine", "label": "joy"}),
            [1],
        ),
    ],
)
def test_headers_are_no_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture, task: str, name: str, content: str, skipped: list[int]
) -> None:
    path = write(tmp_path / name, content)
    assert [record.target for record in read(task, path)] == ["joy"]
    warnings = [
        f"warning: {path}, line {line}: names of columns, not an example: skipped\n" for line in skipped
    ]
    assert capsys.readouterr().err == "".join(warnings)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(tmp_path: Path, end: str, mark: str) -> None:
    """Also in the middle, as after concatenating files."""
    for name, content in (
        ("a.jsonl", json_lines(ROWS["emotion"]) * 2),
        ("a.txt", "i am late;fear\n" * 2),
        ("b.csv", table(ROWS["emotion"], ROWS["emotion"])),
    ):
        lines = content.splitlines()
        path = write(tmp_path / name, "".join(mark + line + end for line in lines))
        (first, second) = read("emotion", path)
        assert first == second == Record("Emotion: i am late", "fear", ("fear",))
        assert second.where == f"{path}, line {len(lines)}"


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("emotion", "a.txt", "fine;joy\nfi\0ne;joy\n", "a.txt, line 2: a NUL character"),
        ("emotion", "a.csv", "text,label\nfine,joy\n\0\0\0\0", "a.csv, line 3: a NUL character"),
        ("emotion", "a.csv", "text,text,label\na,b,joy\n", "a.csv, line 1: 2 columns have the name 'text'"),
        ("emotion", "a.csv", 'text,label\nfine,joy\n"fine\n,joy\n', "a.csv, line 3: broken CSV"),
        ("text2text", "a.json", '{"source": "a", "target": }', "a.json, line 1: broken JSON"),
        ("text2text", "a.json", '{"source" "a"}\n{"source": "a"}\n', "a.json, line 1: broken JSON"),
        ("text2text", "a.jsonl", '{"source": "a", "target": NaN}', "a.jsonl, line 1: broken JSON: 'NaN'"),
        ("text2text", "a.jsonl", '{"source": ' + "[" * 100_000, "a.jsonl, line 1: broken JSON: more than"),
        ("text2text", "a.json", '{"source": ' + "[" * 100_000, "a.json, line 1: broken JSON: more than"),
        ("text2text", "a.jsonl", json_lines({"a" * 10**6: 1}), "line 1: no key 'source' (found: aaaa"),
        ("text2text", "a.jsonl", json_lines({"\x1b[2J\x9b": 1}), r"(found: \x1b[2J\x9b)"),
        ("text2text", "a.csv", "source,target\r\n", "a.csv: no records"),
        ("text2text", "a.json", "\n" * 100_000, "a.json: no records"),
        ("emotion", "a.txt", b"fine;joy\ncaf\xc3", "a.txt, line 2: not UTF-8 (byte 0xc3)"),
        ("qa", "a.json", "version https://git-lfs.github.com/spec/v1\n", "a.json: a git-lfs pointer"),
    ],
)  # fmt: skip
def test_errors_name_the_place(
    tmp_path: Path, task: str, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        read(task, write(tmp_path / name, content))
    assert message in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_formats_are_found_by_content(tmp_path: Path) -> None:
    for number, content in enumerate([json_lines(ROWS["text2text"]), table(ROWS["text2text"])]):
        (record,) = read("text2text", write(tmp_path / f"{number}.txt", content))
        assert (record.source, record.target) == ("b a", "a b")


# --- delimiters

NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
CELLS = st.text(st.sampled_from('ab,;|\t"\n é'), min_size=1).filter(str.strip)


@settings(EVERY_PLACE, max_examples=100)
@given(
    pairs=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=3),
    delimiter=st.sampled_from(list(NAMES)),
    name=st.sampled_from(["a.csv", "a.tsv", "a.txt", "a.csv.gz"]),
)
def test_any_delimiter_is_found(
    tmp_path: Path, pairs: list[tuple[str, str]], delimiter: str, name: str
) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("source", "target"), *pairs])
    content = file.getvalue().encode()
    path = write(tmp_path / name, gzip.compress(content, 1) if name.endswith("gz") else content)
    assert [(record.source, record.target) for record in read("text2text", path)] == pairs


@pytest.mark.parametrize("delimiter", NAMES)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_another_delimiter_than_the_suffix_promises_is_said(
    tmp_path: Path, delimiter: str, name: str, capsys: pytest.CaptureFixture
) -> None:
    first = "id" if name == "a.txt" else '"an id,,, with ||| and ;;; in quotes"'
    path = write(tmp_path / name, delimiter.join([first, "source", "target"]) + "\n")
    with pytest.raises(ValueError, match="no records"):
        read("text2text", path)
    promised = {"a.csv": ",", "a.tsv": "\t", "a.txt": delimiter}[name]
    said = f"warning: {path}: its fields are separated by {NAMES[delimiter]}, not by {NAMES[promised]}\n"
    assert capsys.readouterr().err == (said if delimiter != promised else "")


def test_a_column_of_texts_has_no_delimiter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "a.csv", "text\nfine; really\n")
    assert [row for _, row in read_rows(path, expected="rows")] == [{"text": "fine; really"}]
    assert capsys.readouterr().err == ""


# --- several files


def test_files_are_read_in_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write(tmp_path / f"part-{number}.txt", f"text {number};joy\n")
    (tmp_path / "part-directory.txt").mkdir()
    lines = write(tmp_path / "a.jsonl", json_lines({"text": "text 0", "label": "joy"}))
    records = read_records("emotion", [lines, str(tmp_path / "part-*.txt"), lines], decoder_only=False)
    assert [record.source for record in records] == [f"Emotion: text {number}" for number in (0, 1, 10, 2)]
    assert [record.where for record in records[:2]] == [f"{lines}, line 1", f"{tmp_path}/part-1.txt, line 1"]
    assert len(read_records("emotion", str(tmp_path / "part-*"), decoder_only=False, limit=2)) == 2


def test_an_error_in_the_second_file_names_it(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", "fine;joy\n"), write(tmp_path / "b.txt", "fine;joy\nlow\n")]
    with pytest.raises(ValueError, match=r"b\.txt, line 2: no ';'"):
        read_records("emotion", files, decoder_only=False)
    tables = [write(tmp_path / f"{name}.csv", "text,label\n") for name in "abcdef"]
    with pytest.raises(ValueError, match=r"a\.csv, .*d\.csv and 2 more: no records"):
        read_records("emotion", tables, decoder_only=False)


def test_names_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    files = [write(folder / "x[1].txt", "fine;joy\n") for folder in (deep, tmp_path)]
    assert expand_files("~/x[1].txt") == [
        tmp_path / "x[1].txt"
    ]  # a name, although it has the form of a pattern
    assert expand_files(str(tmp_path / "**" / "*.txt")) == files
    assert expand_files([tmp_path / "x?1?.txt", "~/a/*/*"]) == files[::-1]
    for pattern in ("~/nothing-*.txt", "~/a*"):  # the second matches a directory
        with pytest.raises(FileNotFoundError, match=f"no file matches {re.escape(pattern)}"):
            expand_files([tmp_path / "x[1].txt", pattern])
    for name in ("~/nowhere", "~nosuchuser/a.txt"):
        with pytest.raises(FileNotFoundError, match=f"no such file: {name}"):
            expand_files(name)


# --- gzip


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz", "no-suffix"])
def test_gzip_files_are_read_as_what_is_inside(tmp_path: Path, name: str) -> None:
    row = ROWS["emotion"]
    text = {"a.csv.gz": table(row, row), "a.txt.gz": "i am late;fear\n" * 2}.get(name, json_lines(row, row))
    path = write(tmp_path / name, gzip.compress(text.encode("utf-8-sig")))
    first, second = read("emotion", path)
    assert first == second == Record("Emotion: i am late", "fear", ("fear",))
    parts = [gzip.compress(line.encode()) for line in text.splitlines(keepends=True)]
    assert read("emotion", write(path, b"".join(parts))) == [first, second]


zipped = partial(gzip.compress, mtime=0)  # without the time, the tests have the same names in all processes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(b"fine;joy\n" * 9999)[:-9], "a damaged gzip file"),
        (zipped(b"fine;joy\n")[:-8] + bytes(8), "a damaged gzip file (CRC check failed"),
        (zipped(b"fine;joy\n") + b"x", "a damaged gzip file"),
        (b"\x1f\x8b\x08" + b"\xff" * 99, "a damaged gzip file"),
        (zipped(b""), "the file is empty"),
        (zipped(b"fine;joy\ncaf\xe9;joy\n"), "line 2: not UTF-8 (byte 0xe9)"),
        (zipped(b"fine;joy\nfi\0ne;joy\n"), "line 2: a NUL character"),
        (zipped(zipped(b"fine;joy\n")), "compressed by gzip: decompress it first"),
    ],
)  # fmt: skip
def test_damaged_gzip_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "a.txt.gz", content)
    with pytest.raises(ValueError) as error:
        read("emotion", path)
    assert str(path) in str(error.value) and message in str(error.value)


# --- streams


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_only_the_records_of_a_limit_are_read(tmp_path: Path, name: str) -> None:
    row = ROWS["emotion"]
    lines = {".csv": table(row), ".txt": "i am late;fear\n"}.get(Path(name).suffix, json_lines(row))
    path = write(tmp_path / name, (lines + (lines.splitlines()[-1] + "\n") * 10_000).encode() + b"\xff\n")
    assert len(read("emotion", path, limit=1)) == 1
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"`limit` is {limit}; expected at least 1"):
            read("emotion", path, limit=limit)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize(
    "content", [json_lines(SQUAD), json_lines(*[{**ROWS["qa"], "id": i} for i in range(9999)])]
)
def test_a_pipe_is_read_once(tmp_path: Path, content: str) -> None:
    """As in `--train <(zcat questions.json.gz)`."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(content,))
    writer.start()
    records = read("qa", path)
    writer.join()
    assert len(records) == content.count("question")
    assert records[-1].target == "London"


def test_a_squad_document_on_several_lines(tmp_path: Path) -> None:
    assert read("qa", write(tmp_path / "a.json", "\n" + json.dumps(SQUAD, indent=1))) == [SQUAD_RECORD]
    assert read("qa", write(tmp_path / "b.json", json.dumps(SQUAD))) == [SQUAD_RECORD]
