"""JSON for the page: packed tensors, and tokens as visible text."""

import base64
import json
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer

ID_KEYS = {"ids", "next_ids", "source", "answers", "token"}  # recorded values that are token ids
SYMBOLS = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
MAX_CHARACTER_TOKENS = 4  # bytes of a UTF-8 character
EMOJI_JOINERS = "\u200d\ufe0f"


def to_json(value: Any) -> str:
    """Compact ASCII JSON, tensors packed.

    Raises:
        ValueError: a float is NaN or infinite; JSON has neither.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=pack)


def pack(tensor: Tensor) -> dict[str, Any]:
    """Compressed little-endian values in base64, with shape and dtype; read by `unpack` in recording.js.

    uint8 is kept. Floats become f4. Other integers become u2 if all fit, else i4.
    """
    array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    if array.dtype.kind == "f":
        dtype = "f4"
    elif array.dtype == "u1":
        dtype = "u1"
    else:
        dtype = "u2" if array.size == 0 or (array.min() >= 0 and array.max() < 2**16) else "i4"
    data = base64.b64encode(zlib.compress(array.astype(f"<{dtype}").tobytes(), 6)).decode("ascii")
    return {"dtype": dtype, "shape": list(array.shape), "data": data}


def quantize_attention(weights: Tensor) -> Tensor:
    """Attention weights in [0, 1] as uint8 of the same shape: 255 levels of the square root.

    `(level / 255) ** 2` restores w within sqrt(w) / 255 + 1 / 260000: 0.5 within 0.003, 0.002 within 0.0002.
    """
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8).cpu()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token id, with its leading space; `#id` for a partial UTF-8 character or empty text."""
    return _text(tokenizer, [token]) or f"#{token}"


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of consecutive tokens; empty if it holds a partial UTF-8 character."""
    prefix = tokenizer.decode([tokenizer.eos_id], skip_special_tokens=False)
    text = tokenizer.decode([tokenizer.eos_id, *tokens], skip_special_tokens=False).removeprefix(prefix)
    return "" if "\ufffd" in text else text


def split_characters(tokenizer: Tokenizer, tokens: Sequence[int]) -> dict[int, str]:
    """The visible texts of tokens that share a character, by position: "😀 2/3" for the second of three.

    Byte-level tokenizers split characters that are rare, such as emoji.
    """
    texts: dict[int, str] = {}
    parts: list[int] = []  # the tokens of an incomplete character, which have no text alone
    for at, token in enumerate(tokens):
        parts = [] if _text(tokenizer, [token]) else [*parts, token][-MAX_CHARACTER_TOKENS:]
        if text := _text(tokenizer, parts):
            for part in range(len(parts)):
                shown = text.lstrip(" ") if part else text
                texts[at + 1 - len(parts) + part] = f"{escape_invisible(shown)} {part + 1}/{len(parts)}"
            parts = []
    return texts


def token_texts(tokenizer: Tokenizer, tokens: Iterable[int]) -> dict[str, str]:
    """The visible text of each distinct id, keyed by the id in decimal, since JSON keys are strings."""
    return {str(token): escape_invisible(token_text(tokenizer, token)) for token in sorted(set(tokens))}


def escape_invisible(text: str) -> str:
    """Replace control characters, unusual spaces and bidirectional marks by symbols or escapes."""
    kept = {" ", *EMOJI_JOINERS} if text.strip(EMOJI_JOINERS) else {}
    return "".join(
        SYMBOLS.get(char, f"\\u{ord(char):04x}")
        if unicodedata.category(char)[0] in "CZ" and char not in kept
        else char
        for char in text
    )


def find_token_ids(value: Any, *, are_ids: bool = False) -> Iterator[int]:
    """All token ids in nested recorded data: the values under ID_KEYS, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from find_token_ids(item, are_ids=key in ID_KEYS)
    elif isinstance(value, list):
        for item in value:
            yield from find_token_ids(item, are_ids=are_ids)
    elif are_ids:
        yield from value.unique().tolist() if isinstance(value, Tensor) else [value]
