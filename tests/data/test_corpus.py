"""A corpus has the ids of the whole text, is tokenized once, and is read without loading it into memory."""

import csv
import gc
import gzip
import io
import json
import os
import re
import shutil
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ftcore.checkpoints.files import read_text
from ftcore.data import CausalLMDataset, Corpus, DataLoader, load_tokenizer, read_corpus
from ftcore.data import corpus as corpus_module
from ftcore.data.corpus import _chunks, _header, read_documents
from ftcore.data.files import read_chunks
from ftcore.data.tokenizer import Tokenizer

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
END = "<|endoftext|>"
TALE = "The ferry left at noon.\n<|endoftext|>\nThe bakery opens at six.\n"


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer(WEIGHTS / "gpt2-mini")


@pytest.fixture(scope="module")
def t5() -> Tokenizer:
    return load_tokenizer(WEIGHTS / "t5-mini")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, tokenizer: Tokenizer, decoder_only: bool) -> Corpus:
    return read_corpus(
        "lm" if decoder_only else "span-corruption", path, tokenizer, decoder_only=decoder_only
    )


def all_ids(corpus: Corpus) -> list[int]:
    return corpus.read(0, len(corpus))


def ids_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


# --- ids

PARTS = ["The", "ferry", "'s", "12", "é", "漢字", "!?", "\x1c", " ", "  ", "\n", "\n\n", "\t", "\u00a0", END]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from(PARTS), min_size=1, max_size=40).map("".join),
    chunk=st.integers(1, 20),
    decoder_only=st.booleans(),
)
def test_ids_are_those_of_whole_documents(
    tmp_path: Path, gpt2: Tokenizer, t5: Tokenizer, text: str, chunk: int, decoder_only: bool
) -> None:
    documents = [document for document in text.split(END) if document.strip()]
    path = write(tmp_path / f"{uuid4()}.txt", text)
    if decoder_only:
        tokenizer, expected = (
            gpt2,
            [i for document in documents for i in [*gpt2.encode(document), gpt2.eos_id]],
        )
    else:
        tokenizer, expected = t5, [i for document in documents for i in t5.encode(document)[:-1]]
    with patch.object(corpus_module, "_CHUNK", chunk):
        if len(expected) > 1:
            assert all_ids(read(path, tokenizer, decoder_only)) == expected
        else:
            with pytest.raises(ValueError, match=f"{len(expected)} tokens are too few"):
                read(path, tokenizer, decoder_only)


@pytest.mark.parametrize("chunk", [3, 2**16])
def test_chunks_get_no_spaces_of_their_own(tmp_path: Path, chunk: int) -> None:
    """`add_prefix_space` puts a space before every text that does not start with one."""
    model = shutil.copytree(WEIGHTS / "gpt2-mini", tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    write(model / "tokenizer_config.json", json.dumps(settings | {"add_prefix_space": True}))
    tokenizer = load_tokenizer(model)
    text = "Ada sews.\nBo\treads\n\n a book.\n"
    assert tokenizer.encode("\n") != load_tokenizer(WEIGHTS / "gpt2-mini").encode("\n")
    with patch.object(corpus_module, "_CHUNK", chunk):
        corpus = read(write(tmp_path / "text.txt", text), tokenizer, decoder_only=True)
    assert all_ids(corpus) == [*tokenizer.encode(text), tokenizer.eos_id]


def test_gpt2_documents_end_with_the_end_of_text_token(tmp_path: Path, gpt2: Tokenizer) -> None:
    corpus = read(write(tmp_path / "tale.txt", TALE), gpt2, decoder_only=True)
    assert all_ids(corpus) == [*gpt2.encode(TALE), gpt2.eos_id]
    assert all_ids(corpus).count(gpt2.eos_id) == 2


def test_real_text_in_chunks(real_data: Path, tmp_path: Path) -> None:
    text = (real_data / "squad" / "valid.json").read_text(encoding="utf-8")[:300_000]
    path = write(tmp_path / "squad.txt", f"Questions: {text}")
    with patch.object(corpus_module, "_CHUNK", 1000):
        for name, decoder_only in (("gpt2", True), ("t5", False)):
            tokenizer = load_tokenizer(real_data / name)
            whole = tokenizer.encode(f"Questions: {text}")
            expected = [*whole, tokenizer.eos_id] if decoder_only else whole[:-1]
            assert all_ids(read(path, tokenizer, decoder_only)) == expected


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.sampled_from("ab é\r\n\u2028"), min_size=1, max_size=30),
    size=st.integers(1, 5),
    mark=st.booleans(),
)
def test_read_chunks_equals_read_text(tmp_path: Path, text: str, size: int, mark: bool) -> None:
    path = write(tmp_path / "a.txt", text.encode("utf-8-sig" if mark else "utf-8"))
    chunks = list(read_chunks(path, size))
    assert "".join(chunks) == read_text(path)
    assert max(map(len, chunks), default=0) <= size


@pytest.mark.parametrize("document", ["x" * 1000, "word " * 200, " " * 1000])
def test_chunks_stay_small_for_any_text(document: str) -> None:
    text = document + END + document
    blocks = [text[start : start + 10] for start in range(0, len(text), 10)]
    with patch.object(corpus_module, "_LONGEST_WORD", 50):
        chunks = list(_chunks(blocks))
    assert "".join(chunk + END * ends for chunk, ends in chunks) == text + END
    assert max(len(chunk) for chunk, _ in chunks) <= 50 + 10 + len(END)


# --- the file of ids


def test_a_text_is_tokenised_once_and_again_when_it_changes(
    tmp_path: Path, gpt2: Tokenizer, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    corpus = read(path, gpt2, decoder_only=True)
    message = capsys.readouterr().err
    assert message == f"tokenized {path}: {len(corpus)} tokens of 2 documents, kept in {corpus.ids}\n"
    assert ids_files(tmp_path) == [corpus.ids]

    before = corpus.ids.stat()
    again = read(path, load_tokenizer(WEIGHTS / "gpt2-mini"), decoder_only=True)
    assert again == corpus and again.ids.stat() == before
    assert capsys.readouterr().err == ""

    write(path, TALE + "By seven it is full.")
    longer = read(path, gpt2, decoder_only=True)
    assert f"tokenized {path} again: it has changed: {len(longer)} tokens" in capsys.readouterr().err
    assert len(longer) > len(corpus) and longer.ids == corpus.ids
    with pytest.raises(ValueError, match=r"tale\.txt has changed while its ids were read: start again"):
        corpus.read(0, 1)  # the ids of the first text, as a run in progress would


def test_each_tokenizer_has_its_own_ids(tmp_path: Path, gpt2: Tokenizer, t5: Tokenizer) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    first, second = read(path, gpt2, decoder_only=True), read(path, t5, decoder_only=False)
    assert ids_files(tmp_path) == sorted([first.ids, second.ids])
    assert t5.decode(all_ids(second)) == "The ferry left at noon. The bakery opens at six."


def test_ids_are_uint16_or_uint32(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(WEIGHTS / "gpt2-mini")
    for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.uint32)):
        tokenizer.vocab_size = size
        corpus = read(write(tmp_path / f"{size}.txt", TALE), tokenizer, decoder_only=True)
        ids = load_file(corpus.ids)["ids"]
        assert ids.dtype == dtype
        assert ids.tolist() == all_ids(corpus) == [*tokenizer.encode(TALE), tokenizer.eos_id]


BYTES = st.integers(0, 1 << 20)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(damage=("flip", 183, 1))  # was in the number of documents, which no checksum covered
@given(
    damage=st.one_of(
        st.tuples(st.just("flip"), BYTES, st.integers(1, 255)),
        st.tuples(st.just("cut"), BYTES, BYTES),  # bytes missing from the middle or the end
        st.tuples(st.just("swap"), BYTES, BYTES),
        st.tuples(st.just("replace"), st.just(0), st.binary(max_size=2000)),
        st.tuples(st.just("append"), st.just(0), st.binary(min_size=1, max_size=10)),
        st.tuples(st.just("header"), st.just(0), st.sampled_from([(b"U16", b"I16"), (b'"ids"', b'"ods"')])),
    )
)
def test_damaged_ids_are_rewritten(
    tmp_path: Path, gpt2: Tokenizer, capsys: pytest.CaptureFixture, damage: tuple
) -> None:
    path = tmp_path / "tale.txt"
    if not path.exists():
        write(path, TALE * 20)
    corpus = read(path, gpt2, decoder_only=True)
    original, expected = corpus.ids.read_bytes(), all_ids(corpus)
    kind, place, how = damage
    damaged, place = bytearray(original), place % len(original)
    if kind == "flip":
        damaged[place] ^= how
    elif kind == "cut":
        del damaged[place : place + 1 + how]
    elif kind == "swap":
        damaged[place], damaged[how % len(original)] = damaged[how % len(original)], damaged[place]
    else:
        damaged = {
            "replace": lambda: how,
            "append": lambda: damaged + how,
            "header": lambda: damaged.replace(*how),
        }[kind]()
    write(corpus.ids, bytes(damaged))
    capsys.readouterr()
    assert all_ids(read(path, gpt2, decoder_only=True)) == expected
    assert damaged == original or f"tokenized {path}" in capsys.readouterr().err


def test_ids_are_checked_once_per_process(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    read(path, gpt2, decoder_only=True)
    with patch.object(corpus_module.zlib, "crc32", wraps=zlib.crc32) as crc32:
        for _ in range(3):
            read(path, gpt2, decoder_only=True)
    assert crc32.call_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids.unlink(), r"ids\.safetensors: No such file or directory: start again"),
        (lambda ids: (ids.unlink(), ids.mkdir()), r"ids\.safetensors: Is a directory: start again"),
        (lambda ids: write(ids, ids.read_bytes()[:-9]), r"ids\.safetensors: truncated while it was read"),
        (lambda ids: write(ids, b""), r"tale\.txt has changed while its ids were read: start again"),
        (lambda ids: write(ids, ids.read_bytes().replace(b"U16", b"U32")), "has changed while its ids were"),
    ],
    ids=["missing", "directory", "truncated", "empty", "other type"],
)
def test_ids_that_change_while_they_are_read(
    tmp_path: Path, gpt2: Tokenizer, change: Callable[[Path], object], message: str
) -> None:
    corpus = read(write(tmp_path / "tale.txt", TALE), gpt2, decoder_only=True)
    change(corpus.ids)
    with pytest.raises(ValueError, match=message) as error:
        all_ids(corpus)
    assert "\n" not in str(error.value)


def test_a_text_that_changes_while_it_is_tokenised(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    encode = gpt2.encode

    def encode_and_append(text: str) -> list[int]:
        if text:  # not while the tokenizer is examined
            path.write_text(TALE * 2)
        return encode(text)

    with (
        patch.object(gpt2, "encode", encode_and_append),
        pytest.raises(ValueError, match=r"tale\.txt has changed while it was tokenized: start again"),
    ):
        read(path, gpt2, decoder_only=True)
    assert not ids_files(tmp_path)


# --- documents in JSON lines and CSV

DOCUMENTS = ["The ferry left at noon.", "  ", 'A "quoted", long\nword.' + " or" * 50, f"One{END}Two", "1815"]


def as_csv(texts: list[str]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    return file.getvalue()


def as_json_lines(texts: list[str]) -> str:
    return "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts))


@pytest.mark.parametrize("decoder_only", [True, False])
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a.jsonl", as_json_lines),
        ("a.json", as_json_lines),
        ("a.txt", as_json_lines),
        ("a.csv", as_csv),
        ("a.txt", as_csv),
    ],
)
@pytest.mark.parametrize("chunk", [7, 2**16])
def test_each_row_is_a_document(
    tmp_path: Path,
    gpt2: Tokenizer,
    t5: Tokenizer,
    name: str,
    written: Callable[[list[str]], str],
    decoder_only: bool,
    chunk: int,
    capsys: pytest.CaptureFixture,
) -> None:
    tokenizer = gpt2 if decoder_only else t5
    plain = write(tmp_path / "plain.txt", END.join(DOCUMENTS))
    rows = write(tmp_path / name, written(DOCUMENTS))
    with patch.object(corpus_module, "_CHUNK", chunk):
        assert all_ids(read(rows, tokenizer, decoder_only)) == all_ids(read(plain, tokenizer, decoder_only))
    assert capsys.readouterr().err.count("tokens of 5 documents") == 2


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.sampled_from('ab ,"\n\ufeffé')), min_size=1), size=st.integers(1, 5))
def test_documents_are_unchanged(tmp_path: Path, texts: list[str], size: int) -> None:
    for name, content in (("a.jsonl", as_json_lines(texts)), ("a.csv", as_csv(texts))):
        blocks = list(read_documents(write(tmp_path / name, content), size))
        if name == "a.csv":  # a byte order mark at the start of a line is removed
            texts = [re.sub("(?<=\n)\ufeff", "", text) for text in texts]
        assert "".join(blocks).split(END) == [*texts, ""]
        assert max((len(block) for block in blocks if block != END), default=0) <= size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}\n', "line 2: no key 'text' (found: body)"),
        ("a.jsonl", '{"text": "a"}\n{"text": ["b"]}\n', "line 2: key 'text' is ['b']; expected a string"),
        ("a.txt", '{"text": "a"}\nand then prose\n', "line 2: broken JSON"),
        ("a.csv", "id,body\n1,a\n", "line 2: no key 'text' (found: id, body)"),
        (
            "a.json",
            '{"data": [{"paragraphs": []}]}',
            "a SQuAD document, which is for task 'qa'; expected plain text, or rows",
        ),
        ("a.txt", "The ferry\nleft\0\0\n", "line 2: a NUL character"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        ("a.txt.gz", gzip.compress(b"The ferry left.", mtime=0)[:-4], "a damaged gzip file"),
        ("a.txt", "The ferry left.".encode("utf-16"), "text in UTF-16"),
        ("a.txt", "The ferry left.".encode("utf-16-le"), "line 1: a NUL character"),
        ("a.html", "<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_files_that_are_no_running_text(
    tmp_path: Path, gpt2: Tokenizer, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError) as error:
        read(path, gpt2, decoder_only=True)
    assert message in str(error.value) and str(path) in str(error.value)
    assert not ids_files(tmp_path)


@pytest.mark.parametrize("decoder_only", [True, False])
def test_several_files_are_one_corpus(
    tmp_path: Path, gpt2: Tokenizer, t5: Tokenizer, decoder_only: bool, capsys: pytest.CaptureFixture
) -> None:
    tokenizer, task = (gpt2, "lm") if decoder_only else (t5, "span-corruption")
    files = [
        write(tmp_path / "a.txt", TALE),
        write(tmp_path / "b.txt.gz", gzip.compress(TALE.encode())),
        write(tmp_path / "c.jsonl", as_json_lines(DOCUMENTS)),
        write(tmp_path / "d.tsv", "id\ttext\n1\tBo reads.\n"),
    ]
    single = [all_ids(read(file, tokenizer, decoder_only)) for file in files]
    capsys.readouterr()
    corpus = read_corpus(task, str(tmp_path / "[a-d].*"), tokenizer, decoder_only=decoder_only)
    assert all_ids(corpus) == [*chain(*single)]
    assert corpus.texts == tuple(files)
    message = capsys.readouterr().err
    assert f"tokenized {files[0]}, {files[1]}, {files[2]}, {files[3]}: {len(corpus)} tokens of " in message
    assert read_corpus(task, files, tokenizer, decoder_only=decoder_only) == corpus
    assert capsys.readouterr().err == ""

    other = read_corpus(task, files[:2], tokenizer, decoder_only=decoder_only)
    assert all_ids(other) == [*chain(*single[:2])] and other.ids != corpus.ids
    capsys.readouterr()
    write(files[1], gzip.compress(b"Cy is late."))
    changed = read_corpus(task, files, tokenizer, decoder_only=decoder_only)
    assert "again: it has changed" in capsys.readouterr().err
    single[1] = all_ids(read(files[1], tokenizer, decoder_only))
    assert all_ids(changed) == [*chain(*single)]


def test_a_parquet_file_is_a_corpus(tmp_path: Path, gpt2: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"text": DOCUMENTS}), tmp_path / "a.parquet"
    )
    lines = write(tmp_path / "a.jsonl", as_json_lines(DOCUMENTS))
    parquet = all_ids(read(tmp_path / "a.parquet", gpt2, decoder_only=True))
    assert parquet == all_ids(read(lines, gpt2, decoder_only=True))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_corpus(tmp_path: Path, gpt2: Tokenizer) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a pipe; expected a file"):
        read(tmp_path / "pipe", gpt2, decoder_only=True)


@pytest.mark.parametrize("written", [as_json_lines, as_csv])
def test_rows_are_not_held_in_memory(tmp_path: Path, written: Callable[[list[str]], str]) -> None:
    path = write(tmp_path / "rows", written(["word " * 2000] * 2000))  # 20 MB
    tracemalloc.start()
    try:
        characters = sum(map(len, read_documents(path, 2**16)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert characters == 2000 * (10_000 + len(END)) and peak < 2e6


def test_a_compressed_text_is_not_held_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"word " * 4_000_000, 1))
    tracemalloc.start()
    try:
        characters = sum(map(len, read_documents(path, 2**16)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert characters == 20_000_000 and peak < 2e6


def test_a_failure_while_tokenising_leaves_no_file(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    encode = gpt2.encode
    with (
        patch.object(gpt2, "encode", lambda text: encode(text) if "bakery" not in text else 1 / 0),
        pytest.raises(ZeroDivisionError),
    ):
        read(path, gpt2, decoder_only=True)
    assert list(tmp_path.iterdir()) == [path]
    assert len(read(path, gpt2, decoder_only=True)) > 0


def test_ids_go_to_the_cache_directory_if_the_text_is_read_only(
    tmp_path: Path, gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    corpus = read(path, gpt2, decoder_only=True)
    assert corpus.ids.is_relative_to(tmp_path / "cache" / "ftcore")
    assert read(path, gpt2, decoder_only=True) == corpus
    assert not ids_files(tmp_path)

    write(tmp_path / "file", "no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=rf"Not a directory: '{tmp_path}/file/"):
        read(path, gpt2, decoder_only=True)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    with (
        patch("pwd.getpwuid", side_effect=KeyError),  # a container whose user has no name
        pytest.raises(ValueError, match=rf"{tmp_path} is not writable and .* no home .*: set XDG_CACHE_HOME"),
    ):
        read(path, gpt2, decoder_only=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_concurrent_readers_tokenise_once(
    tmp_path: Path, gpt2: Tokenizer, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "tale.txt", TALE * 500)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: read(path, gpt2, decoder_only=True), range(4)))
    assert len(set(results)) == 1
    assert capsys.readouterr().err.count("tokenized") == 1


# --- reading


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory, gpt2: Tokenizer) -> Corpus:
    return read(write(tmp_path_factory.mktemp("tales") / "tales.txt", TALE * 3), gpt2, decoder_only=True)


@settings(deadline=None, max_examples=60)
@given(fraction=st.floats(0.1, 0.9), start=st.integers(0, 50), length=st.integers(0, 50))
def test_the_parts_of_a_split(tales: Corpus, fraction: float, start: int, length: int) -> None:
    ids = all_ids(tales)
    train, valid = tales.split(fraction)
    assert all_ids(train) + all_ids(valid) == ids
    assert abs(len(valid) - fraction * len(tales)) <= 0.5
    assert train.read(start, start + length) == ids[: len(train)][start : start + length]
    assert valid.read(start, start + length) == ids[len(train) :][start : start + length]
    assert valid.split(0.5)[1].read(0, 3) == ids[-len(valid.split(0.5)[1]) :][:3]


def test_splits_that_are_refused(tmp_path: Path, gpt2: Tokenizer) -> None:
    corpus = read(write(tmp_path / "a.txt", "The ferry"), gpt2, decoder_only=True)
    with pytest.raises(ValueError, match=r"fraction is 1.0; expected a number between 0 and 1"):
        corpus.split(1.0)
    with pytest.raises(ValueError, match=r"a\.txt is too short to split; pass a separate validation file"):
        corpus.split(0.1)


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """4,000 of a million blocks, at random, of a sparse file of 500 million ids."""
    tokens = 500_000_000
    ids, dtype = tmp_path / "ids.safetensors", np.dtype("<u2")
    header = _header(tokens, dtype, {"made_from": "sparse"})
    with ids.open("wb") as file:
        file.write(header)
        file.truncate(file.tell() + 2 * tokens)
    gc.collect()
    before = resident_megabytes()
    blocks = CausalLMDataset(Corpus((tmp_path / "text",), ids, True, header, dtype, 0, tokens), 512)
    loader = DataLoader(blocks, 8, pad_id=0, shuffle=True)
    for _, batch in zip(range(500), loader, strict=False):
        assert batch["input_ids"].shape == (8, 512)
    assert len(blocks) > 900_000
    # The lengths and the order of the epoch take 8 bytes a block each, and computing the order takes as much
    # again. With a permanent mapping, the pages that were read would add 250 MB.
    assert resident_megabytes() - before < 64


# --- errors


def test_errors_name_the_file_and_the_remedy(tmp_path: Path, gpt2: Tokenizer, t5: Tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.txt"):
        read(tmp_path / "nowhere.txt", gpt2, decoder_only=True)
    with pytest.raises(ValueError, match="is a directory; expected a file"):
        read(tmp_path, gpt2, decoder_only=True)
    with pytest.raises(ValueError, match=r"a\.txt: the file is empty"):
        read(write(tmp_path / "a.txt", ""), gpt2, decoder_only=True)
    for blank in (" \n\n", f"\n{END}\n"):
        with pytest.raises(
            ValueError, match=r"a\.txt: 0 tokens are too few to learn from; expected plain text"
        ):
            read(write(tmp_path / "a.txt", blank), gpt2, decoder_only=True)
    broken = write(tmp_path / "a.txt", b"line\n" * 30_000 + b"caf\xe9 au lait\n")
    with pytest.raises(
        ValueError, match=r"a\.txt, line 30001: not UTF-8 \(byte 0xe9\); save the file as UTF"
    ):
        read(broken, gpt2, decoder_only=True)
    assert not ids_files(tmp_path)


def test_task_model_and_tokenizer_must_match(tmp_path: Path, gpt2: Tokenizer, t5: Tokenizer) -> None:
    path = write(tmp_path / "tale.txt", TALE)
    with pytest.raises(
        ValueError, match=r"'lm' trains a decoder-only .* T5 learns .* with 'span-corruption'"
    ):
        read_corpus("lm", path, t5, decoder_only=False)
    with pytest.raises(
        ValueError, match=r"'span-corruption' trains an encoder-decoder .* GPT-2 .* with 'lm'"
    ):
        read_corpus("span-corruption", path, gpt2, decoder_only=True)
    with pytest.raises(ValueError, match=r"'qa' learns from records, .*: use read_records"):
        read_corpus("qa", path, gpt2, decoder_only=True)
    with pytest.raises(ValueError, match="use the model's own tokenizer"):
        read_corpus("lm", path, t5, decoder_only=True)
