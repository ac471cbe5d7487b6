"""T5's `spiece.model`, a SentencePiece unigram model (Kudo 2018), and ByT5's bytes.

Added tokens are found first: </s>, <pad>, the sentinels and user-defined pieces. For SentencePiece, the text
between them is encoded by itself and begins with "▁" each time, as in transformers.

mT5 uses the same format. Its sentinels are pieces of the vocabulary that begin a word, `▁<extra_id_0>`. Its
pieces for single bytes are not used: a character without a piece is <unk>, as in transformers.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import WordLevel

from ftcore.checkpoints.files import describe_format
from ftcore.data.tokenizer_files import T5_TOKENS, TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import Tokenizer

MAX_REPLACEMENT = 256  # bytes that replace a character in a Unicode table; 33 in NFKC

_DECODER = decoders.Metaspace(prepend_scheme="always")


class AddedTokens:
    """Finds added tokens in raw text.

    Attributes:
        tokens: {id: token}.
        ids: {text of a token: id}.
    """

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self.tokens = tokens
        self.ids = {token.content: number for number, token in tokens.items()}
        self._first = re.compile(f"[{re.escape(''.join({token.content[:1] for token in tokens.values()}))}]")
        # A regular expression of all tokens would be slow with many. The id of the text between tokens is 0.
        self._finder = Pipeline(WordLevel({"": 0}, unk_token=""))
        self._finder.add_tokens(
            [
                AddedToken(token.content, single_word=token.single_word, normalized=False)
                for token in tokens.values()
            ]
        )

    def split(self, text: str) -> Iterator[str | int]:
        """The text between added tokens, and the ids of these, in order.

        A token with `lstrip` or `rstrip` absorbs the white space before or after it.
        """
        if not self._first.search(text):
            yield text
            return
        encoding = self._finder.encode(text)
        position, strip_left = 0, False
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number == 0:
                continue
            token = self.tokens[self.ids[text[start:end]]]
            between = text[position:start].lstrip() if strip_left else text[position:start]
            yield between.rstrip() if token.lstrip else between
            yield self.ids[token.content]
            position, strip_left = end, token.rstrip
        yield text[position:].lstrip() if strip_left else text[position:]


class SentencePieceTokenizer(Tokenizer):
    """Ids: the pieces of spiece.model, then the sentinels with <extra_id_0> last, then other added tokens."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._processor, tokens = _load(files)
        self._byte_ids = set(filter(self._processor.is_byte, range(len(tokens))))
        self._unk_id = next(filter(self._processor.is_unknown, range(len(tokens))))
        sentinels = files.sentinels(100)
        special = read_special_tokens(files, T5_TOKENS)
        special.extra += [*_added_pieces(self._processor, tokens), *sentinels]
        tokens += [sentinel.content for sentinel in reversed(sentinels)]
        ids = {token: number for number, token in enumerate(tokens)}  # a sentinel may also be a piece
        added = special.tokens()
        for token in added:
            if token.content not in ids:
                ids[token.content] = len(tokens)
                tokens.append(token.content)
        self._ids, self._tokens = ids, tokens
        self._added = AddedTokens({ids[token.content]: token for token in added})
        self._special_ids = {ids[token.content] for token in added if token.special}
        super().__init__(files, {name: ids[token] for name, token in special.names().items()}, len(tokens))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._added.split(text):
            ids += [part] if isinstance(part, int) else self._encode_pieces(part)
        return [*ids, self.eos_id]

    def _encode_pieces(self, text: str) -> list[int]:
        ids = self._processor.encode(text)
        if self._byte_ids.isdisjoint(ids):
            return ids
        merged: list[int] = []  # with one <unk> for each run of bytes
        for number in ids:
            number = self._unk_id if number in self._byte_ids else number
            if number != self._unk_id or merged[-1:] != [self._unk_id]:
                merged.append(number)
        return merged

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        skipped = self._special_ids if skip_special_tokens else ()
        return _DECODER.decode([self._tokens[number] for number in ids if number not in skipped])

    def _id_of(self, token: str) -> int | None:
        return self._ids.get(token)


def _load(files: TokenizerFiles) -> tuple[SentencePieceProcessor, list[str]]:
    """The model and its pieces."""
    processor, content = SentencePieceProcessor(), files.content["spiece.model"]
    try:
        processor.LoadFromSerializedProto(content)
        pieces = [processor.id_to_piece(number) for number in range(len(processor))]
        normalizer = SentencePieceNormalizer(model_proto=content)
        if table := _field(normalizer.serialized_normalizer_spec(), 2):
            check_unicode_table(table)
    except (RuntimeError, ValueError, IndexError):  # IndexError: of _field
        reason = describe_format(content) or "not a SentencePiece model, or damaged"
        raise files.error("spiece.model", reason) from None
    try:
        processor.nbest_encode("a", nbest_size=2)
    except RuntimeError:  # only unigram models have n-best segmentations
        raise files.error("spiece.model", "not a unigram model, which T5's is") from None
    if not any(map(processor.is_unknown, range(len(pieces)))):  # SentencePiece accepts it if bytes are pieces
        raise files.error("spiece.model", "no piece for unknown characters, which T5's vocabulary has")
    return processor, pieces


def _field(message: bytes, number: int) -> bytes:
    """The bytes of a field in a protobuf message of strings and numbers; b"" without it."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
            if byte < 128:
                return value

    while position < len(message):
        key, value = varint(), varint()
        if key & 7 == 2:  # `value` bytes follow
            if key >> 3 == number:
                return message[position : position + value]
            position += value
    return b""


def check_unicode_table(table: bytes) -> None:
    """Raise ValueError for a Unicode table of SentencePiece that is read out of bounds, or expands a text.

    A table is the size of a double-array trie (darts-clone), its units of 4 bytes, and the strings that
    characters are replaced by, each ended by NUL. A leaf of the trie is the position of a string.
    """
    size = int.from_bytes(table[:4], "little")
    units, strings = np.frombuffer(table, "<u4", size // 4, offset=4), table[4 + size :]
    is_leaf = units >> 31 == 1
    # A node's children are in one block of 256 units, its own leaf first.
    children = np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))
    has_leaf = (units & 0x100 != 0) & ~is_leaf
    if (
        not (len(units) and strings.endswith(b"\0"))
        or max(map(len, strings.split(b"\0"))) > MAX_REPLACEMENT
        or (children[~is_leaf] | 0xFF).max(initial=0) >= len(units)
        or not is_leaf[children[has_leaf]].all()
        or (units[is_leaf] & 0x7FFFFFFF).max(initial=0) >= len(strings)
    ):
        raise ValueError("a damaged Unicode table")
    strings.decode()


def _added_pieces(processor: SentencePieceProcessor, pieces: list[str]) -> list[AddedToken]:
    """The control pieces, such as </s>, and the user-defined ones, which are never split or merged."""
    added = []
    for number, piece in enumerate(pieces):
        is_control = processor.is_control(number)
        # The trainer gives user-defined pieces the score 0; those it learns have log-probabilities below it.
        is_user_defined = processor.get_score(number) == 0.0 and not (
            processor.is_unknown(number) or processor.is_unused(number) or processor.is_byte(number)
        )
        if is_control or is_user_defined:
            added.append(AddedToken(piece, normalized=False, special=is_control))
    return added


class ByteTokenizer(Tokenizer):
    """ByT5's (Xue et al. 2022): the UTF-8 bytes of a text.

    The id of a byte is the byte + 3; <pad>, </s> and <unk> come first, added tokens from 259 on.

    The sentinels are added tokens, as in transformers. The published checkpoints were trained before these
    ids existed; the paper's sentinels are the last byte ids, from 258 downwards.
    """

    OFFSET = 3
    FIRST_FREE = OFFSET + 256

    def __init__(self, files: TokenizerFiles) -> None:
        special = read_special_tokens(files, T5_TOKENS, files.sentinels(125))
        first = [
            special.named.get(name) or AddedToken(token, lstrip=True, rstrip=True)
            for name, token in T5_TOKENS.items()
        ]
        special.numbered = tokens = dict(enumerate(first)) | special.numbered
        for token in special.unnumbered():
            tokens[max(self.FIRST_FREE, max(tokens) + 1)] = token
        if "tokenizer_class" not in files.settings:
            files.name_class("ByT5Tokenizer")
        self._added = AddedTokens(tokens)
        named = {name: self._added.ids[token] for name, token in special.names().items()}
        self._special_ids = {*named.values(), *(self._added.ids[token.content] for token in special.extra)}
        super().__init__(files, named, vocab_size=max(self.FIRST_FREE, max(tokens) + 1))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._added.split(text):
            ids += [part] if isinstance(part, int) else [byte + self.OFFSET for byte in part.encode()]
        return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    def token_bytes(self, token: int) -> bytes:
        if token in self._added.tokens:
            return self._added.tokens[token].content.encode()
        return bytes([token - self.OFFSET]) if token < self.FIRST_FREE else b""

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        skipped = self._special_ids if skip_special_tokens else ()
        return b"".join(self.token_bytes(number) for number in ids if number not in skipped).decode(
            errors="ignore"
        )

    def _id_of(self, token: str) -> int | None:
        return self._added.ids.get(token)
