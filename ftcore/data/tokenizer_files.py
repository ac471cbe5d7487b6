"""The small files beside a vocabulary: which tokenizer this is, and which tokens are special.

Over the years transformers has kept special tokens in four places, and directories of every age are in use:

    tokenizer_config.json      the class; eos_token, pad_token, ...; in many "added_tokens_decoder", with ids
    special_tokens_map.json    eos_token, pad_token, ...
    added_tokens.json          tokens behind the vocabulary, with ids
    tokenizer.json             "added_tokens", with ids

The first makes the others superfluous where it has "added_tokens_decoder"; else all four are put together.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Pipeline

TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

# The names of special tokens, in the order in which those that a vocabulary lacks are added to it.
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFiles:
    """The tokenizer files of a directory.

    Attributes:
        content: the bytes of each of `TOKENIZER_FILES` that is there, by name.
        settings: tokenizer_config.json, {} where there is none.
        tokenizer_class: the class in transformers ("Fast" taken off), None where nothing says it.
        model_type: what config.json says of the model beside them, None where there is none.
        tidy: whether decoding is to undo spaces before punctuation.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths = [directory / name for name in TOKENIZER_FILES]
        self.content = {path.name: path.read_bytes() for path in paths if path.is_file()}
        self.settings = self.json("tokenizer_config.json")
        path = directory / "config.json"
        config = _parse(path, path.read_bytes()) if path.is_file() else {}
        name = self.settings.get("tokenizer_class") or config.get("tokenizer_class")
        self.tokenizer_class = name.removesuffix("Fast") if isinstance(name, str) else None
        self.model_type = config.get("model_type")
        self.tidy = bool(self.setting("clean_up_tokenization_spaces", False))

    def json(self, name: str) -> dict[str, Any]:
        """The object that a file holds, {} where there is no such file."""
        return _parse(self.directory / name, self.content.get(name, b"{}"))

    def error(self, name: str, message: str) -> ValueError:
        """What to raise when something is wrong in the file `name`."""
        return ValueError(f"{self.directory / name}: {message}")

    def setting(self, name: str, default: int) -> int:
        """A number or a switch out of tokenizer_config.json."""
        value = self.settings.get(name)
        if value is None:
            return default
        if not isinstance(value, int):
            raise self.error("tokenizer_config.json", f"{name} is {value!r}, expected a value like {default}")
        return value

    def name_class(self, name: str) -> None:
        """Let tokenizer_config.json say the class that config.json said: that file is the model's to save."""
        self.settings["tokenizer_class"] = self.tokenizer_class = name
        self.content["tokenizer_config.json"] = json.dumps(self.settings, indent=2).encode()

    def sentinels(self, default: int) -> list[str]:
        """T5's <extra_id_0> and so on, as many as tokenizer_config.json asks for."""
        return [f"<extra_id_{number}>" for number in range(self.setting("extra_ids", default))]


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


@dataclass
class SpecialTokens:
    """Tokens that are found before a text is cut into words; plain strings have the usual flags."""

    named: dict[str, str | AddedToken]  # eos_token, pad_token, ...
    numbered: dict[int, AddedToken]  # those whose ids the files tell
    extra: list[str | AddedToken]  # the sentinels, and others without a name

    def names(self) -> dict[str, str]:
        """The text of each token that has a name: {"eos_token": "</s>", ...}."""
        return {name: str(token) for name, token in self.named.items()}

    def unnumbered(self) -> list[str | AddedToken]:
        """The tokens whose ids the files do not tell, each once, those with a name first."""
        tokens: dict[str, str | AddedToken] = {}
        for token in (*self.named.values(), *self.extra):
            tokens.setdefault(str(token), token)
        for token in self.numbered.values():
            tokens.pop(token.content, None)
        return list(tokens.values())

    def add_to(self, pipeline: Pipeline) -> None:
        """Let a pipeline find these tokens. Those that its vocabulary lacks get the next ids, in order."""
        known = {token.content for token in pipeline.get_added_tokens_decoder().values()}
        names = set(self.names().values())
        tokens = [token for _, token in sorted(self.numbered.items())]
        for token in self.unnumbered():
            if str(token) not in known:
                tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        for token in tokens:
            token.special = token.special or token.content in names
        pipeline.add_tokens(tokens)


def read_special_tokens(
    files: TokenizerFiles, defaults: dict[str, str], sentinels: Iterable[str] = ()
) -> SpecialTokens:
    """Put together what the files say of special tokens.

    Args:
        files: the directory's files.
        defaults: the tokens that this kind of tokenizer has where the files do not name them.
        sentinels: its special tokens without a name, where the files do not list any.

    Raises:
        ValueError: a file that is not as transformers writes it, or no eos_token in any of them.
    """
    token_map, added = files.json("special_tokens_map.json"), files.json("added_tokens.json")
    in_pipeline = files.json("tokenizer.json").get("added_tokens", [])
    try:
        special = _merge(files.settings, token_map, added, in_pipeline, defaults)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise files.error(
            "tokenizer_config.json",
            f"it or another file of special tokens is not as transformers writes it ({error!r})",
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
    """The order of precedence, and its quirks, are those of transformers' `from_pretrained`."""
    listed = _listed(settings)
    numbered: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for number, token in settings["added_tokens_decoder"].items():
            numbered[int(number)] = _flagged(token)
    else:
        settings = settings | token_map
        special = {str(token) for token in (*_named(settings).values(), *listed)}
        for content, number in added.items():
            known = content in special
            numbered[int(number)] = AddedToken(content, normalized=not known, special=known)
        for token in in_pipeline:
            numbered[int(token["id"])] = _flagged(token)
        listed = listed or _listed(settings)
    return SpecialTokens(_named(defaults | settings), numbered, listed)


def _named(settings: dict[str, Any]) -> dict[str, str | AddedToken]:
    """eos_token and the like; a model may have some of its own, such as image_token. null means none."""
    standard = [name for name in _NAMES if name in settings]
    others = [name for name in settings if name.endswith("_token") and name not in _NAMES]
    tokens = {name: settings[name] for name in (*standard, *others)}
    if isinstance(settings.get("extra_special_tokens"), dict):
        tokens |= settings["extra_special_tokens"]
    return {name: _token(token) for name, token in tokens.items() if isinstance(token, str | dict)}


def _listed(settings: dict[str, Any]) -> list[str | AddedToken]:
    """The special tokens that stand in a list, under the old name of the key or the new one."""
    tokens = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return [] if isinstance(tokens, dict) else [_token(token) for token in tokens]


def _token(value: str | dict[str, Any]) -> str | AddedToken:
    return value if isinstance(value, str) else _flagged(value)


def _flagged(value: dict[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{flag: value[flag] for flag in flags if flag in value})
