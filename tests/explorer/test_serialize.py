"""Packed arrays round-trip, and token texts contain no invisible characters."""

import json
import unicodedata

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore import load_tokenizer
from ftcore.explorer.serialize import (
    escape_invisible,
    find_token_ids,
    pack,
    quantize_attention,
    split_characters,
    to_json,
    token_text,
    token_texts,
)
from tests.helpers.packed_arrays import dequantize_attention, unpack


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (0, 7)])
def test_arrays_round_trip(dtype, shape):
    tensor = (torch.rand(shape) * 200).to(dtype)
    restored = unpack(json.loads(to_json(tensor)))
    assert restored.shape == tensor.shape and torch.equal(restored.double(), tensor.double())


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([65535], "u2"), ([65536], "i4"), ([-1], "i4"), ([], "u2"), ([0.5], "f4")],
)
def test_arrays_take_the_smallest_dtype(values, dtype):
    assert pack(torch.tensor(values, dtype=torch.float64 if dtype == "f4" else torch.long))["dtype"] == dtype


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 1, width=32))
def test_quantization_error_is_within_half_a_level(weight):
    restored = dequantize_attention(quantize_attention(torch.tensor([weight])))[0].item()
    assert abs(restored - weight) <= weight**0.5 / 255 + 1 / 260000 + 1e-6


def test_non_finite_numbers_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        to_json({"loss": float("inf")})


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_escaped_text_has_no_invisible_characters(text):
    shown = escape_invisible(text)
    hidden = [char for char in shown if unicodedata.category(char)[0] in "CZ" and char not in " \u200d\ufe0f"]
    assert hidden == []
    assert escape_invisible(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\n\tb", " a⏎⇥b"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("مرحبا <script>", "مرحبا <script>"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("\u200d", "\\u200d"),
        ("\x00\ud800", "\\u0000\\ud800"),
    ],
)
def test_invisible_characters_become_symbols_or_escapes(text, shown):
    assert escape_invisible(text) == shown


def test_token_texts_keep_the_leading_space():
    tokenizer = load_tokenizer("weights/t5-mini")
    ids = tokenizer.encode("The old mill.")
    shown = [token_text(tokenizer, token) for token in ids]
    assert "".join(shown) == " The old mill.</s>"
    assert token_texts(tokenizer, [*ids, *ids]) == {
        str(token): escape_invisible(text) for token, text in zip(ids, shown, strict=True)
    }


def test_partial_characters_are_shown_by_id(gpt2_directory, t5_directory):
    for directory in (gpt2_directory, t5_directory):
        tokenizer = load_tokenizer(directory)
        first = tokenizer.encode("é")[0]
        assert token_text(tokenizer, first) == f"#{first}"


def test_parts_of_a_character_are_shown_with_it(gpt2_directory, t5_directory):
    for directory in (gpt2_directory, t5_directory):
        tokenizer = load_tokenizer(directory)
        texts = split_characters(tokenizer, tokenizer.encode("a 😀é!"))
        assert texts == {
            2: "😀 1/4",
            3: "😀 2/4",
            4: "😀 3/4",
            5: "😀 4/4",
            6: "é 1/2",
            7: "é 2/2",
        }


def test_an_incomplete_character_has_no_text(gpt2_directory, t5_directory):
    for directory in (gpt2_directory, t5_directory):
        tokenizer = load_tokenizer(directory)
        tokens = tokenizer.encode("é😀a")
        assert split_characters(tokenizer, tokens[:4]) == {0: "é 1/2", 1: "é 2/2"}
        assert split_characters(tokenizer, tokens[3:]) == {}
        assert split_characters(tokenizer, [tokens[0], tokens[-1]]) == {}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=12))
def test_every_byte_of_a_character_is_a_part_of_it(gpt2_directory, text):
    tokenizer = load_tokenizer(gpt2_directory)
    shown = split_characters(tokenizer, tokenizer.encode(text))
    expected, at = {}, 0
    for char in text:
        count = len(char.encode())
        if count > 1 and char != "\ufffd":
            visible = escape_invisible(char)
            expected |= {at + part: f"{visible} {part + 1}/{count}" for part in range(count)}
        at += count
    assert shown == expected


def test_token_ids_are_found_at_any_depth():
    recorded = {
        "ids": torch.tensor([[1, 2], [2, 1]]),
        "runs": [{"ids": [3], "start": 9}],
        "answers": [[4], [5]],
        "beams": [[{"token": 6, "rank": 8}]],
        "temperatures": (0.1, 0.2),
        "encoder": None,
    }
    assert set(find_token_ids(recorded)) == {1, 2, 3, 4, 5, 6}
