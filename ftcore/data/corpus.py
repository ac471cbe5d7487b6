"""A text of any size becomes token ids on disk, once; from there it is read a slice at a time.

    tale.txt                             the text, <|endoftext|> between its documents
    tale.txt.3f9c0b1e.ids.safetensors    its ids: one array, two bytes each where the vocabulary allows it

The ids lie beside the text, or in the user's cache directory where nothing can be written there. The name
tells tokenizers apart. The file records the text's size and time of change: with others it is made anew.

A slice is mapped into memory when it is asked for, copied and let go again. A mapping that stayed would be
simpler, but in the course of an epoch the whole file would come to count as memory of this process.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from ftcore.checkpoints.files import write_atomically
from ftcore.data.dataset import check_family
from ftcore.data.files import read_chunks, require_file
from ftcore.data.tasks import check_corpus_task
from ftcore.data.tokenizer import Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"

_FORMAT = 1  # another number, and what older versions wrote no longer fits
_HEADER = 1024  # bytes in front of the ids; how many there are is known only when they are written
_PIECE = 2**16  # characters that are tokenised at a time
_LONGEST_WORD = 2**20  # characters; a longer one may be cut anywhere


@dataclass(frozen=True)
class Corpus:
    """The ids of a text, or of a part of it. `len(corpus)` counts them; none of them is in memory.

    Each of GPT-2's documents ends with its end-of-text token. T5's follow one another without a mark, as the
    published preprocessor has it: were </s> among the tokens that can be cut out, it would stand inside
    targets too, and the model would learn to stop there.
    """

    text: Path  # what was tokenised
    ids: Path  # the file of its ids
    decoder_only: bool  # for a decoder-only model (GPT-2), not for an encoder-decoder (T5)
    made_from: str  # what the file must say that it was made from
    start: int  # this part's first id in the file
    stop: int  # one behind its last

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> list[int]:
        """The ids from `start` up to `stop`, or to the end, counted from the beginning of this part.

        Raises:
            ValueError: another process has tokenised a changed text in the meantime.
        """
        start, stop = self.start + start, min(self.start + stop, self.stop)
        if start >= stop:
            return []
        with safe_open(self.ids, framework="numpy") as file:
            if file.metadata().get("made_from") != self.made_from:
                raise ValueError(f"{self.text} has changed while its ids were read: start again")
            return file.get_slice("ids")[start:stop].tolist()

    def split(self, fraction: float) -> tuple["Corpus", "Corpus"]:
        """Set about `fraction` of the ids aside, the last ones: (train, validation).

        Raises:
            ValueError: `fraction` is no share, or one of the parts would have nothing to predict.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the validation fraction is {fraction}; expected a number between 0 and 1")
        cut = self.stop - round(len(self) * fraction)
        if min(cut - self.start, self.stop - cut) < 2:
            raise ValueError(f"{self.text} is too short to split; give a validation file of its own")
        return replace(self, stop=cut), replace(self, start=cut)


def read_corpus(task: str, path: str | Path, tokenizer: Tokenizer, *, decoder_only: bool) -> Corpus:
    """The ids of a plain text file. They are made now unless they lie there already; then it says so.

    Processes that want the same text at the same time wait for the first of them to tokenise it.

    Args:
        task: one of `CORPUS_TASKS`.
        path: a UTF-8 file of running text, with `<|endoftext|>` between documents.
        tokenizer: the model's own.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: task, model and tokenizer do not belong together, or the file is no UTF-8 or has no text.
    """
    check_corpus_task(task, decoder_only)
    check_family(tokenizer, decoder_only)
    text = Path(path)
    require_file(text)
    fingerprint = _fingerprint(tokenizer)
    ids = _directory(text) / f"{text.name}.{fingerprint[:8]}.ids.safetensors"
    with _alone_with(text):
        made_from = _made_from(text, fingerprint)
        found = _metadata(ids)
        if found.get("made_from") != made_from:
            renewed = " again: it has changed" if found else ""
            found = _write_ids(ids, text, tokenizer, decoder_only, made_from)
            size = f"{int(found['tokens']):,} tokens of {int(found['documents']):,} documents"
            print(f"tokenised {text}{renewed}: {size}, kept in {ids}", file=sys.stderr)
    return Corpus(text, ids, decoder_only, made_from, start=0, stop=int(found["tokens"]))


# ------------------------------------------------------------------------------------------- the file of ids


def _directory(text: Path) -> Path:
    """Where a text's ids go: beside it, or into the cache directory where nothing can be written there."""
    beside = text.absolute().parent
    if os.access(beside, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "ftcore" / hashlib.sha256(os.fsencode(beside)).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of the files that a tokenizer is made of."""
    digest = hashlib.sha256()
    with TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        for file in sorted(Path(directory).iterdir()):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _made_from(text: Path, fingerprint: str) -> str:
    """All that the ids of a text depend on, as their file records it."""
    status = text.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns} ns, tokenizer {fingerprint}, format {_FORMAT}"


def _metadata(ids: Path) -> dict[str, str]:
    """What a file of ids says of itself; nothing where there is none, or none that is whole."""
    try:
        with safe_open(ids, framework="numpy") as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return {}


@contextmanager
def _alone_with(text: Path) -> Iterator[None]:
    """Let one process at a time tokenise a text. Its lock goes when it does, however it ends."""
    with text.open("rb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows, or a file system that has no locks: nobody waits
            pass
        yield


def _write_ids(
    ids: Path, text: Path, tokenizer: Tokenizer, decoder_only: bool, made_from: str
) -> dict[str, str]:
    """Tokenise a text into a file of ids, and return what the file says of itself."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    metadata = {"made_from": made_from}

    def write(place: Path) -> None:
        tokens = documents = 0
        with place.open("wb") as file:
            file.seek(_HEADER)
            for piece, ends in _tokenised(text, tokenizer, decoder_only):
                file.write(np.array(piece, dtype).tobytes())
                tokens += len(piece)
                documents += ends
            if tokens < 2:
                raise ValueError(f"{text}: {tokens} tokens are too few to learn from; expected plain text")
            metadata.update(tokens=str(tokens), documents=str(documents))
            file.seek(0)
            file.write(_header(tokens, dtype, metadata))

    write_atomically(ids, write)
    return metadata


def _header(tokens: int, dtype: np.dtype, metadata: dict[str, str]) -> bytes:
    """What a safetensors file begins with, filled up with spaces to the same length whatever it says."""
    array = {
        "dtype": f"U{8 * dtype.itemsize}",
        "shape": [tokens],
        "data_offsets": [0, tokens * dtype.itemsize],
    }
    content = json.dumps({"__metadata__": metadata, "ids": array}).encode().ljust(_HEADER - 8)
    return len(content).to_bytes(8, "little") + content


# ------------------------------------------------------------------------------------------------ tokenising


def _tokenised(text: Path, tokenizer: Tokenizer, decoder_only: bool) -> Iterator[tuple[list[int], bool]]:
    """The ids of a text, piece by piece: (ids, whether a document ends here)."""
    nothing = tokenizer.encode("")
    in_front = (
        len(nothing) if decoder_only else len(nothing) - 1
    )  # a few tokenizers begin each text with a token
    inside = False
    about = {"desc": f"tokenising {text.name}", "total": text.stat().st_size, "unit": "B", "unit_scale": True}
    with tqdm(**about, delay=2, leave=False) as bar:
        for piece, ends in _pieces(read_chunks(text, _PIECE)):
            bar.update(len(piece.encode()))
            if not inside and not piece.strip():
                continue  # white space alone is no document
            ids = tokenizer.encode(piece)
            if not decoder_only:
                ids.pop()  # </s>
            if inside or not decoder_only:
                del ids[:in_front]
            if ends and decoder_only:
                ids.append(tokenizer.eos_id)
            yield ids, ends
            inside = not ends


def _pieces(chunks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut a text where that does not change its tokens: (piece, whether a document ends here).

    That is in front of white space: neither T5 nor GPT-2 has a token that begins before it and goes on in it,
    and neither looks further than to the end of the word.
    """
    rest = ""
    for chunk in chunks:
        *documents, rest = (rest + chunk).split(END_OF_DOCUMENT)
        for document in documents:
            yield document, True
        word_end = re.match(r".*\S(?=[ \t\n])", rest, re.DOTALL)
        cut = word_end.end() if word_end else len(rest) - len(END_OF_DOCUMENT)  # which may have begun
        if word_end or cut > _LONGEST_WORD:
            yield rest[:cut], False
            rest = rest[cut:]
    yield rest, True
