"""Stop strings and stopping criteria: equal to transformers', with every kind of tokenizer."""

import io
import json
import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import ByT5Tokenizer, GPT2Tokenizer, StopStringCriteria, T5Tokenizer

from ftcore.data import load_tokenizer
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate
from ftcore.decoding.stopping import StopStrings
from tests.helpers.oracle import gpt2_pair, t5_pair
from tests.helpers.search_cases import cases, inputs, random_options
from tests.helpers.tiny_runs import byte_letters

Tokenizers = dict[str, tuple[Any, Tokenizer]]

KINDS = ("merges", "pieces", "bytes")
MERGES = ("t h", "th e", "Ġ the", "Ġ a", "o n", "s t", "on Ġ", "Ã ©")
NOT_ASCII = [*range(3 + 128, 3 + 256)]  # of "bytes"; transformers' ByT5 has no text for them
WORDS = ("the", " the", "stone", " a", "é", "one t", "e", "<extra_id_0>", "ab", "fed", "\n", "🙂")


def write_merges(directory: Path) -> None:
    tokens = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *MERGES]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pieces(directory: Path) -> None:
    """A small spiece.model; transformers needs pieces for the text abcdef."""
    model, lines = io.BytesIO(), ["the stone on the hat", "a fabled café", "abcdef on the stove"] * 5
    ids: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 60}
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, minloglevel=2, **ids)
    (directory / "spiece.model").write_bytes(model.getvalue())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """Of each kind transformers' tokenizer and ours."""
    places = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    write_merges(places["merges"])
    write_pieces(places["pieces"])
    (places["bytes"] / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    classes = {"merges": GPT2Tokenizer, "pieces": T5Tokenizer, "bytes": ByT5Tokenizer}
    return {
        kind: (classes[kind].from_pretrained(place), load_tokenizer(place)) for kind, place in places.items()
    }


@cache
def pair(kind: str, vocab_size: int, seed: int) -> tuple[Any, Any]:
    """A random model of transformers, and ours with the same weights."""
    sizes: dict[str, Any] = {"vocab_size": vocab_size}
    if kind == "merges":
        return gpt2_pair(sizes | {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 64}, seed)
    sizes |= {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return t5_pair(sizes | {"tie_word_embeddings": False}, seed)


# Stop strings


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_the_tokens_are_the_text(kind: str, tokenizers: Tokenizers) -> None:
    """A character may have several tokens; a special token is its name, an id without a token nothing."""
    _, ours = tokenizers[kind]
    text = "the café stone" if kind == "pieces" else "the stone, café 🙂 \n"
    end = "<|endoftext|>" if kind == "merges" else "</s>"
    tokens = [*ours.encode(text), *([ours.eos_id] if kind == "merges" else []), ours.vocab_size, 10**6]
    first = " " if kind == "pieces" else ""
    assert b"".join(map(ours.token_bytes, tokens)).decode() == first + text + end


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_last_token_completes_a_stop_string(
    kind: str, data: st.DataObject, tokenizers: Tokenizers
) -> None:
    """As transformers' criterion finds: also across tokens, inside of one, and over its end."""
    theirs, ours = tokenizers[kind]
    number = st.integers(0, ours.vocab_size - 1)
    if kind == "bytes":
        number = number.filter(lambda number: number not in NOT_ASCII)
    texts = st.sampled_from(WORDS if kind == "merges" else [word for word in WORDS if word.isascii()])
    ids = data.draw(st.lists(number, max_size=6)) + ours.encode(
        "".join(data.draw(st.lists(texts, max_size=5)))
    )
    text = b"".join(map(ours.token_bytes, ids)).decode(errors="replace")
    starts = data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), min_size=1, max_size=3))
    strings = [text[start : start + data.draw(st.integers(1, 5))] for start in starts]
    strings = [string for string in strings if string and "\ufffd" not in string] or ["e"]
    criterion = StopStringCriteria(theirs, strings)
    ends = [torch.tensor([ids[:length]]) for length in range(1, len(ids) + 1)]
    assert [StopStrings(ours, strings)(row).tolist() for row in ends] == [
        criterion(row, None).tolist() for row in ends
    ]


SEARCHES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 2, "top_k": 5},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": True},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 2, "do_sample": True},
]


def some_strings(r: random.Random, text: str) -> str | list[str]:
    """Short parts of a text, and another string."""
    starts = [r.randrange(max(1, len(text))) for _ in range(r.choice([1, 1, 2]))]
    parts = [text[start : start + r.choice([1, 2, 3, 5])] for start in starts]
    parts = [part for part in parts if part and "\ufffd" not in part] + r.choice([[], ["the end"]])
    return parts if len(parts) > 1 else (parts or [" a"])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_searches_with_stop_strings_give_the_ids_of_transformers(kind: str, tokenizers: Tokenizers) -> None:
    theirs, ours = tokenizers[kind]
    stopped = 0
    for seed in range(24):
        r = random.Random(seed)
        reference, model = pair(kind, ours.vocab_size, seed % 3)
        rows = [[r.randrange(3, ours.vocab_size) for _ in range(4)] for _ in range(r.choice([1, 3]))]
        ids = torch.tensor(rows)
        o: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10}
        o |= {"eos_token_id": ours.eos_id, "pad_token_id": 2} | SEARCHES[seed % len(SEARCHES)]
        if kind == "bytes":
            o["suppress_tokens"] = NOT_ASCII
        torch.manual_seed(seed)
        free = generate(model, ids, **o)
        text = b"".join(map(ours.token_bytes, free[0, -10:].tolist())).decode(errors="replace")
        o["stop_strings"] = some_strings(r, text)
        torch.manual_seed(seed)
        want = reference.generate(ids, tokenizer=theirs, **o)
        torch.manual_seed(seed)
        got = generate(model, ids, tokenizer=ours, **o)
        assert got.tolist() == want.tolist(), o
        stopped += got.tolist() != free.tolist()
    assert stopped > 16


def test_transformers_does_not_find_characters_of_several_bytes_in_byt5s_text(tokenizers: Tokenizers) -> None:
    theirs, ours = tokenizers["bytes"]
    ids = torch.tensor([ours.encode("a é")[:-1]])
    assert StopStrings(ours, ["é"])(ids).tolist() == [True]
    with pytest.raises(ValueError, match="unable to identify tokens"):
        StopStringCriteria(theirs, ["é"])


def test_rows_end_alone_and_are_filled_with_pad(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an EOS too, where transformers lets rows that have ended go on."""
    theirs, ours = tokenizers["merges"]
    reference, model = pair("merges", ours.vocab_size, 1)
    ids = torch.tensor([[5, 6], [70, 80], [90, 100]])
    o: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "suppress_tokens": [*range(128, 256)]}
    free = generate(model, ids, **o)
    stop = ours.token_bytes(int(free[1, 4])).decode()
    got = generate(model, ids, pad_token_id=300, stop_strings=stop, tokenizer=ours, **o)
    for row, whole in zip(got.tolist(), free.tolist(), strict=True):
        text = [ours.token_bytes(token).decode("latin-1") for token in whole[2:]]
        length = next((n + 3 for n, token in enumerate(text) if stop in token), 14)
        assert row[:length] == whole[:length] and set(row[length:]) <= {300}
    monkeypatch.setattr(reference.generation_config, "eos_token_id", None)
    mask = torch.ones_like(ids)
    want = reference.generate(ids, attention_mask=mask, stop_strings=stop, tokenizer=theirs, **o)
    assert want.tolist() == free[:, : want.shape[1]].tolist() and (got == 300).any()


def test_stop_strings_need_a_tokenizer(tokenizers: Tokenizers) -> None:
    theirs, ours = tokenizers["merges"]
    _, model = pair("merges", ours.vocab_size, 1)
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match=r"^stop_strings=\['a'\] needs tokenizer=..., the model's own$"):
        generate(model, ids, stop_strings="a")
    with pytest.raises(ValueError, match=r"^tokenizer is a GPT2Tokenizer, expected one of ftcore.load_token"):
        generate(model, ids, stop_strings=["a"], tokenizer=theirs)
    for wrong in ("", ["a", ""]):
        with pytest.raises(ValueError, match="stop_strings holds an empty text"):
            generate(model, ids, stop_strings=wrong, tokenizer=ours)
    with pytest.raises(ValueError, match="stop_strings is 5, expected a string or a list of strings or null"):
        generate(model, ids, stop_strings=5, tokenizer=ours)


def test_stop_strings_of_the_checkpoint_are_followed_where_there_is_a_tokenizer(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = tokenizers["merges"]
    _, model = pair("merges", ours.vocab_size, 1)
    ids = torch.tensor([[5, 6]])
    free = generate(model, ids, max_new_tokens=6)
    stop = ours.token_bytes(int(free[0, 4])).decode()
    monkeypatch.setattr(model, "generation_config", {"stop_strings": stop})
    stopped = generate(model, ids, max_new_tokens=6, tokenizer=ours)
    assert stopped.tolist() == free[:, : stopped.shape[1]].tolist() and stopped.shape[1] <= 5
    with pytest.warns(
        UserWarning, match=r"generation_config.json: stop_strings=.* needs tok.*: it is ignored$"
    ):
        assert generate(model, ids, max_new_tokens=6).tolist() == free.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, ids, max_new_tokens=6, stop_strings=[]).tolist() == free.tolist()


# Functions of the caller


def ends_in(limit: int) -> Any:
    """A criterion that depends on each row's last two tokens."""
    return lambda ids, scores: ids[:, -2:].sum(1) % limit == 0


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_stopping_criteria_give_the_ids_of_transformers(family: str) -> None:
    for reference, model, r in cases(family, 40):
        ids, mask = inputs(r, family)
        o = random_options(r)
        criteria = [
            ends_in(r.choice([3, 5, 11])),
            lambda ids, scores: torch.full((len(ids),), len(ids[0]) == 14),
        ]
        o["stopping_criteria"] = criteria[: r.choice([1, 2])]
        got = generate(model, ids, mask, **o)
        assert got.tolist() == reference.generate(ids, attention_mask=mask, **o).tolist(), o


def test_a_stopping_criterion_may_return_one_bool_for_all_rows() -> None:
    _, model, _ = next(cases("gpt2", 1))
    seen: list[Tensor] = []

    def stops(ids: Tensor, scores: None) -> bool:
        seen.append(ids)
        return ids.shape[1] == 6

    assert generate(model, torch.tensor([[5, 6, 7]]), stopping_criteria=[stops], eos_token_id=None).shape == (
        1,
        6,
    )
    assert [tuple(ids.shape) for ids in seen] == [(1, 4), (1, 5), (1, 6)]


@pytest.mark.parametrize("returned", [None, torch.ones(1), torch.ones(3, dtype=torch.bool), "yes"])
def test_other_results_of_a_stopping_criterion_are_refused(returned: Any) -> None:
    _, model, _ = next(cases("gpt2", 1))

    def wrong(ids: Tensor, scores: None) -> Any:
        return returned

    with pytest.raises(
        ValueError, match=r"^stopping_criteria: wrong returned .*, expected True, False or a bool"
    ):
        generate(model, torch.tensor([[5, 6, 7]]), stopping_criteria=[wrong])
