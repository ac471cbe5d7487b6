"""ByT5's tokenizer (Xue et al. 2022): the UTF-8 bytes of a text."""

from tokenizers import AddedToken

from ftcore.data.tokenizer_files import T5_TOKENS, AddedTokens, TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import Tokenizer


class ByteTokenizer(Tokenizer):
    """The id of a byte is the byte + 3; <pad>, </s> and <unk> come first, added tokens from 259 on.

    The sentinels are added tokens, as in transformers. The published checkpoints were trained before these
    ids existed; the paper's sentinels are the last byte ids, from 258 downwards.
    """

    OFFSET = 3
    FIRST_FREE = OFFSET + 256

    def __init__(self, files: TokenizerFiles) -> None:
        special = read_special_tokens(files, T5_TOKENS, files.sentinels(125))
        tokens: dict[int, AddedToken] = {}
        for number, (name, default) in enumerate(T5_TOKENS.items()):
            token = special.named.get(name, default)
            tokens[number] = AddedToken(token, lstrip=True, rstrip=True) if isinstance(token, str) else token
        tokens |= special.numbered
        special.numbered = tokens
        for token in special.unnumbered():
            number = max(self.FIRST_FREE, max(tokens) + 1)
            tokens[number] = AddedToken(token) if isinstance(token, str) else token
        if "tokenizer_class" not in files.settings:
            files.name_class("ByT5Tokenizer")
        self._added = AddedTokens(tokens)
        named = {name: self._added.ids[token] for name, token in special.names().items()}
        self._special_ids = {*named.values(), *(self._added.ids[str(token)] for token in special.extra)}
        super().__init__(files, named, vocab_size=max(self.FIRST_FREE, max(tokens) + 1))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._added.split(text):
            ids += [part] if isinstance(part, int) else [byte + self.OFFSET for byte in part.encode()]
        return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = bytearray()
        for number in ids:
            if number in self._added.tokens:
                if not (skip_special_tokens and number in self._special_ids):
                    text += self._added.tokens[number].content.encode()
            elif number < self.FIRST_FREE:
                text.append(number - self.OFFSET)
        return text.decode(errors="ignore")

    def _id_of(self, token: str) -> int | None:
        return self._added.ids.get(token)
