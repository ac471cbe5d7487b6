"""The files of a tokenizer: which class it is, and which tokens are special.

transformers has kept special tokens in four places over the years, and checkpoints use all of them:

    tokenizer_config.json      the class; eos_token, pad_token, ...; often "added_tokens_decoder", with ids
    special_tokens_map.json    eos_token, pad_token, ...
    added_tokens.json          tokens after the vocabulary, with ids
    tokenizer.json             "added_tokens", with ids

Where the first has "added_tokens_decoder", the others are ignored; else all four are merged.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ftcore.checkpoints.files import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # the ids 0, 1 and 2

# In the order in which transformers adds those that a vocabulary lacks.
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFiles:
    """The tokenizer files of a directory.

    Attributes:
        content: {file name: bytes}, of those of `TOKENIZER_FILES` that exist.
        settings: tokenizer_config.json, {} without one.
        tokenizer_class: the class in transformers, without "Fast"; None if no file names it.
        model_type: that of the model's config.json, None without one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths = [directory / name for name in TOKENIZER_FILES]
        self.content = {path.name: path.read_bytes() for path in paths if path.is_file()}
        self.settings = self.json("tokenizer_config.json")
        config = self.json("config.json")
        name = self.settings.get("tokenizer_class") or config.get("tokenizer_class")
        self.tokenizer_class = name.removesuffix("Fast") if isinstance(name, str) else None
        self.model_type = config.get("model_type")

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, {} without one."""
        path = self.directory / name
        return read_json(path) if path.is_file() else {}

    def text(self, name: str) -> str:
        return self.content[name].decode(errors="replace")

    def error(self, name: str, message: str) -> ValueError:
        """An error that names a file of the directory."""
        return ValueError(f"{self.directory / name}: {message}")

    def setting(self, name: str, default: int) -> int:
        """A number or a bool from tokenizer_config.json."""
        value = self.settings.get(name)
        if value is None:
            return default
        if not isinstance(value, int):
            raise self.error("tokenizer_config.json", f"{name} is {value!r}, expected a value like {default}")
        return value

    def name_class(self, name: str) -> None:
        """Write the class into tokenizer_config.json: it is saved without the model's config.json."""
        self.settings["tokenizer_class"] = self.tokenizer_class = name
        self.content["tokenizer_config.json"] = json.dumps(self.settings, indent=2).encode()

    def sentinels(self, default: int) -> list[str]:
        """T5's <extra_id_0> and so on; `extra_ids` in tokenizer_config.json is their number."""
        return [f"<extra_id_{number}>" for number in range(self.setting("extra_ids", default))]


@dataclass
class SpecialTokens:
    """Tokens that are found in a text before it is tokenized; plain strings have the default flags."""

    named: dict[str, str | AddedToken]  # eos_token, pad_token, ...
    numbered: dict[int, AddedToken]  # those with an id in the files
    extra: list[str | AddedToken]  # sentinels and others without a name

    def names(self) -> dict[str, str]:
        """The text of each token that has a name: {"eos_token": "</s>", ...}."""
        return {name: str(token) for name, token in self.named.items()}

    def unnumbered(self) -> list[str | AddedToken]:
        """The tokens without an id in the files, without duplicates, those with a name first."""
        tokens: dict[str, str | AddedToken] = {}
        for token in (*self.named.values(), *self.extra):
            tokens.setdefault(str(token), token)
        for token in self.numbered.values():
            tokens.pop(token.content, None)
        return list(tokens.values())

    def tokens(self, known: Iterable[str] = ()) -> list[AddedToken]:
        """All tokens, in the order in which those missing from a vocabulary get the next free ids.

        Tokens in `known` already have their flags; they are listed only if the files number them.
        """
        names = set(self.names().values())
        tokens = [token for _, token in sorted(self.numbered.items())]
        for token in self.unnumbered():
            if str(token) not in known:
                tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        for token in tokens:
            token.special = token.special or token.content in names
        return tokens


def read_special_tokens(
    files: TokenizerFiles, defaults: dict[str, str], sentinels: Iterable[str] = ()
) -> SpecialTokens:
    """Read the special tokens from all files; `defaults` and `sentinels` are those they may leave out.

    Raises:
        ValueError: a file is not in transformers' format, or no file has an eos_token.
    """
    token_map, added = files.json("special_tokens_map.json"), files.json("added_tokens.json")
    in_pipeline = files.json("tokenizer.json").get("added_tokens", [])
    try:
        special = _merge(files.settings, token_map, added, in_pipeline, defaults)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise files.error(
            "tokenizer_config.json",
            f"it or another file of special tokens is not in transformers' format ({error!r})",
        ) from None
    if "eos_token" not in special.named:
        raise files.error("tokenizer_config.json", "no eos_token, expected the token that ends a text")
    special.extra = special.extra or list(sentinels)
    return special


def _merge(
    settings: dict[str, Any],
    token_map: dict[str, Any],
    added: dict[str, int],
    in_pipeline: list[dict[str, Any]],
    defaults: dict[str, str],
) -> SpecialTokens:
    """Merge the four files with the precedence of transformers' `from_pretrained`."""
    extra = _extra(settings)
    numbered: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for number, token in settings["added_tokens_decoder"].items():
            numbered[int(number)] = _added_token(token)
    else:
        settings = settings | token_map
        special = {str(token) for token in (*_named(settings).values(), *extra)}
        for content, number in added.items():
            is_special = content in special
            numbered[int(number)] = AddedToken(content, normalized=not is_special, special=is_special)
        for token in in_pipeline:
            numbered[int(token["id"])] = _added_token(token)
        extra = extra or _extra(settings)
    return SpecialTokens(_named(defaults | settings), numbered, extra)


def _named(settings: dict[str, Any]) -> dict[str, str | AddedToken]:
    """eos_token and the like, and a model's own such as image_token. null means none."""
    standard = [name for name in _NAMES if name in settings]
    others = [name for name in settings if name.endswith("_token") and name not in _NAMES]
    tokens = {name: settings[name] for name in (*standard, *others)}
    if isinstance(settings.get("extra_special_tokens"), dict):
        tokens |= settings["extra_special_tokens"]
    return {name: _token(token) for name, token in tokens.items() if isinstance(token, str | dict)}


def _extra(settings: dict[str, Any]) -> list[str | AddedToken]:
    """The special tokens without a name, under the new key or the old one."""
    tokens = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return [] if isinstance(tokens, dict) else [_token(token) for token in tokens]


def _token(value: str | dict[str, Any]) -> str | AddedToken:
    return value if isinstance(value, str) else _added_token(value)


def _added_token(value: dict[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{flag: value[flag] for flag in flags if flag in value})
