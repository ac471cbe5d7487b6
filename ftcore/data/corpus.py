"""Tokenize a text of any size once, to a file of ids that is read in slices.

    tale.txt                             the text, <|endoftext|> between its documents
    tale.txt.3f9c0b1e.ids.safetensors    its ids: one array of uint16, or uint32 for a large vocabulary

The ids are stored next to the text, or in the user's cache directory if that is not writable. The file name
contains a hash of the tokenizer. The file records the text's size and modification time, and a checksum of
the ids. It is rewritten when the text has changed or the checksum differs.

Each slice is read into memory of its own. With a permanent mapping, the whole file would count as resident
memory of the process by the end of an epoch.
"""

import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from gzip import GzipFile
from itertools import chain
from pathlib import Path

import numpy as np

from ftcore.checkpoints.files import file_lock, open_text, parse_json, write_atomically
from ftcore.data.arrow_rows import arrow_format
from ftcore.data.dataset import check_family
from ftcore.data.files import Paths, expand_files, read_chunks, text_of
from ftcore.data.rows import find_row_format, read_rows
from ftcore.data.tasks import Task, as_task, check_corpus_task, require_column
from ftcore.data.tokenizer import Tokenizer
from ftcore.output import few, progress_bar

END_OF_DOCUMENT = "<|endoftext|>"

_FORMAT = 2  # version of the file of ids; files of another version are rewritten
_HEADER = 1024  # bytes reserved for the header, which is written last: it has the number of ids
_CHUNK = 2**16  # characters to tokenize at a time
_LONGEST_WORD = 2**20  # characters; longer words may be cut anywhere


@dataclass(frozen=True)
class Corpus:
    """The ids of a text, or of a part of it, on disk. `len(corpus)` is their number.

    For GPT-2 each document ends with the end-of-text token. For T5 there is no separator, as in the published
    preprocessor: </s> could be part of a corrupted span, and the model would learn to stop inside targets.
    """

    texts: tuple[Path, ...]  # the text files
    ids: Path  # the file of ids
    decoder_only: bool  # for a decoder-only model (GPT-2), not for an encoder-decoder (T5)
    header: bytes = field(repr=False)  # of the file of ids, with their checksum; compared at every read
    dtype: np.dtype  # of the ids in the file
    start: int  # index of the first id in the file
    stop: int  # index after the last id
    column: str = "text"  # of the documents, in files of rows

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The text files, for messages."""
        return few([*map(str, self.texts)])

    def read(self, start: int, stop: int) -> list[int]:
        """The ids in [start, stop), relative to this part and clipped to its end.

        Raises:
            ValueError: the file of ids is missing, damaged, or of another text than when it was opened.
        """
        start, stop = self.start + start, min(self.start + stop, self.stop)
        if start >= stop:
            return []
        try:
            with self.ids.open("rb") as file:
                if file.read(_HEADER) != self.header:
                    raise ValueError(f"{self.name} has changed while its ids were read: start again")
                file.seek(start * self.dtype.itemsize, os.SEEK_CUR)
                ids = np.fromfile(file, self.dtype, stop - start)
        except OSError as error:
            raise ValueError(f"{self.ids}: {error.strerror}: start again") from None
        if len(ids) != stop - start:
            raise ValueError(f"{self.ids}: truncated while it was read: start again")
        return ids.tolist()

    def split(self, fraction: float) -> tuple["Corpus", "Corpus"]:
        """Split off about `fraction` of the ids, at the end: (train, validation).

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a part would have fewer than two tokens.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the validation fraction is {fraction}; expected a number between 0 and 1")
        cut = self.stop - round(len(self) * fraction)
        if min(cut - self.start, self.stop - cut) < 2:
            raise ValueError(f"{self.name} is too short to split; pass a separate validation file")
        return replace(self, stop=cut), replace(self, start=cut)


def read_corpus(task: str | Task, paths: Paths, tokenizer: Tokenizer, *, decoder_only: bool) -> Corpus:
    """The ids of one or more files, tokenized now (with a message on stderr) unless that was done before.

    Processes that read the same text at the same time wait for the first one to tokenize it.

    Args:
        task: one of `CORPUS_TASKS`.
        paths: one file or several, or patterns, see `expand_files`: plain text with `<|endoftext|>` between
            documents, which may be compressed by gzip, or rows, where the `text` of each is a document, or
            the column that the task has for it. A document ends where a file ends.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: task, model and tokenizer do not match, or a file is not UTF-8 or not in one of these
            formats, or there is no text.
        OSError: the ids cannot be written.
    """
    task = as_task(task)
    check_corpus_task(task, decoder_only)
    check_family(tokenizer, decoder_only)
    first, *others = texts = tuple(expand_files(paths))
    for text in texts:
        if text.is_fifo():
            raise ValueError(f"{text} is a pipe; expected a file, since its ids are kept for later runs")
        is_plain_text(text)  # here for its errors
    column = task.column("text")
    fingerprint = tokenizer.fingerprint()
    fingerprint = fingerprint if column == "text" else _hash(fingerprint, column)
    key = _hash(fingerprint, *texts) if others else fingerprint
    ids = _directory(first) / f"{first.name}.{key[:8]}.ids.safetensors"
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    with file_lock(first, wait=True):
        made_from = f"{_version(texts)}, tokenizer {fingerprint}, format {_FORMAT}"
        metadata, again = _read_metadata(ids, dtype, made_from)
        if not metadata:
            metadata, documents = _write_ids(ids, texts, column, tokenizer, decoder_only, made_from, dtype)
            size = f"{int(metadata['tokens']):,} tokens of {documents:,} documents"
            print(f"tokenized {few([*map(str, texts)])}{again}: {size}, kept in {ids}", file=sys.stderr)
    tokens = int(metadata["tokens"])
    header = _header(tokens, dtype, metadata)
    return Corpus(texts, ids, decoder_only, header, dtype, start=0, stop=tokens, column=column)


def is_plain_text(path: Path, *, compressed: bool = True) -> bool:
    """Whether a file is plain text, without rows. Raises the errors of `open_text`.

    Args:
        compressed: True also for plain text compressed by gzip.
    """
    if arrow_format(path):
        return False
    with open_text(path, gunzip=True) as file:
        is_gzip = isinstance(file.buffer, GzipFile)
        return find_row_format(path, file) == "text" and (compressed or not is_gzip)


def read_documents(path: Path, size: int, column: str = "text") -> Iterator[str]:
    """The text of a file, at most `size` characters at a time; each row's ends with `<|endoftext|>`.

    Raises:
        ValueError: a row without `column`, or another error of `read_rows`.
    """
    if is_plain_text(path):
        yield from read_chunks(path, size)
        return
    for where, row in read_rows(path, expected="plain text, or rows with text"):
        require_column("text", column, row, where)
        document = text_of(row, column, where, blank=True)
        yield from (document[start : start + size] for start in range(0, len(document), size))
        yield END_OF_DOCUMENT


# ------------------------------------------------------------------------------------------- the file of ids


def _directory(text: Path) -> Path:
    """The directory for a text's ids: the text's own if it is writable, else one in the cache directory."""
    parent = text.absolute().parent
    if os.access(parent, os.W_OK):
        return parent
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise ValueError(
            f"{parent} is not writable and there is no home directory: set XDG_CACHE_HOME"
        ) from None
    directory = cache / "ftcore" / hashlib.sha256(os.fsencode(parent)).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _hash(*values: object) -> str:
    return hashlib.sha256("\0".join(map(str, values)).encode(errors="surrogateescape")).hexdigest()


def _version(texts: Sequence[Path]) -> str:
    """Sizes and times of the files."""
    versions = [_size_and_time(text) for text in texts]
    return versions[0] if len(texts) == 1 else f"{len(texts)} files of {_hash(*versions)}"


def _size_and_time(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns} ns"


def _read_metadata(ids: Path, dtype: np.dtype, made_from: str) -> tuple[dict[str, str], str]:
    """(metadata of a file of ids, ""), or ({}, the reason to write it again)."""
    try:
        with ids.open("rb") as file:
            header = file.read(_HEADER)
        metadata = parse_json(header[8:].decode(), ids)["__metadata__"]
        if metadata["made_from"] != made_from:
            is_same_text = metadata["made_from"].split(", ")[0] == made_from.split(", ")[0]
            return {}, "" if is_same_text else " again: it has changed"
        tokens = int(metadata["tokens"])
        is_whole = ids.stat().st_size == _HEADER + tokens * dtype.itemsize
        is_whole = is_whole and header == _header(tokens, dtype, metadata)
        if is_whole and _checksum(ids, _size_and_time(ids)) == metadata["checksum"]:
            return metadata, ""
    except FileNotFoundError:
        return {}, ""
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return {}, " again: the file of its ids was damaged"


@lru_cache
def _checksum(ids: Path, size_and_time: str) -> str:
    """CRC-32 of the ids, computed once per process; 0.7 s for 1 GB."""
    checksum = 0
    with ids.open("rb") as file:
        file.seek(_HEADER)
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return str(checksum)


def _write_ids(
    ids: Path,
    texts: Sequence[Path],
    column: str,
    tokenizer: Tokenizer,
    decoder_only: bool,
    made_from: str,
    dtype: np.dtype,
) -> tuple[dict[str, str], int]:
    """Tokenize texts to a file of ids; returns (the file's metadata, number of documents)."""
    name, metadata = few([*map(str, texts)]), {"made_from": made_from}
    documents = 0

    def write(path: Path) -> None:
        nonlocal documents
        tokens = checksum = 0
        with path.open("wb") as file:
            file.seek(_HEADER)
            for chunk, ends_document in _tokenize(texts, column, tokenizer, decoder_only):
                block = np.array(chunk, dtype).tobytes()
                file.write(block)
                checksum = zlib.crc32(block, checksum)
                tokens += len(chunk)
                documents += ends_document
            if tokens < 2:
                raise ValueError(f"{name}: {tokens} tokens are too few to learn from; expected plain text")
            if not made_from.startswith(_version(texts)):
                raise ValueError(f"{name} has changed while it was tokenized: start again")
            metadata.update(tokens=str(tokens), checksum=str(checksum))
            file.seek(0)
            file.write(_header(tokens, dtype, metadata))

    write_atomically(ids, write)
    return metadata, documents


def _header(tokens: int, dtype: np.dtype, metadata: dict[str, str]) -> bytes:
    """The header of a safetensors file, padded with spaces to `_HEADER` bytes."""
    array = {
        "dtype": f"U{8 * dtype.itemsize}",
        "shape": [tokens],
        "data_offsets": [0, tokens * dtype.itemsize],
    }
    content = json.dumps({"__metadata__": metadata, "ids": array}).encode().ljust(_HEADER - 8)
    return len(content).to_bytes(8, "little") + content


# ------------------------------------------------------------------------------------------------ tokenizing


def _tokenize(
    texts: Sequence[Path], column: str, tokenizer: Tokenizer, decoder_only: bool
) -> Iterator[tuple[list[int], bool]]:
    """The ids of texts, chunk by chunk: (ids, whether a document ends here)."""
    # A few tokenizers start every text with a token; it belongs at the start of a document only.
    prefix = len(tokenizer.encode("")) - (not decoder_only)

    def encode(chunk: str, *, inside_document: bool) -> list[int]:
        ids = tokenizer.encode(chunk)
        if not decoder_only:
            ids.pop()  # </s>
        return ids[prefix:] if inside_document or not decoder_only else ids

    def can_cut_before(space: str) -> bool:
        """False for a line break if the tokenizer has `add_prefix_space`."""
        parts = encode("a", inside_document=False) + encode(f"{space}b", inside_document=True)
        return encode(f"a{space}b", inside_document=False) == parts

    spaces = "".join(filter(can_cut_before, " \t\n"))
    inside_document = False
    size = sum(text.stat().st_size for text in texts)
    chunks = chain.from_iterable(_chunks(read_documents(text, _CHUNK, column), spaces) for text in texts)
    with progress_bar(
        desc=f"tokenizing {texts[0].name}", total=size, unit="B", unit_scale=True, delay=2, leave=False
    ) as bar:
        for chunk, ends_document in chunks:
            bar.update(len(chunk.encode()))
            if not inside_document and not chunk.strip():
                continue  # an empty document
            ids = encode(chunk, inside_document=inside_document)
            if ends_document and decoder_only:
                ids.append(tokenizer.eos_id)
            yield ids, ends_document
            inside_document = not ends_document


def _chunks(blocks: Iterable[str], spaces: str = " \t\n") -> Iterator[tuple[str, bool]]:
    """Cut a text where that does not change its tokens: (chunk, whether a document ends here).

    Cuts are made before `spaces`. No token of T5 or GPT-2 contains white space except at its start, and
    neither tokenizer looks beyond the end of a word (except that SentencePiece's rounding may decide ties).
    """
    before_space = re.compile(rf".*\S(?=[{spaces}])" if spaces else "(?!)", re.DOTALL)
    rest = ""
    for block in blocks:
        *documents, rest = (rest + block).split(END_OF_DOCUMENT)
        for document in documents:
            yield document, True
        word_end = before_space.match(rest)
        # Without white space, keep back what may be the start of an <|endoftext|>.
        cut = word_end.end() if word_end else len(rest) - len(END_OF_DOCUMENT)
        if word_end or cut > _LONGEST_WORD:
            yield rest[:cut], False
            rest = rest[cut:]
    yield rest, True
