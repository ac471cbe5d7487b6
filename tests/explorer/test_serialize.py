"""Tokens that can be seen, whatever they hold, and arrays that come back."""

import json
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore import load_tokenizer
from ftcore.explorer.serialize import (
    mentioned,
    packed,
    piece,
    pieces,
    quantised,
    restored,
    token_ids,
    unpacked,
    visible,
)


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_what_is_visible_has_nothing_hidden_in_it(text):
    shown = visible(text)
    hidden = [one for one in shown if unicodedata.category(one)[0] in "CZ" and one not in " \u200d\ufe0f"]
    assert hidden == []
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\n\tb", " a⏎⇥b"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("مرحبا <script>", "مرحبا <script>"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("\x00\ud800", "\\u0000\\ud800"),
    ],
)
def test_signs_stand_for_what_cannot_be_seen(text, shown):
    assert visible(text) == shown


def test_pieces_keep_the_space_before_a_word():
    tokenizer = load_tokenizer("weights/t5-mini")
    ids = tokenizer.encode("The old mill.")
    shown = [piece(tokenizer, token) for token in ids]
    assert "".join(shown) == " The old mill.</s>"
    assert pieces(tokenizer, [*ids, *ids]) == {
        str(token): visible(text) for token, text in zip(ids, shown, strict=True)
    }


def test_parts_of_a_character_are_shown_by_their_number(gpt2_directory, t5_directory):
    for directory in (gpt2_directory, t5_directory):
        tokenizer = load_tokenizer(directory)
        first = tokenizer.encode("é")[0]
        assert piece(tokenizer, first) == f"#{first}"


def test_ids_are_found_wherever_they_are():
    said = {
        "ids": packed(torch.tensor([1, 2], dtype=torch.int32)),
        "runs": [{"ids": [3], "start": 9}],
        "answers": [[4], [5]],
    }
    assert set(mentioned(said | {"beams": [[{"token": 6, "rank": 8}]]})) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (0, 7)])
def test_arrays_come_back(dtype, shape):
    tensor = (torch.rand(shape) * 200).to(dtype)
    back = unpacked(json.loads(json.dumps(packed(tensor))))
    assert back.dtype == dtype and torch.equal(back, tensor)


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 1, width=32))
def test_weights_come_back_within_half_a_level(weight):
    back = restored(quantised(torch.tensor([weight])))[0].item()
    assert abs(back - weight) <= weight**0.5 / 255 + 1 / 260000 + 1e-6


def test_ids_take_two_bytes_where_they_can():
    assert token_ids(torch.tensor([65535])).dtype == torch.uint16
    assert token_ids(torch.tensor([65536])).dtype == torch.int32
    assert token_ids(torch.tensor([], dtype=torch.long)).dtype == torch.uint16
