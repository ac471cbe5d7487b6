"""Tokens as a person can see them: one piece of text an id, and nothing in it that is invisible."""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from ftcore.data.tokenizer import Tokenizer
from ftcore.explorer.packing import unpacked

# Under these keys of what is recorded there are ids: one, a list, a list of lists, or a packed array.
_HOLD_IDS = {"ids", "next_ids", "source", "answers", "token"}
_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
_KEPT = "\u200d\ufe0f"  # they make one emoji of several characters


def piece(tokenizer: Tokenizer, token: int) -> str:
    """What one id adds to a text, the space before a word included.

    An id that is only a part of a character, or that has no text, is shown by its number.
    """
    before = tokenizer.decode([tokenizer.eos_id], skip_special_tokens=False)
    both = tokenizer.decode([tokenizer.eos_id, token], skip_special_tokens=False)
    text = both.removeprefix(before)
    return text if text and "\ufffd" not in text else f"#{token}"


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> dict[str, str]:
    """The visible text of each of these ids, by the id in decimal, as keys of JSON have to be."""
    return {str(token): visible(piece(tokenizer, token)) for token in sorted(set(tokens))}


def visible(text: str) -> str:
    """A text without control characters, odd spaces or marks that turn the direction of what follows.

    The space stays; what is left out is written as its number.
    """
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    hidden = unicodedata.category(character)[0] in "CZ" and character not in {" ", *_KEPT}
    return _SIGNS.get(character, f"\\u{ord(character):04x}") if hidden else character


def mentioned(said: Any) -> Iterator[int]:
    """All ids in something that was recorded."""
    if isinstance(said, dict):
        for key, value in said.items():
            yield from _ids(value) if key in _HOLD_IDS else mentioned(value)
    elif isinstance(said, list):
        for value in said:
            yield from mentioned(value)


def _ids(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        yield from set(unpacked(value).flatten().tolist())
    else:
        for part in value:
            yield from _ids(part)
