"""ByT5's tokenizer (Xue et al. 2022): the UTF-8 bytes of a text."""

import re
from collections.abc import Iterable

from tokenizers import AddedToken

from ftcore.data.tokenizer_files import TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import Tokenizer
from ftcore.data.tokenizer_unigram import T5_TOKENS


class ByteTokenizer(Tokenizer):
    """A byte's id is the byte + 3, behind three special ids.

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


def bytes_from_class(files: TokenizerFiles) -> ByteTokenizer:
    """There is no vocabulary to read, only the class's name and perhaps further tokens."""
    special = read_special_tokens(files, T5_TOKENS, files.sentinels(125))
    tokens: dict[int, AddedToken] = {}
    for number, (name, default) in enumerate(T5_TOKENS.items()):
        token = special.named.get(name, default)
        tokens[number] = AddedToken(token, lstrip=True, rstrip=True) if isinstance(token, str) else token
    tokens |= special.numbered
    special.numbered = tokens
    for token in special.unnumbered():
        number = max(ByteTokenizer.FIRST_FREE, max(tokens) + 1)
        tokens[number] = AddedToken(token) if isinstance(token, str) else token
    if "tokenizer_class" not in files.settings:
        files.name_class("ByT5Tokenizer")
    hidden = [*special.names().values(), *map(str, special.extra)]
    return ByteTokenizer(files.content, tokens, special.names(), hidden, tidy=files.tidy)
