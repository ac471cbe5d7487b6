"""A trained SentencePiece model, `spiece.model`, as plain values.

The file is one protobuf message, and a unigram tokenizer needs half a dozen of its fields. They are read by
hand: SentencePiece's own package keeps the Unicode table to itself, others need protobuf.
The numbers of the fields are those of `sentencepiece_model.proto` in SentencePiece's repository.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

UNIGRAM = 1  # TrainerSpec.ModelType


class Kind(IntEnum):
    """What a piece is for (SentencePiece.Type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # <pad>, </s>: never found in a text by the search
    USER_DEFINED = 4  # always one piece, whatever surrounds it
    UNUSED = 5
    BYTE = 6


class SentencePieceModel(NamedTuple):
    """The parts of spiece.model that a tokenizer is made of."""

    pieces: list[tuple[str, float]]  # text and log-probability; the position is the id
    kinds: list[int]  # one of `Kind` for each piece
    unk_id: int
    character_map: bytes  # the compiled table of the Unicode normalizer, b"" where there is none


def read_sentencepiece_model(content: bytes) -> SentencePieceModel:
    """The unigram model that the bytes of a spiece.model hold.

    Raises:
        ValueError: they are not a SentencePiece model, are cut short, or hold another model than a unigram's.
    """
    pieces: list[tuple[str, float]] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(content):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), *struct.unpack("<f", piece[2])))
                kinds.append(piece.get(3, Kind.NORMAL))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (AttributeError, IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError):
        raise ValueError("not a SentencePiece model, or cut short") from None
    model = SentencePieceModel(pieces, kinds, trainer.get(40, 0), normalizer.get(2, b""))
    if model.unk_id >= len(pieces):
        raise ValueError(f"not a SentencePiece model: {len(pieces)} pieces, of which <unk> is {model.unk_id}")
    if trainer.get(3, UNIGRAM) != UNIGRAM:
        raise ValueError("a SentencePiece model of another type than unigram, which T5 has")
    return model


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: (number, value); an int for a varint, else the value's bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}[wire_type]
        if position + size > len(message):
            raise IndexError("a field ends behind its message")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the position behind it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
