"""Tokenize a text of any size once, to a file of ids that is read in slices.

    tale.txt                             the text, <|endoftext|> between its documents
    tale.txt.3f9c0b1e.ids.safetensors    its ids: one array of uint16, or uint32 for a large vocabulary

The ids are stored next to the text, or in the user's cache directory if that is not writable. The file name
contains a hash of the tokenizer. The file records the text's size and modification time and is rewritten when
these change.

Each slice is memory-mapped, copied and unmapped. With one permanent mapping, the whole file would count as
resident memory of the process by the end of an epoch.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from ftcore.checkpoints.files import file_lock, require_text, write_atomically
from ftcore.data.dataset import check_family
from ftcore.data.files import read_chunks
from ftcore.data.tasks import check_corpus_task
from ftcore.data.tokenizer import Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"

_FORMAT = 1  # version of the file of ids; files of another version are rewritten
_HEADER = 1024  # bytes reserved for the header, which is written last: it has the number of ids
_CHUNK = 2**16  # characters to tokenize at a time
_LONGEST_WORD = 2**20  # characters; longer words may be cut anywhere


@dataclass(frozen=True)
class Corpus:
    """The ids of a text, or of a part of it, on disk. `len(corpus)` is their number.

    For GPT-2 each document ends with the end-of-text token. For T5 there is no separator, as in the published
    preprocessor: </s> could be part of a corrupted span, and the model would learn to stop inside targets.
    """

    text: Path  # the text file
    ids: Path  # the file of ids
    decoder_only: bool  # for a decoder-only model (GPT-2), not for an encoder-decoder (T5)
    made_from: str  # size and time of the text, hash of the tokenizer; checked at every read
    start: int  # index of the first id in the file
    stop: int  # index after the last id

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> list[int]:
        """The ids in [start, stop), relative to this part and clipped to its end.

        Raises:
            ValueError: the text has changed and another process has tokenized it again.
        """
        start, stop = self.start + start, min(self.start + stop, self.stop)
        if start >= stop:
            return []
        with safe_open(self.ids, framework="numpy") as file:
            if file.metadata().get("made_from") != self.made_from:
                raise ValueError(f"{self.text} has changed while its ids were read: start again")
            return file.get_slice("ids")[start:stop].tolist()

    def split(self, fraction: float) -> tuple["Corpus", "Corpus"]:
        """Split off about `fraction` of the ids, at the end: (train, validation).

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a part would have fewer than two tokens.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the validation fraction is {fraction}; expected a number between 0 and 1")
        cut = self.stop - round(len(self) * fraction)
        if min(cut - self.start, self.stop - cut) < 2:
            raise ValueError(f"{self.text} is too short to split; pass a separate validation file")
        return replace(self, stop=cut), replace(self, start=cut)


def read_corpus(task: str, path: str | Path, tokenizer: Tokenizer, *, decoder_only: bool) -> Corpus:
    """The ids of a plain text file, tokenized now (with a message on stderr) unless that was done before.

    Processes that read the same text at the same time wait for the first one to tokenize it.

    Args:
        task: one of `CORPUS_TASKS`.
        path: a UTF-8 text file, with `<|endoftext|>` between documents.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: task, model and tokenizer do not match, or the file is not UTF-8 or has no text.
    """
    check_corpus_task(task, decoder_only)
    check_family(tokenizer, decoder_only)
    text = Path(path)
    require_text(text)
    fingerprint = _fingerprint(tokenizer)
    ids = _directory(text) / f"{text.name}.{fingerprint[:8]}.ids.safetensors"
    with file_lock(text, wait=True):
        status = text.stat()
        size_and_time = f"{status.st_size} bytes of {status.st_mtime_ns} ns"
        made_from = f"{size_and_time}, tokenizer {fingerprint}, format {_FORMAT}"
        metadata = _read_metadata(ids)
        if metadata.get("made_from") != made_from:
            again = " again: it has changed" if metadata else ""
            metadata = _write_ids(ids, text, tokenizer, decoder_only, made_from)
            size = f"{int(metadata['tokens']):,} tokens of {int(metadata['documents']):,} documents"
            print(f"tokenized {text}{again}: {size}, kept in {ids}", file=sys.stderr)
    return Corpus(text, ids, decoder_only, made_from, start=0, stop=int(metadata["tokens"]))


# ------------------------------------------------------------------------------------------- the file of ids


def _directory(text: Path) -> Path:
    """The directory for a text's ids: the text's own if it is writable, else one in the cache directory."""
    parent = text.absolute().parent
    if os.access(parent, os.W_OK):
        return parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "ftcore" / hashlib.sha256(os.fsencode(parent)).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of a tokenizer's files."""
    digest = hashlib.sha256()
    with TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        for file in sorted(Path(directory).iterdir()):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _read_metadata(ids: Path) -> dict[str, str]:
    """The metadata of a file of ids; {} if it is missing or damaged."""
    try:
        with safe_open(ids, framework="numpy") as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return {}


def _write_ids(
    ids: Path, text: Path, tokenizer: Tokenizer, decoder_only: bool, made_from: str
) -> dict[str, str]:
    """Tokenize a text to a file of ids, and return the file's metadata."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    metadata = {"made_from": made_from}

    def write(path: Path) -> None:
        tokens = documents = 0
        with path.open("wb") as file:
            file.seek(_HEADER)
            for chunk, ends_document in _tokenize(text, tokenizer, decoder_only):
                file.write(np.array(chunk, dtype).tobytes())
                tokens += len(chunk)
                documents += ends_document
            if tokens < 2:
                raise ValueError(f"{text}: {tokens} tokens are too few to learn from; expected plain text")
            metadata.update(tokens=str(tokens), documents=str(documents))
            file.seek(0)
            file.write(_header(tokens, dtype, metadata))

    write_atomically(ids, write)
    return metadata


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


def _tokenize(text: Path, tokenizer: Tokenizer, decoder_only: bool) -> Iterator[tuple[list[int], bool]]:
    """The ids of a text, chunk by chunk: (ids, whether a document ends here)."""
    # A few tokenizers start every text with a token; it belongs at the start of a document only.
    prefix = len(tokenizer.encode("")) - (not decoder_only)
    inside_document = False
    size = text.stat().st_size
    with tqdm(
        desc=f"tokenizing {text.name}", total=size, unit="B", unit_scale=True, delay=2, leave=False
    ) as bar:
        for chunk, ends_document in _chunks(read_chunks(text, _CHUNK)):
            bar.update(len(chunk.encode()))
            if not inside_document and not chunk.strip():
                continue  # an empty document
            ids = tokenizer.encode(chunk)
            if not decoder_only:
                ids.pop()  # </s>
            if inside_document or not decoder_only:
                del ids[:prefix]
            if ends_document and decoder_only:
                ids.append(tokenizer.eos_id)
            yield ids, ends_document
            inside_document = not ends_document


def _chunks(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut a text where that does not change its tokens: (chunk, whether a document ends here).

    Cuts are made before white space. No token of T5 or GPT-2 contains white space except at its start, and
    neither tokenizer looks beyond the end of a word (except that SentencePiece's rounding may decide ties).
    """
    rest = ""
    for block in blocks:
        *documents, rest = (rest + block).split(END_OF_DOCUMENT)
        for document in documents:
            yield document, True
        word_end = re.match(r".*\S(?=[ \t\n])", rest, re.DOTALL)
        # Without white space, keep back what may be the start of an <|endoftext|>.
        cut = word_end.end() if word_end else len(rest) - len(END_OF_DOCUMENT)
        if word_end or cut > _LONGEST_WORD:
            yield rest[:cut], False
            rest = rest[cut:]
    yield rest, True
