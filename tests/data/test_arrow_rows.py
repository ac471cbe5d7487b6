"""Rows of parquet and arrow files equal those of JSON lines; a data set is its arrow files."""

import json
import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ftcore.data import read_records
from ftcore.data.files import expand_files
from ftcore.data.rows import read_rows

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

ROWS: list[dict[str, Any]] = [
    {"context": "Ada sews.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}, "n": 1},
    {
        "context": "Bo reads.",
        "question": "Who?",
        "answers": {"text": ["Bo", "B"], "answer_start": [0, 0]},
        "n": 2,
    },
    {"context": "Cy is late.", "question": None, "answers": {"text": [], "answer_start": []}, "n": None},
]
FEELINGS = {"text": ["fine", "low", "so"], "label": [0, 1, -1]}
TYPES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["joy", "sadness"])}
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def stream(data_set: Any, path: Path) -> None:
    with pyarrow.ipc.new_stream(path, data_set.features.arrow_schema) as file:
        file.write_table(data_set.data.table, max_chunksize=2)


WRITERS: dict[str, Callable[[Any, Path], object]] = {
    "a.parquet": lambda data_set, path: data_set.to_parquet(path),
    "a.feather": lambda data_set, path: feather.write_feather(data_set.data.table, path),
    "a.arrow": stream,
    "no-suffix": lambda data_set, path: data_set.to_parquet(path, batch_size=1),
    "saved": lambda data_set, path: data_set.save_to_disk(path, num_shards=2),
}


def read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [pair for file in expand_files(path) for pair in read_rows(file, expected="rows")]


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_those_of_json_lines(tmp_path: Path, name: str) -> None:
    WRITERS[name](datasets.Dataset.from_list(ROWS), tmp_path / name)
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = read(tmp_path / name)
    assert [row for _, row in rows] == [row for _, row in read(lines)]
    if name != "saved":
        assert [where for where, _ in rows] == [f"{tmp_path / name}, row {number}" for number in (1, 2, 3)]
    records = read_records("qa", tmp_path / name, decoder_only=False, limit=2)
    assert records == read_records("qa", lines, decoder_only=False, limit=2)
    with pytest.raises(ValueError, match=r"row [13]: key 'question' is None; expected a string"):
        read_records("qa", tmp_path / name, decoder_only=False)


@pytest.mark.parametrize("name", WRITERS)
def test_class_labels_are_names(tmp_path: Path, name: str) -> None:
    WRITERS[name](datasets.Dataset.from_dict(FEELINGS, features=TYPES), tmp_path / name)
    assert [row["label"] for _, row in read(tmp_path / name)] == ["joy", "sadness", None]
    first, second = read_records("emotion", tmp_path / name, decoder_only=False, limit=2)
    assert (first.target, second.target) == ("joy", "sadness")


def test_a_number_that_is_missing_is_no_text(tmp_path: Path) -> None:
    """pandas makes a column of floats of whole numbers among which one is missing."""
    table = pyarrow.table({"text": ["fine", "low"], "label": [1.0, float("nan")]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="row 2: key 'label' is nan; expected a string or a number"):
        read_records("emotion", tmp_path / "a.parquet", decoder_only=False)


def test_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    batch = pyarrow.RecordBatch.from_arrays([pyarrow.array(range(10**6))], ["n"])
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", batch.schema) as file:
        file.write_batch(batch)
    tracemalloc.start()
    try:
        rows = read_rows(tmp_path / "a.arrow", expected="rows")
        assert [row["n"] for _, row in islice(rows, 1002)] == list(range(1002))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](datasets.Dataset.from_dict({"text": [str(number) for number in range(9000)]}), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=rf"{name}: damaged after row \d+: ") as error:
        read(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table([[1], [2]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="two columns have the same name"):
        read(tmp_path / "a.parquet")


def test_directories(tmp_path: Path) -> None:
    data_set = datasets.Dataset.from_dict(FEELINGS)
    data_set.save_to_disk(tmp_path / "saved", num_shards=3)
    data_set.save_to_disk(tmp_path / "saved", num_shards=2)  # the three files stay
    assert [file.name for file in expand_files(tmp_path / "saved")] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    datasets.DatasetDict(train=data_set, test=data_set).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"several splits; name one: .*/both/test, .*/both/train$"):
        expand_files(tmp_path / "both")
    assert len(read(tmp_path / "both" / "train")) == 3
    with pytest.raises(
        ValueError,
        match=r"is a directory; expected a file, a pattern such as .*/\*\.jsonl, .* by save_to_disk$",
    ):
        expand_files(tmp_path)
    for state in ("{}", '{"_data_files": [{"filename": 1}]}', '{"_data_files": [[]]}', '{"_data_files": []}'):
        (tmp_path / "saved" / "state.json").write_text(state)
        with pytest.raises(ValueError, match=r"state\.json: no list of files under '_data_files'"):
            expand_files(tmp_path / "saved")


def test_data_sets_of_the_hub(tmp_path: Path) -> None:
    """A local directory in the place of a name, so that nothing is downloaded."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"source": "a", "target": "b"}\n')
    (folder / "test.jsonl").write_text('{"source": "c", "target": "d"}\n')
    (file,) = expand_files(f"hub:{folder}:train")
    assert file.is_relative_to(tmp_path / "cache")
    assert [row for _, row in read(file)] == [{"source": "a", "target": "b"}]
    records = read_records("text2text", f"hub:{folder}:default:train", decoder_only=False)
    assert [record.target for record in records] == ["b"]
    with pytest.raises(ValueError, match=r"hub:.*folder:valid: ValueError: Unknown split .valid."):
        expand_files(f"hub:{folder}:valid")
    with pytest.raises(ValueError, match=r"hub:.*: \w+: Couldn't find"):
        expand_files(f"hub:{tmp_path / 'nowhere'}:train")
    for name in ("hub:squad", "hub:squad:train[:10]", "hub::train", "hub:a:b:c:d"):
        with pytest.raises(
            ValueError, match="expected hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT, such as hub:r"
        ):
            expand_files(name)


@pytest.mark.parametrize("name", ["a.parquet", "hub:owner/name:train"])
def test_without_the_datasets_library(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet.write_table(pyarrow.table({"text": ["fine"]}), "a.parquet")
    for module in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    Path("a.txt").write_text("fine;joy\n")
    assert len(read_records("emotion", "a.txt", decoder_only=False)) == 1
    with pytest.raises(ValueError, match=rf"{name}: .*`pip install datasets` to (read|download)"):
        read_records("emotion", name, decoder_only=False)
