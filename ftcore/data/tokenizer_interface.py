"""What every tokenizer can do, and the kind whose work is done by the `tokenizers` package."""

import operator
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as Pipeline

from ftcore.checkpoints.files import write_atomically
from ftcore.data.tokenizer_files import TOKENIZER_FILES

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100  # a position of the labels that holds no token


class Tokenizer:
    """Text <-> token ids. `load_tokenizer` makes one; its kinds are `PieceTokenizer` and `ByteTokenizer`.

    Attributes:
        vocab_size: the highest id + 1, added tokens included. A checkpoint's embedding may have more rows.
        eos_id: the id that ends a text.
        pad_id: the id that fills a row up; `eos_id` where the files name none, as GPT-2's do.
        bos_id, unk_id: the ids that begin a text and that stand for what the vocabulary lacks, or None.
    """

    def __init__(
        self, files: dict[str, bytes], named: Mapping[str, int], vocab_size: int, tidy: bool
    ) -> None:
        self.vocab_size = vocab_size
        self.eos_id = named["eos_token"]
        self.pad_id = named.get("pad_token", self.eos_id)
        self.bos_id = named.get("bos_token")
        self.unk_id = named.get("unk_token")
        self._files = files
        self._tidy = tidy

    def encode(self, text: str) -> list[int]:
        """The ids of a text. T5 and ByT5 append </s>, GPT-2 appends nothing.

        Special tokens that are written out in the text, such as `<extra_id_0>`, become their ids.

        Raises:
            ValueError: the text holds half of a surrogate pair, which is no character.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes one string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has a lone surrogate, {text[error.start]!r}, at character {error.start}, "
                'which UTF-8 cannot hold; read the text with errors="replace" or remove it'
            ) from None
        return self._encode(text)

    def decode(self, ids: "Iterable[int] | Tensor", skip_special_tokens: bool = True) -> str:
        """The text of one row of ids.

        Args:
            ids: a list, an array or a tensor of shape (T,). -100, as labels have it, is skipped, and so are
                ids from `vocab_size` on: the rows that fill up an embedding have no text.
            skip_special_tokens: leave out </s>, padding, sentinels and the like.

        Raises:
            ValueError: `ids` is not one row of ids.
        """
        text = self._decode(_row(ids, self.vocab_size), skip_special_tokens)
        return _tidy_spaces(text) if self._tidy else text

    def sentinel_id(self, number: int) -> int:
        """The id of <extra_id_{number}>, which marks a hole in a corrupted text (T5 paper, section 3.1.4).

        Raises:
            ValueError: the vocabulary has no such sentinel.
        """
        token = f"<extra_id_{number}>"
        for name in (token, f"▁{token}"):  # mT5's are pieces of its vocabulary, which begin words
            if (sentinel := self._id_of(name)) is not None:
                return sentinel
        raise ValueError(f"{token} is not in this vocabulary of {self.vocab_size} ids")

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the files that this tokenizer was made of; each is whole, old or new, at any time.

        Tokenizer files of another kind that lie in the directory are removed, for they could win over these.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            write_atomically(directory / name, partial(_write, content))
        for name in set(TOKENIZER_FILES) - set(self._files):
            (directory / name).unlink(missing_ok=True)

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise NotImplementedError

    def _id_of(self, token: str) -> int | None:
        raise NotImplementedError


class PieceTokenizer(Tokenizer):
    """Pieces of words: T5 and GPT-2. The work is done by a pipeline of the `tokenizers` package.

    `named` are its special tokens: {"eos_token": "</s>", ...}.
    """

    def __init__(
        self, files: dict[str, bytes], pipeline: Pipeline, named: dict[str, str], tidy: bool
    ) -> None:
        vocabulary = pipeline.get_vocab(with_added_tokens=True)
        super().__init__(
            files,
            named={name: vocabulary[token] for name, token in named.items()},
            vocab_size=max(vocabulary.values()) + 1,
            tidy=tidy,
        )
        self._pipeline = pipeline

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Beside a spiece.model write a tokenizer.json too: transformers needs no protobuf for it."""
        if "spiece.model" in self._files and "tokenizer.json" not in self._files:
            self._files["tokenizer.json"] = self._pipeline.to_str(pretty=True).encode()
        super().save_pretrained(directory)

    def _encode(self, text: str) -> list[int]:
        # The batch method is a quarter faster even for one text: it leaves out the positions in the text.
        return self._pipeline.encode_batch_fast([text])[0].ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._pipeline.decode(ids, skip_special_tokens=skip_special_tokens)

    def _id_of(self, token: str) -> int | None:
        return self._pipeline.token_to_id(token)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _row(ids: "Iterable[int] | Tensor", vocab_size: int) -> list[int]:
    """One row of ids as plain numbers, without those that stand for no token."""
    numbers = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        row = [operator.index(number) for number in numbers]
    except TypeError:
        kind = f"a {type(ids).__name__} of shape {tuple(ids.shape)}" if hasattr(ids, "shape") else repr(ids)
        raise ValueError(f"decode takes one row of whole numbers, got {kind[:80]}") from None
    for number in row:
        if number < 0 and number != IGNORED_LABEL:
            raise ValueError(f"{number} is no token id, expected 0 or more, or {IGNORED_LABEL} to be skipped")
    return [number for number in row if 0 <= number < vocab_size]


def _tidy_spaces(text: str) -> str:
    """Undo the spaces that English treebanks put before punctuation (`clean_up_tokenization_spaces`)."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
