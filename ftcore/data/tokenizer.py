"""Text <-> token ids: T5's SentencePiece unigrams, GPT-2's byte-level BPE, ByT5's plain bytes.

    files in the directory             tokenizer                    encode appends   <extra_id_0>
    spiece.model                       T5: SentencePiece unigrams   </s>             the highest id
    tokenizer.json, a Unigram model    the same                     </s>             the highest id
    vocab.json and merges.txt          GPT-2: byte-level BPE        nothing          -
    tokenizer.json, any other model    what the file says           what it says     -
    none, but the class ByT5Tokenizer  bytes: id = byte + 3         </s>             259, the others above it

Where several are there, tokenizer.json wins. Whatever the form, the ids are those of transformers, which is
followed in its details. Three of them are worth knowing:

- The search of `tokenizers` finds T5's pieces, for spiece.model too. It takes each word by itself, while
  SentencePiece's own adds up the scores of the whole text. Where two ways to cut a word score the same,
  rounding decides there: far enough into a text `xxx` is `xx|x`. Here it is always `x|xx`.
- T5 has one pipeline: the Unicode table that comes with the pieces, a split at white space, and "▁" before
  each word. Other normalizers that a tokenizer.json may list are passed over.
- T5's sentinels swallow the spaces around them if the files say so (`lstrip`, `rstrip`). tokenizer.json files
  often do, spiece.model alone does not.
"""

import base64
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE, Unigram

from ftcore.data.spiece import Kind, read_sentencepiece_model
from ftcore.data.tokenizer_files import TOKENIZER_FILES, TokenizerFiles, read_special_tokens
from ftcore.models.atomic import write_atomically
from ftcore.models.hub import resolve_directory

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore.models import GPT2Config, T5Config

IGNORED_LABEL = -100  # a position of the labels that holds no token

_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # the ids 0, 1 and 2
_GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")


# ------------------------------------------------------------------------------------------- the interface


class Tokenizer:
    """Text <-> token ids. `load_tokenizer` makes one; its two kinds are `PieceTokenizer` and `ByteTokenizer`.

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
        sentinel = self._id_of(f"<extra_id_{number}>")
        if sentinel is None:
            raise ValueError(f"<extra_id_{number}> is not in this vocabulary of {self.vocab_size} ids")
        return sentinel

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
    """Pieces of words: T5 and GPT-2. The work is done by a pipeline of the `tokenizers` package."""

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


class ByteTokenizer(Tokenizer):
    """ByT5 (Xue et al. 2022): the UTF-8 bytes of the text, behind three special ids.

    The sentinels follow the bytes upwards from 259, as transformers has them. The published checkpoints were
    trained before these ids existed; the paper's sentinels are the last byte ids, from 258 downwards.
    """

    OFFSET = 3  # <pad>, </s> and <unk> come first
    FIRST_FREE = OFFSET + 256

    def __init__(
        self,
        files: dict[str, bytes],
        tokens: dict[int, AddedToken],
        named: dict[str, str],
        hidden: Iterable[str],
        tidy: bool,
    ) -> None:
        """`tokens` are all ids that are not bytes; `hidden` those that decode can leave out."""
        self._tokens = tokens
        self._ids = {token.content: number for number, token in tokens.items()}
        self._hidden = {self._ids[token] for token in hidden}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split
        super().__init__(
            files,
            named={name: self._ids[token] for name, token in named.items()},
            vocab_size=max(self.FIRST_FREE, max(tokens) + 1),
            tidy=tidy,
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        parts = self._split(text)  # text, token, text, token, ..., text
        for position, part in enumerate(parts):
            if position % 2:
                ids.append(self._ids[part])
                continue
            if position > 0 and self._token(parts[position - 1]).rstrip:
                part = part.lstrip()
            if position + 1 < len(parts) and self._token(parts[position + 1]).lstrip:
                part = part.rstrip()
            ids.extend(byte + self.OFFSET for byte in part.encode())
        return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = bytearray()
        for number in ids:
            if number in self._tokens:
                if not (skip_special_tokens and number in self._hidden):
                    text += self._tokens[number].content.encode()
            elif number < self.FIRST_FREE:
                text.append(number - self.OFFSET)
        return text.decode(errors="ignore")

    def _id_of(self, token: str) -> int | None:
        return self._ids.get(token)

    def _token(self, content: str) -> AddedToken:
        return self._tokens[self._ids[content]]


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


def check_vocabulary(
    tokenizer: Tokenizer, config: "T5Config | GPT2Config", where: str | os.PathLike[str]
) -> None:
    """Make sure that each id of a tokenizer has a row in a model's embedding.

    Fewer ids than rows is usual: T5 has 32100 ids and, rounded up for the hardware, 32128 rows.

    Raises:
        ValueError: there are more ids than rows; the message starts with `where` and names both numbers.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{os.fspath(where)}: the tokenizer has {tokenizer.vocab_size} ids, but the embedding only "
            f"{config.vocab_size} rows (vocab_size in config.json); take the tokenizer that belongs to it"
        )


# ------------------------------------------------------------------------------------------------- reading


def load_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer whose files lie in a directory.

    Args:
        name: a directory, or the name of a model on the hub (see `resolve_directory`).

    Raises:
        FileNotFoundError: no such directory, or no tokenizer in it.
        ValueError: a file that is damaged or of another kind; the message names it.
    """
    files = TokenizerFiles(resolve_directory(name, weights=False))
    if files.tokenizer_class == "ByT5Tokenizer":
        return _from_bytes(files)
    if "tokenizer.json" in files.content:
        return _from_json(files)
    if "spiece.model" in files.content:
        _require_class(files, "T5Tokenizer", "spiece.model")
        return _from_spiece(files)
    if "vocab.json" in files.content and "merges.txt" in files.content:
        _require_class(files, "GPT2Tokenizer", "vocab.json")
        return _from_merges(files)
    raise FileNotFoundError(
        f"{files.directory}: no tokenizer; expected tokenizer.json, spiece.model or vocab.json + merges.txt"
    )


def _require_class(files: TokenizerFiles, expected: str, vocabulary: str) -> None:
    """Refuse a vocabulary that another class would use in another way, rather than give wrong ids."""
    if files.tokenizer_class not in (None, expected):
        raise files.error(
            vocabulary,
            f"read as a {expected}'s, but tokenizer_class is {files.tokenizer_class}; "
            "save that tokenizer with transformers, in the form of a tokenizer.json",
        )


def _from_spiece(files: TokenizerFiles) -> Tokenizer:
    """T5 from the model that SentencePiece trained: its pieces, and the sentinels behind them."""
    try:
        model = read_sentencepiece_model(files.content["spiece.model"])
    except ValueError as error:
        raise files.error("spiece.model", str(error)) from None
    pieces = model.pieces + [(sentinel, 0.0) for sentinel in reversed(_sentinels(files, 100))]
    marked = [
        AddedToken(piece, normalized=False, special=kind == Kind.CONTROL)
        for (piece, _), kind in zip(model.pieces, model.kinds, strict=True)
        if kind in (Kind.CONTROL, Kind.USER_DEFINED)
    ]
    return _t5(files, Unigram(pieces, model.unk_id, False), model.character_map, marked)


def _from_json(files: TokenizerFiles) -> Tokenizer:
    """T5 where the file holds unigrams; any other tokenizer exactly as the file has it."""
    values = files.json("tokenizer.json")
    try:
        is_t5 = values["model"]["type"] == "Unigram"
        if is_t5:
            pieces = [(piece, score) for piece, score in values["model"]["vocab"]]
            model = Unigram(pieces, values["model"]["unk_id"], False)
            character_map = _character_map(values["normalizer"])
        else:
            pipeline = Pipeline.from_str(files.content["tokenizer.json"].decode())
    except Exception as error:  # the tokenizers package raises nothing more particular
        raise files.error("tokenizer.json", f"not a tokenizer ({type(error).__name__}: {error})") from None
    if is_t5:
        return _t5(files, model, character_map)
    pipeline.no_padding()
    pipeline.no_truncation()
    defaults = _GPT2_TOKENS if files.tokenizer_class in (None, "GPT2Tokenizer") else {}
    special = read_special_tokens(files, defaults)
    special.add_to(pipeline)
    return PieceTokenizer(files.content, pipeline, special.names(), tidy=False)


def _character_map(normalizer: dict[str, Any] | None) -> bytes:
    """SentencePiece's Unicode table out of tokenizer.json's "normalizer", b"" where there is none."""
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    tables = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    return base64.b64decode(tables[0]) if tables else b""


def _t5(
    files: TokenizerFiles, model: Unigram, character_map: bytes, marked: Iterable[AddedToken] = ()
) -> Tokenizer:
    """T5's pipeline around its pieces; `marked` are those to find before the text is cut into words."""
    pipeline = Pipeline(model)
    if character_map:
        pipeline.normalizer = normalizers.Precompiled(character_map)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    pipeline.decoder = decoders.Metaspace(prepend_scheme="always")
    special = read_special_tokens(files, _T5_TOKENS, _sentinels(files, 100))
    special.extra.extend(marked)
    special.add_to(pipeline)
    eos = special.names()["eos_token"]
    pipeline.post_processor = processors.TemplateProcessing(
        single=["$A", eos], special_tokens=[(eos, pipeline.token_to_id(eos))]
    )
    return PieceTokenizer(files.content, pipeline, special.names(), tidy=_is_tidy(files))


def _from_merges(files: TokenizerFiles) -> Tokenizer:
    """GPT-2 from its tokens and the pairs to merge, in that order (Radford et al. 2019, section 2.2)."""
    vocabulary = files.json("vocab.json")
    if not all(isinstance(number, int) and number >= 0 for number in vocabulary.values()):
        raise files.error("vocab.json", "expected an object of tokens and their ids")
    pipeline = Pipeline(BPE(vocabulary, _merges(files, vocabulary)))
    add_prefix_space = bool(files.setting("add_prefix_space", False))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    pipeline.decoder = decoders.ByteLevel()
    special = read_special_tokens(files, _GPT2_TOKENS)
    special.add_to(pipeline)
    names = special.names()
    before = [names["bos_token"]] if files.setting("add_bos_token", False) and "bos_token" in names else []
    behind = [names["eos_token"]] if files.setting("add_eos_token", False) else []
    pipeline.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        special_tokens=[(token, pipeline.token_to_id(token)) for token in {*before, *behind}],
    )
    return PieceTokenizer(files.content, pipeline, names, tidy=False)


def _merges(files: TokenizerFiles, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs in merges.txt, checked here: one that is not in the vocabulary makes the package panic."""
    merges = []
    lines = files.content["merges.txt"].decode(errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            expected = "expected two tokens of vocab.json that make up a third"
            raise files.error(f"merges.txt:{number}", f"found {line!r}, {expected}")
        merges.append((left, right))
    return merges


def _from_bytes(files: TokenizerFiles) -> Tokenizer:
    """ByT5: there is no vocabulary, only the class's name and perhaps further tokens."""
    special = read_special_tokens(files, _T5_TOKENS, _sentinels(files, 125))
    tokens: dict[int, AddedToken] = {}
    for number, (name, default) in enumerate(_T5_TOKENS.items()):
        token = special.named.get(name, default)
        tokens[number] = AddedToken(token, lstrip=True, rstrip=True) if isinstance(token, str) else token
    tokens |= special.numbered
    special.numbered = tokens
    for token in special.unnumbered():
        number = max(ByteTokenizer.FIRST_FREE, max(tokens) + 1)
        tokens[number] = AddedToken(token) if isinstance(token, str) else token
    if (
        "tokenizer_class" not in files.settings
    ):  # config.json alone says it, and is not the tokenizer's to save
        settings = files.settings | {"tokenizer_class": "ByT5Tokenizer"}
        files.content["tokenizer_config.json"] = json.dumps(settings, indent=2).encode()
    hidden = [*special.names().values(), *map(str, special.extra)]
    return ByteTokenizer(files.content, tokens, special.names(), hidden, tidy=_is_tidy(files))


def _sentinels(files: TokenizerFiles, default: int) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(files.setting("extra_ids", default))]


def _is_tidy(files: TokenizerFiles) -> bool:
    return bool(files.setting("clean_up_tokenization_spaces", False))
