"""The interface of all tokenizers."""

import hashlib
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING

from ftcore.checkpoints.files import make_directory, write_atomically
from ftcore.checkpoints.hub import TOKENIZER_FILES
from ftcore.data.tokenizer_files import MAX_IDS, TokenizerFiles

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100  # the label of positions without a target; cross_entropy's ignore_index


@contextmanager
def native_errors(path: Path, failure: str) -> Iterator[None]:
    """Turn errors of sentencepiece and tokenizers, which name no file, into a ValueError that does."""
    try:
        yield
    except BaseException as error:
        # A Rust panic is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path}: {failure} ({error!r:.300})") from None


class Tokenizer:
    """Text <-> token ids. `load_tokenizer` makes one; each kind implements `_encode`, `_decode` and `_id_of`.

    Attributes:
        vocab_size: the highest id + 1, added tokens included. A checkpoint's embedding may have more rows.
        eos_id: the end-of-sequence token.
        pad_id: the padding token; `eos_id` where the files name none, as GPT-2's do.
        bos_id, unk_id: the tokens for the beginning of a text and for unknown characters, or None.
    """

    def __init__(self, files: TokenizerFiles, named: Mapping[str, int], vocab_size: int) -> None:
        """`named` has the ids of the special tokens with a name: {"eos_token": 1, ...}."""
        if vocab_size > MAX_IDS:
            raise ValueError(
                f"{files.vocabulary}: the highest id is {vocab_size - 1}, expected below {MAX_IDS}"
            )
        self.vocab_size = vocab_size
        self.eos_id = named["eos_token"]
        self.pad_id = named.get("pad_token", self.eos_id)
        self.bos_id = named.get("bos_token")
        self.unk_id = named.get("unk_token")
        self._files = files.content
        self._vocabulary = files.vocabulary
        self._clean_up = files.flag("clean_up_tokenization_spaces")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.vocab_size} ids>"

    def encode(self, text: str) -> list[int]:
        """The ids of a text. T5 and ByT5 append </s>, GPT-2 appends nothing.

        Special tokens that are written out in the text, such as `<extra_id_0>`, become their ids.

        Raises:
            ValueError: the text contains a lone surrogate, or a character that a tokenizer.json without an
                unknown token cannot encode.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes one string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has a lone surrogate, {text[error.start]!r}, at character {error.start}, "
                'which UTF-8 cannot encode; read the text with errors="replace" or remove it'
            ) from None
        with native_errors(self._vocabulary, "cannot encode this text"):
            return self._encode(text)

    def decode(self, ids: "Iterable[int] | Tensor", skip_special_tokens: bool = True) -> str:
        """The text of one row of ids.

        Args:
            ids: a list, an array or a tensor of shape (T,). -100, as in labels, is skipped, and so are ids
                from `vocab_size` on: the padding rows of an embedding have no text.
            skip_special_tokens: leave out </s>, padding, sentinels and other special tokens.

        Raises:
            ValueError: `ids` is not one row of ids.
        """
        row = _row(ids, self.vocab_size)
        with native_errors(self._vocabulary, "cannot decode these ids"):
            text = self._decode(row, skip_special_tokens)
        return _clean_up_spaces(text) if self._clean_up else text

    def decode_final(self, ids: "Iterable[int] | Tensor", skip_special_tokens: bool = True) -> str:
        """The beginning of the text of `ids` that further ids cannot change, for streaming.

        A character may take several tokens: its first ones decode to U+FFFD.
        """
        text = self._decode(_row(ids, self.vocab_size), skip_special_tokens).rstrip("\ufffd")
        if not self._clean_up:
            return text
        barrier = _CLEAN_UP_BARRIER.match(text)
        return _clean_up_spaces(barrier[0]) if barrier else ""

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text before it, as UTF-8; nothing where an id has no token."""
        row = _row([token], self.vocab_size)
        once, twice = self._decode(row, False), self._decode(row * 2, False)  # T5's has no space at its start
        return twice[len(once) :].encode()

    def sentinel_id(self, number: int) -> int:
        """The id of <extra_id_{number}>, which marks a span in a corrupted text (T5 paper, section 3.1.4).

        Raises:
            ValueError: the vocabulary has no such sentinel.
        """
        token = f"<extra_id_{number}>"
        for name in (token, f"▁{token}"):  # mT5's sentinels are pieces that begin a word
            if (sentinel := self._id_of(name)) is not None:
                return sentinel
        raise ValueError(f"{token} is not in this vocabulary of {self.vocab_size} ids")

    def fingerprint(self) -> str:
        """A hash of the tokenizer's files."""
        digest = hashlib.sha256()
        for name, content in sorted(self._files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the files that this tokenizer was loaded from, each atomically.

        Other tokenizer files in the directory are removed, since `load_tokenizer` could prefer them.

        Raises:
            ValueError: `directory` is a file.
            OSError: the disk is full or the directory cannot be written.
        """
        directory = make_directory(directory, "the tokenizer")
        for name, content in self._files.items():
            write_atomically(directory / name, operator.methodcaller("write_bytes", content))
        for name in set(TOKENIZER_FILES) - set(self._files):
            (directory / name).unlink(missing_ok=True)

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise NotImplementedError

    def _id_of(self, token: str) -> int | None:
        raise NotImplementedError


def _row(ids: "Iterable[int] | Tensor", vocab_size: int) -> list[int]:
    """One row of ids as ints, without those that have no token."""
    try:
        numbers = list(ids.tolist() if hasattr(ids, "tolist") else ids)
        if isinstance(ids, bytes) or any(isinstance(number, bool) for number in numbers):  # such as a mask
            raise TypeError
        row = [operator.index(number) for number in numbers]
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without data, or a sparse one
        kind = f"a {type(ids).__name__} of shape {tuple(ids.shape)}" if hasattr(ids, "shape") else shown(ids)
        raise ValueError(f"decode takes one row of whole numbers, got {kind}") from None
    for number in row:
        if number < 0 and number != IGNORED_LABEL:
            raise ValueError(
                f"{shown(number)} is not a token id, expected 0 or more, or {IGNORED_LABEL} to skip"
            )
    return [number for number in row if 0 <= number < vocab_size]


# A text up to the last word beyond which no text can change what `_clean_up_spaces` does before it: a word of
# three characters, or a complete one whose preceding space is never removed.
_CLEAN_UP_BARRIER = re.compile(r".*(?<![^ ])(?:[^ ]{3,}|[^ .?!,'n][^ ]*(?= ))", re.DOTALL)


def _clean_up_spaces(text: str) -> str:
    """Remove spaces before English punctuation and contractions, for `clean_up_tokenization_spaces`."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
