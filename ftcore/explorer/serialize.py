"""Tokens as a person can see them: one piece of text an id, and nothing in it that is invisible."""

import base64
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer

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


# Arrays as JSON: compressed, in base64; `unpack` in page/recording.js is the counterpart.

# Little-endian, as typed arrays are wherever browsers run.
_TYPES = {torch.uint8: "<u1", torch.uint16: "<u2", torch.int32: "<i4", torch.float32: "<f4"}


def packed(tensor: Tensor) -> dict[str, Any]:
    """A tensor of uint8, uint16, int32 or float32 with its dtype and shape."""
    array = tensor.cpu().contiguous().numpy().astype(_TYPES[tensor.dtype])
    data = base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")
    return {"dtype": _TYPES[tensor.dtype][1:], "shape": list(tensor.shape), "data": data}


def unpacked(array: dict[str, Any]) -> Tensor:
    """What `packed` was given."""
    raw = zlib.decompress(base64.b64decode(array["data"]))
    return torch.from_numpy(np.frombuffer(raw, "<" + array["dtype"]).reshape(array["shape"]).copy())


def quantised(weights: Tensor) -> Tensor:
    """Attention weights, 0 to 1, as uint8: steps of the square root, since long texts have small weights.

    A weight w comes back within sqrt(w) / 255 + 1 / 260000: 0.5 within 0.003, 0.002 within 0.0002.
    """
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def restored(levels: Tensor) -> Tensor:
    """Attention weights out of what `quantised` made of them."""
    return (levels.float() / 255).square()


def token_ids(ids: Tensor) -> Tensor:
    """Ids in two bytes where that is enough for them."""
    return ids.to(torch.uint16 if ids.numel() == 0 or int(ids.max()) < 2**16 else torch.int32)
