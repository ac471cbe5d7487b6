"""Rows of parquet and arrow files, of directories of `save_to_disk`, and of data sets on the hub.

They need the extra `data`: the datasets library, which brings pyarrow.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftcore.checkpoints.files import parse_json, read_json
from ftcore.output import few, one_line

HUB = "hub:"  # a data set on the hub: hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT

_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow file", b"\xff\xff\xff\xff": "arrow stream"}
_ROWS = 1000  # to convert at a time


def arrow_format(path: Path) -> str | None:
    """The format of a parquet or arrow file, by its first bytes; None for other files and for pipes."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def arrow_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a parquet or arrow file: (where, row). Class labels become their names.

    Raises:
        ValueError: the file is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ValueError(f"{path}: a parquet or arrow file: `pip install datasets` to read it") from None
    number = 0
    try:
        for number, row in enumerate(_rows(path), 1):
            yield f"{path}, row {number}", row
    except Exception as error:  # pyarrow raises many unrelated types for damaged files
        raise ValueError(f"{path}: damaged after row {number}: {one_line(error)}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:  # a size in a damaged file is not allocated
        if arrow_format(path) == "parquet":
            from pyarrow.parquet import ParquetFile

            parquet = ParquetFile(file)
            schema, batches = parquet.schema_arrow, parquet.iter_batches(_ROWS)
        elif arrow_format(path) == "arrow file":
            reader = pyarrow.ipc.open_file(file)
            schema = reader.schema
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(file)
            schema = batches.schema
        if len(set(schema.names)) < len(schema.names):
            raise ValueError("two columns have the same name")
        labels = _class_labels(schema.metadata or {}, path)
        for batch in batches:
            batch.validate(full=True)  # reading damaged offsets would crash the process
            for start in range(0, batch.num_rows, _ROWS):
                for row in batch.slice(start, _ROWS).to_pylist():
                    yield row | {name: names.get(row[name]) for name, names in labels.items()}


def _class_labels(metadata: dict[bytes, bytes], path: Path) -> dict[str, dict[int, str]]:
    """The names of the labels of each column of class labels; -1 is a row without a label.

    The datasets library writes its column types to the metadata: {"info": {"features": {NAME: TYPE, ...}}}.
    """
    types = parse_json(metadata.get(b"huggingface", b"{}").decode(), path).get("info", {}).get("features", {})
    return {
        name: dict(enumerate(kind["names"]))
        for name, kind in types.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }


def saved_files(directory: Path) -> list[Path]:
    """The arrow files of a data set that `save_to_disk` wrote, in order.

    Raises:
        ValueError: the directory is not one of `save_to_disk`, or has several splits.
    """
    if (directory / "dataset_dict.json").is_file():
        splits = sorted(str(file.parent) for file in directory.glob("*/state.json"))
        raise ValueError(f"{directory}: a data set of several splits; name one: {few(splits)}")
    if not (directory / "state.json").is_file():
        raise ValueError(
            f"{directory} is a directory; expected a file, a pattern such as {directory / '*.jsonl'}, "
            "or a directory written by save_to_disk"
        )
    try:
        files = read_json(directory / "state.json")["_data_files"]
        names = [Path(file["filename"]).name for file in files]
    except (KeyError, TypeError):
        names = []
    if not names:
        raise ValueError(f"{directory / 'state.json'}: no list of files under '_data_files'")
    return [directory / name for name in names]


def hub_files(name: str) -> list[Path]:
    """The arrow files of a data set, downloaded into the cache of the datasets library.

    Args:
        name: hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT, where NAME is a name on the hub or a local directory.

    Raises:
        ValueError: no such data set or split, no connection, or the datasets library is not installed.
    """
    if not (parts := re.fullmatch(rf"{HUB}([^:]+)(?::([^:]+))?:([\w.-]+)", name)):
        raise ValueError(
            f"{name}: expected {HUB}NAME:SPLIT or {HUB}NAME:CONFIG:SPLIT, such as {HUB}rajpurkar/squad:train"
        )
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{name}: `pip install datasets` to download data sets from the hub") from None
    data_set, config, split = parts.groups()
    try:
        loaded = load_dataset(data_set, config, split=split, keep_in_memory=False)
    except Exception as error:  # the datasets library and its HTTP client raise many unrelated types
        raise ValueError(f"{name}: {type(error).__name__}: {one_line(error)}") from error
    return [Path(file["filename"]) for file in loaded.cache_files]
