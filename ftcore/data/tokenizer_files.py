"""The files of a tokenizer: which class it is, and which tokens are special.

transformers has kept special tokens in four places over the years, and checkpoints use all of them:

    tokenizer_config.json      the class; eos_token, pad_token, ...; often "added_tokens_decoder", with ids
    special_tokens_map.json    eos_token, pad_token, ...
    added_tokens.json          tokens after the vocabulary, with ids
    tokenizer.json             "added_tokens", with ids

Where the first has "added_tokens_decoder", the others are ignored; else all four are merged.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tokenizers import AddedToken

from ftcore.checkpoints.files import read_json, read_text
from ftcore.checkpoints.hub import TOKENIZER_FILES

_PIPELINE, _ADDED = "tokenizer.json", "added_tokens.json"
_CONFIG, _TOKEN_MAP = "tokenizer_config.json", "special_tokens_map.json"

T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # the ids 0, 1 and 2

# In the order in which transformers adds those that a vocabulary lacks.
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

MAX_IDS = 2**24  # of a vocabulary; the largest published ones have about a million
MAX_SENTINELS = 10_000


class TokenizerFiles:
    """The tokenizer files of a directory.

    Attributes:
        content: {file name: bytes}, of those of `TOKENIZER_FILES` that exist.
        vocabulary: the file with the vocabulary, or for ByT5 the one that names the class.
        settings: tokenizer_config.json, {} without one.
        tokenizer_class: the class in transformers, without "Fast"; None if no file names it.
        model_type: that of the model's config.json, None without one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths = [directory / name for name in TOKENIZER_FILES]
        self.content = {path.name: path.read_bytes() for path in paths if os.path.lexists(path)}
        self.vocabulary = directory / next(iter(self.content), "config.json")
        self.settings = self.json(_CONFIG)
        config = self.json("config.json")
        for name, values in ((_CONFIG, self.settings), ("config.json", config)):
            if not isinstance(values.get("tokenizer_class"), str | None):
                raise self.wrong(name, "tokenizer_class", values["tokenizer_class"], "the name of a class")
        named = self.settings.get("tokenizer_class") or config.get("tokenizer_class")
        self.tokenizer_class = named.removesuffix("Fast") if named else None
        self.model_type = config.get("model_type")

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, {} without one."""
        path = self.directory / name
        return read_json(path) if os.path.lexists(path) else {}

    def text(self, name: str) -> str:
        """The text of a file, by its name."""
        return read_text(self.directory / name)

    def error(self, name: str, message: str) -> ValueError:
        """An error that names a file of the directory."""
        return ValueError(f"{self.directory / name}: {message}")

    def wrong(self, name: str, key: str, value: object, expected: str) -> ValueError:
        """An error that names a file, a key and its value."""
        return self.error(name, f"{key} is {shown(value)}, expected {expected}")

    def number(self, name: str, key: str, value: object, *, token: str = "", limit: int = MAX_IDS) -> int:
        """The id of a token, or a number of ids: a JSON number, or the digits that are a key of an object."""
        try:
            number = int(str(value))  # not of a bool or a float
        except ValueError:
            number = -1
        if not 0 <= number < limit:
            key = f"{key} of {shown(token)}" if token else key
            raise self.wrong(name, key, value, f"a whole number from 0 to {limit - 1}")
        return number

    def flag(self, name: str) -> bool:
        """A bool from tokenizer_config.json; False without one."""
        value = self.settings.get(name)
        if not isinstance(value, bool | None):
            raise self.wrong(_CONFIG, name, value, "true or false")
        return bool(value)

    def token(self, name: str, key: str, value: object) -> AddedToken | None:
        """A special token: its text, or an object that also has flags. null and "" mean none."""
        content, flags = value, {"special": True}
        if isinstance(value, dict):
            content = value.get("content", value)
            flags = {flag: value[flag] for flag in _FLAGS if flag in value}
        elif self.tokenizer_class == "ByT5Tokenizer" and key in T5_TOKENS:  # as in transformers
            flags |= {"lstrip": True, "rstrip": True}
        if not isinstance(content, str | None) or not all(isinstance(flag, bool) for flag in flags.values()):
            raise self.wrong(name, key, value, 'a token such as "</s>" or an object with its "content"')
        return AddedToken(content, **flags) if content else None

    def name_class(self, name: str) -> None:
        """Write the class into tokenizer_config.json: it is saved without the model's config.json."""
        self.settings["tokenizer_class"] = self.tokenizer_class = name
        self.content[_CONFIG] = json.dumps(self.settings, indent=2).encode()

    def sentinels(self, default: int) -> list[AddedToken]:
        """T5's <extra_id_0> and so on; `extra_ids` in tokenizer_config.json is their number."""
        value = self.settings.get("extra_ids")
        number = self.number(_CONFIG, "extra_ids", default if value is None else value, limit=MAX_SENTINELS)
        return [AddedToken(f"<extra_id_{index}>", special=True) for index in range(number)]


@dataclass
class SpecialTokens:
    """Tokens that are found in a text before it is tokenized."""

    named: dict[str, AddedToken]  # eos_token, pad_token, ...
    numbered: dict[int, AddedToken]  # those with an id in the files
    extra: list[AddedToken]  # sentinels and others without a name

    def names(self) -> dict[str, str]:
        """The text of each token that has a name: {"eos_token": "</s>", ...}."""
        return {name: token.content for name, token in self.named.items()}

    def unnumbered(self) -> list[AddedToken]:
        """The tokens without an id in the files, without duplicates, those with a name first."""
        tokens: dict[str, AddedToken] = {}
        for token in (*self.named.values(), *self.extra):
            tokens.setdefault(token.content, token)
        for token in self.numbered.values():
            tokens.pop(token.content, None)
        return list(tokens.values())

    def tokens(self, known: Iterable[str] = ()) -> list[AddedToken]:
        """All tokens, in the order in which those missing from a vocabulary get the next free ids.

        Tokens in `known` already have their flags; they are listed only if the files number them.
        """
        names = set(self.names().values())
        tokens = [token for _, token in sorted(self.numbered.items())]
        tokens += [token for token in self.unnumbered() if token.content not in known]
        for token in tokens:
            token.special = token.special or token.content in names
        return tokens


def read_special_tokens(
    files: TokenizerFiles,
    defaults: Mapping[str, str],
    sentinels: Iterable[AddedToken] = (),
    required: Iterable[str] = ("eos_token",),
) -> SpecialTokens:
    """Read the special tokens from all files; `defaults` and `sentinels` are those they may leave out.

    Raises:
        ValueError: a file is not in transformers' format, or no file has a token in `required`.
    """
    named, extra = _named(files, _CONFIG), _extra(files, _CONFIG)
    is_complete = "added_tokens_decoder" in files.settings
    if not is_complete:
        named |= _named(files, _TOKEN_MAP)
    numbered = _numbered(files, special={token.content for token in (*named.values(), *extra) if token})
    if not is_complete and not extra:  # after `numbered`, where these do not count as special
        extra = _extra(files, _TOKEN_MAP)
    default = {name: files.token(_CONFIG, name, text) for name, text in defaults.items()}
    given = {name: token for name, token in (dict.fromkeys(_NAMES) | default | named).items() if token}
    for name in required:
        if name not in given:
            raise files.error(_CONFIG, f"no {name}, expected the token that begins or ends a text")
    return SpecialTokens(given, numbered, extra or [*sentinels])


def _numbered(files: TokenizerFiles, special: set[str]) -> dict[int, AddedToken]:
    """{id: token} of the tokens with an id; those of added_tokens.json have no flags but are in `special`."""
    if "added_tokens_decoder" in files.settings:
        decoder = files.settings["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise files.wrong(_CONFIG, "added_tokens_decoder", decoder, "an object of ids and tokens")
        found = [(_CONFIG, "added_tokens_decoder", number, token) for number, token in decoder.items()]
    else:
        tokens = files.json(_PIPELINE).get("added_tokens", [])
        if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
            raise files.wrong(_PIPELINE, "added_tokens", tokens, "a list of objects")
        found = [
            (_ADDED, "token", number, {"content": content, "special": content in special})
            for content, number in files.json(_ADDED).items()
        ]
        found += [(_PIPELINE, "added_tokens", token.get("id"), token) for token in tokens]
    return {
        files.number(name, "the id", number, token=token.content): token
        for name, key, number, value in found
        if (token := files.token(name, key, value))
    }


def _named(files: TokenizerFiles, name: str) -> dict[str, AddedToken | None]:
    """eos_token and the like, and a model's own such as image_token; None for null."""
    values = files.json(name)
    tokens = {
        key: value
        for key, value in values.items()
        if key in _NAMES or (key.endswith("_token") and isinstance(value, str | dict))  # not add_bos_token
    }
    if isinstance(values.get("extra_special_tokens"), dict):
        tokens |= values["extra_special_tokens"]
    return {
        key: files.token(name, key if key in _NAMES else shown(key), value) for key, value in tokens.items()
    }


def _extra(files: TokenizerFiles, name: str) -> list[AddedToken]:
    """The special tokens without a name, under the new key or the old one."""
    values = files.json(name)
    key = "extra_special_tokens" if values.get("extra_special_tokens") else "additional_special_tokens"
    tokens = values.get(key) or []
    if isinstance(tokens, dict):  # with names
        return []
    if not isinstance(tokens, list):
        raise files.wrong(name, key, tokens, "a list of tokens")
    return [token for value in tokens if (token := files.token(name, key, value))]
