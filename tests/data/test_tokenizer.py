"""Tokenizers: the same ids and the same text as transformers, for every kind of tokenizer files."""

import base64
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, GPT2Tokenizer, RobertaTokenizer, T5Tokenizer

from ftcore.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ftcore.data.tokenizer_pipeline import ROBERTA_TOKENS
from ftcore.data.tokenizer_t5 import SentencePieceTokenizer
from ftcore.models import GPT2Config, T5Config

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "It wasn't the dog's fault, was it? No! They've said so, and we're sure of it.",
    "question: What is the capital of France? context: Paris is the capital of France.",
    "translate English to German: The house is wonderful. Das Haus ist wunderbar.",
    "In 2019, 1234567 people read it; 99.5% of them didn't understand (much of) it.",
    "naïve café, œuvre, Ångström, Straße, ﬁnal, ½, ①, Ⅳ, １２３",
    "日本語のテキスト、한국어 텍스트, русский текст, ελληνικό κείμενο",
    "xxx xxxx aaa aaaa ababab ........ !!!!!!!!",
]

HOSTILE = [
    "",
    " ",
    "   ",
    "\n",
    "\t\r\n \u3000\u2028",
    "a  b\t\tc\n\n\nd",
    " leading and trailing ",
    "{braces} [brackets] <angles> \\ ` ~ ^ |",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️",
    "e\u0301 a\u0308\u0323 \u0301alone Z̷̛͔͈̬a̴l̶g̸o̵",
    "שלום עולם مرحبا \u202eabc\u202c \u200fdef",
    "zero\u200bwidth \ufeffbom soft\u00adhyphen non\u00a0breaking \u2060",
    "nul\x00bell\x07del\x7fesc\x1b[0m next\x85line",
    "unassigned \U0010fffd \ufffd \uffff \ue000",
    "▁ ▁▁x▁y Ġ Ċ <0x0A>",
    "ﷺ ㎏ Å ẛ̣ 𝔘𝔫𝔦 ﬃ",
    "x" * 5000,
    "ab" * 3000 + " " + "é" * 1000,
    "cuz xxx said that yes " * 20,
    "<extra_id_0>",
    "a <extra_id_0> b<extra_id_1>c  <extra_id_99>  <extra_id_100> <extra_id_124><extra_id_125>",
    "</s>",
    "end</s>",
    "end </s>  ",
    "<pad> a <pad> <unk>b<unk> </s></s> c",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c",
    "<sep> x<sep>y <ADDED> Added added",
    "< / s > <extra_id_ 0> <EXTRA_ID_0> <extra_id_00>",
]

# Special tokens written out inside arbitrary text.
texts = st.lists(
    st.text(max_size=12)
    | st.sampled_from(
        ["<extra_id_0>", "<extra_id_7>", "</s>", "<pad>", "<unk>", "<|endoftext|>", " ", "xxx"]
    ),
    max_size=6,
).map("".join)


# ------------------------------------------------------------------------------------------------- tokenizers


def train_spiece(directory: Path, user_defined: list[str], **options: object) -> Path:
    """A small T5 vocabulary in a spiece.model, with these user-defined pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=user_defined,
        minloglevel=2,
        **options,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())
    return directory


def train_merges(directory: Path, special_tokens: list[str]) -> Path:
    """A small byte-level BPE in vocab.json and merges.txt, with special tokens first."""
    pipeline = tokenizers.Tokenizer(tokenizers.models.BPE())
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special_tokens,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pipeline.train_from_iterator(SENTENCES * 20, trainer)
    pipeline.model.save(str(directory))
    return directory


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_spiece(tmp_path_factory.mktemp("spiece"), ["<sep>"])


@pytest.fixture(scope="session")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_merges(tmp_path_factory.mktemp("merges"), ["<|endoftext|>"])


def write_json(directory: Path, name: str, **values: object) -> None:
    (directory / name).write_text(json.dumps(values), encoding="utf-8")


def special(content: str, **flags: bool) -> dict:
    return {
        "content": content,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    } | flags


def mt5(directory: Path) -> Path:
    """mT5's files: sentinels and bytes are pieces of the vocabulary."""
    train_spiece(directory, [f"▁<extra_id_{number}>" for number in range(9, -1, -1)], byte_fallback=True)
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(directory, "special_tokens_map.json", **tokens)
    settings = {"extra_ids": 0, "additional_special_tokens": None, "sp_model_kwargs": {}}
    write_json(directory, "tokenizer_config.json", **tokens, **settings, tokenizer_class="T5Tokenizer")
    return directory


def umt5(directory: Path, pieces: Path) -> Path:
    """uMT5's files: class T5Tokenizer, with the pipeline of tokenizer.json, which collapses spaces."""
    known = T5Tokenizer.from_pretrained(pieces)
    known.save_pretrained(directory)
    pipeline = known.backend_tokenizer
    pipeline.normalizer = tokenizers.normalizers.Sequence(
        [pipeline.normalizer, tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")]
    )
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    pipeline.save(str(directory / "tokenizer.json"))
    write_json(directory, "config.json", model_type="umt5", tokenizer_class="T5Tokenizer")
    return directory


def codet5(directory: Path) -> Path:
    """CodeT5's files: RoBERTa's tokenizer, and T5's sentinels as added tokens."""
    train_merges(directory, ["<pad>", "<s>", "</s>", "<unk>", "<mask>"])
    tokens = {
        **{name: special(token, normalized=True) for name, token in ROBERTA_TOKENS.items()},
        "mask_token": special("<mask>", normalized=True, lstrip=True),
    }
    sentinels = [f"<extra_id_{number}>" for number in range(99, -1, -1)]
    write_json(directory, "special_tokens_map.json", **tokens, additional_special_tokens=sentinels)
    size = len(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    numbers = {sentinel: number for number, sentinel in enumerate(sentinels, start=size)}
    write_json(directory, "added_tokens.json", **numbers)
    typed = {name: token | {"__type": "AddedToken"} for name, token in tokens.items()}
    settings = {"errors": "replace", "add_prefix_space": False, "tokenizer_class": "RobertaTokenizer"}
    write_json(directory, "tokenizer_config.json", **typed, **settings)
    write_json(directory, "config.json", model_type="t5")
    return directory


def byt5(directory: Path) -> Path:
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    return directory


@pytest.fixture(
    scope="session",
    params=[
        "spiece",
        "t5 json",
        "merges",
        "gpt2 json",
        "byt5",
        "byt5 saved",
        "mt5",
        "umt5",
        "codet5",
        "codet5 json",
        "real spiece",
        "real t5 json",
        "real merges",
    ],
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, object]:
    """(ours, transformers') for each kind of files, small ones trained here and published ones."""
    directory = tmp_path_factory.mktemp("pair")
    match request.param:
        case "spiece":
            directory = request.getfixturevalue("spiece")
            oracle = T5Tokenizer.from_pretrained(directory)
        case "t5 json":
            T5Tokenizer.from_pretrained(request.getfixturevalue("spiece")).save_pretrained(directory)
            oracle = T5Tokenizer.from_pretrained(directory)
        case "merges":
            directory = request.getfixturevalue("merges")
            oracle = GPT2Tokenizer.from_pretrained(directory)
        case "gpt2 json":
            GPT2Tokenizer.from_pretrained(request.getfixturevalue("merges")).save_pretrained(directory)
            oracle = GPT2Tokenizer.from_pretrained(directory)
        case "byt5":
            oracle = ByT5Tokenizer.from_pretrained(byt5(directory))
        case "byt5 saved":
            ByT5Tokenizer().save_pretrained(directory)
            oracle = ByT5Tokenizer.from_pretrained(directory)
        case "mt5":
            oracle = T5Tokenizer.from_pretrained(mt5(directory))
        case "umt5":
            oracle = AutoTokenizer.from_pretrained(umt5(directory, request.getfixturevalue("spiece")))
        case "codet5":
            oracle = AutoTokenizer.from_pretrained(codet5(directory))
        case "codet5 json":
            old = tmp_path_factory.mktemp("old")
            RobertaTokenizer.from_pretrained(codet5(old)).save_pretrained(directory)
            oracle = RobertaTokenizer.from_pretrained(directory)
        case "real spiece":
            real = request.getfixturevalue("real_data") / "t5"
            shutil.copy(real / "spiece.model", directory)
            oracle = T5Tokenizer.from_pretrained(directory)
        case "real t5 json":
            real = request.getfixturevalue("real_data") / "t5"
            shutil.copy(real / "tokenizer.json", directory)
            oracle = T5Tokenizer.from_pretrained(directory)
        case "real merges":
            directory = request.getfixturevalue("real_data") / "gpt2"
            oracle = GPT2Tokenizer.from_pretrained(directory)
    return load_tokenizer(directory), oracle


def oracle_ids(oracle: object, texts: list[str]) -> list[list[int]]:
    with warnings.catch_warnings():  # ByT5 warns of a text that ends in </s>
        warnings.simplefilter("ignore")
        return oracle(texts)["input_ids"]


def assert_same(ours: Tokenizer, oracle: object, texts: list[str]) -> None:
    """The same ids for each text, and the same text for these ids."""
    for text, expected in zip(texts, oracle_ids(oracle, texts), strict=True):
        ids = ours.encode(text)
        if ids != expected:
            assert isinstance(ours, SentencePieceTokenizer), repr(text[:200])
            assert sentencepiece_differs(text, ids, expected), repr(text[:200])
            assert ids == sentencepiece_ids(ours, text), repr(text[:200])
        assert_same_text(ours, oracle, expected)


def sentencepiece_differs(text: str, ids: list[int], expected: list[int]) -> bool:
    """Whether a text is in one of the cases that SentencePiece and `tokenizers` encode differently.

    Ties of equal score, stacked combining marks, U+0085 (white space for `tokenizers` only), and the names of
    byte pieces written out (ordinary pieces for `tokenizers` only).
    """
    tie = sorted(ids) == sorted(expected)
    marks = any(unicodedata.category(character)[0] == "M" for character in text)
    return tie or marks or "\x85" in text or "<0x" in text


def sentencepiece_ids(ours: SentencePieceTokenizer, text: str) -> list[int]:
    """The ids of SentencePiece for the text between special tokens, with one <unk> for each run of bytes."""
    native = sentencepiece.SentencePieceProcessor(model_proto=ours._files["spiece.model"])
    special = [token for token in ("</s>", "<pad>", "<unk>", "<sep>") if ours._id_of(token) is not None]
    special += [token for n in range(100) if ours._id_of(token := f"<extra_id_{n}>") is not None]
    ids: list[int] = []
    for part in re.split(f"({'|'.join(special)})", text):
        if part in special:
            ids.append(ours._id_of(part))
            continue
        in_part: list[int] = []
        for number in native.encode(part):
            number = native.unk_id() if native.is_byte(number) else number
            if number != native.unk_id() or in_part[-1:] != [number]:
                in_part.append(number)
        ids += in_part
    return [*ids, ours.eos_id]


def assert_same_text(ours: Tokenizer, oracle: object, ids: list[int]) -> None:
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip), ids


# -------------------------------------------------------------------------------------- equal to transformers


def test_special_ids_are_those_of_transformers(pair):
    ours, oracle = pair
    assert (ours.eos_id, ours.unk_id, ours.bos_id) == (
        oracle.eos_token_id,
        oracle.unk_token_id,
        oracle.bos_token_id,
    )
    assert ours.pad_id == (ours.eos_id if oracle.pad_token_id is None else oracle.pad_token_id)
    assert ours.vocab_size == len(oracle) == max(oracle.get_vocab().values()) + 1


def test_plain_and_hostile_texts(pair):
    assert_same(*pair, SENTENCES + HOSTILE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_any_text(pair, text):
    assert_same(*pair, [text])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ids(pair, data):
    ours, oracle = pair
    ids = st.integers(0, ours.vocab_size - 1) | st.sampled_from([0, 1, 2, ours.eos_id, ours.vocab_size - 1])
    assert_same_text(ours, oracle, data.draw(st.lists(ids, max_size=20)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), clean_up=st.booleans())
def test_further_ids_do_not_change_final_text(
    pair: tuple[Tokenizer, object], data: st.DataObject, clean_up: bool
) -> None:
    ours, _ = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    ids += ours.encode(data.draw(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "_clean_up", clean_up)
        whole = ours.decode(ids)
        for length in range(len(ids) + 1):
            assert whole.startswith(ours.decode_final(ids[:length]))


def emotion_texts(real_data: Path) -> Iterator[str]:
    for name in ("train", "val", "test"):
        yield from (real_data / "emotion" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def squad_texts(real_data: Path) -> Iterator[str]:
    for name in ("train", "valid"):
        for article in json.loads((real_data / "squad" / f"{name}.json").read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]
                yield from (question["question"] for question in paragraph["qas"])


@pytest.mark.parametrize("corpus", [emotion_texts, squad_texts])
@pytest.mark.parametrize("form", ["tokenizer.json", "spiece.model", "vocab.json"])
def test_every_eighth_real_line(
    real_data: Path, tmp_path: Path, form: str, corpus: Callable[[Path], Iterator[str]]
) -> None:
    directory = real_data / "gpt2"
    if form == "vocab.json":
        oracle = GPT2Tokenizer.from_pretrained(directory)
    else:
        directory = tmp_path
        shutil.copy(real_data / "t5" / form, directory)
        oracle = T5Tokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory)
    lines = list(corpus(real_data))[::8]
    expected = oracle(lines)["input_ids"]
    different = [
        (line, ids, theirs)
        for line, theirs in zip(lines, expected, strict=True)
        if (ids := ours.encode(line)) != theirs
    ]
    if form == "spiece.model":  # such as `cuz xxx said`, a tie
        assert len(different) < 5 and all(sentencepiece_differs(*line) for line in different)
    else:
        assert not different
    sample = expected[::10]
    assert [ours.decode(ids) for ids in sample] == oracle.batch_decode(sample, skip_special_tokens=True)


def test_published_examples(real_data: Path) -> None:
    t5 = load_tokenizer(real_data / "t5")
    house = "translate English to German: The house is wonderful."
    assert t5.encode(house) == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]
    assert (t5.sentinel_id(0), t5.sentinel_id(99), t5.vocab_size) == (32099, 32000, 32100)
    assert t5.unk_id in t5.encode("{")
    gpt2 = load_tokenizer(real_data / "gpt2")
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" Hello world") == [18435, 995]
    assert gpt2.encode("<|endoftext|>") == [gpt2.eos_id] == [gpt2.pad_id] == [50256]


def test_each_form_breaks_ties_by_its_own_library(real_data: Path, tmp_path: Path) -> None:
    """`xxx` is `x|xx` or `xx|x` with the same score; stacked marks and U+0085 are split differently too."""
    shutil.copy(real_data / "t5" / "spiece.model", tmp_path)
    native = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    spiece, json_form = load_tokenizer(tmp_path), load_tokenizer(real_data / "t5")
    oracle = T5Tokenizer.from_pretrained(real_data / "t5")
    tie = "i feel shamed for me being me cuz xxx said that yes"
    for text in (tie, "a\u0301\u0301", "next\x85line"):
        assert spiece.encode(text) == [*native.encode(text), spiece.eos_id]
        assert json_form.encode(text) == oracle.encode(text) != spiece.encode(text)
    assert sorted(spiece.encode(tie)) == sorted(json_form.encode(tie))


# ----------------------------------------------------------------------------------------------- added tokens


ADDITIONS = {
    "a decoder of added tokens": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "500": special("<sep>", special=True, lstrip=True),
                "501": special("<ADDED>", normalized=True),
                "502": special("added", single_word=True),
            },
            "additional_special_tokens": ["<sep>"],
            "pad_token": "<pad>",
        }
    },
    "a map and added tokens": {
        "special_tokens_map.json": {
            "pad_token": "<pad>",
            "sep_token": special("<sep>", rstrip=True),
            "additional_special_tokens": ["<ADDED>"],
        },
        "added_tokens.json": {"<ADDED>": 501, "added": 502, "<sep>": 500},
    },
    "a list of extra tokens": {
        "tokenizer_config.json": {"extra_special_tokens": ["<sep>", "<ADDED>"], "cls_token": "added"}
    },
    "extra tokens by name": {"tokenizer_config.json": {"extra_special_tokens": {"x_token": "<sep>"}}},
    "a token that is null": {"tokenizer_config.json": {"pad_token": None, "unk_token": None}},
    "tokens with their type": {
        "tokenizer_config.json": {
            "eos_token": special("<sep>") | {"__type": "AddedToken"},
            "bos_token": "<ADDED>",
        }
    },
}


@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("form", ["merges", "gpt2 json", "t5 json"])
def test_added_tokens(form: str, addition: str, spiece: Path, merges: Path, tmp_path: Path) -> None:
    if form == "merges":
        shutil.copytree(merges, tmp_path, dirs_exist_ok=True)
    elif form == "gpt2 json":
        GPT2Tokenizer.from_pretrained(merges).save_pretrained(tmp_path)
    else:
        T5Tokenizer.from_pretrained(spiece).save_pretrained(tmp_path)
    for name, content in ADDITIONS[addition].items():
        path = tmp_path / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | content))
    oracle = (T5Tokenizer if form == "t5 json" else GPT2Tokenizer).from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == len(oracle)
    assert ours.eos_id == oracle.eos_token_id
    assert_same(ours, oracle, HOSTILE)


@pytest.mark.parametrize("addition", ADDITIONS)
def test_added_tokens_with_spiece_model(addition: str, spiece: Path, tmp_path: Path) -> None:
    shutil.copy(spiece / "spiece.model", tmp_path)
    for name, content in ADDITIONS[addition].items():
        write_json(tmp_path, name, **content)
    ours, oracle = load_tokenizer(tmp_path), T5Tokenizer.from_pretrained(tmp_path)
    assert (ours.vocab_size, ours.eos_id) == (len(oracle), oracle.eos_token_id)
    # If the files list no sentinels, transformers puts a "▁" before them. Without an unk_token it finds the
    # piece "<unk>" in a text, which SentencePiece never does.
    unlike = ("<extra_id_", "<unk>") if ours.unk_id is None else ("<extra_id_",)
    assert_same(ours, oracle, [text for text in HOSTILE if not any(token in text for token in unlike)])
    assert ours.encode("a<extra_id_3>b") == [*ours.encode("a")[:-1], ours.sentinel_id(3), *ours.encode("b")]


@pytest.mark.parametrize("addition", ["a map and added tokens", "a list of extra tokens"])
def test_added_tokens_of_byt5(addition: str, tmp_path: Path) -> None:
    for name, content in ADDITIONS[addition].items():
        numbers = {token: number - 500 + 259 for token, number in content.items() if isinstance(number, int)}
        (tmp_path / name).write_text(json.dumps(content | numbers))
    settings_path = tmp_path / "tokenizer_config.json"
    known = json.loads(settings_path.read_text()) if settings_path.exists() else {}
    settings_path.write_text(json.dumps(known | {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}))
    assert_same(load_tokenizer(tmp_path), ByT5Tokenizer.from_pretrained(tmp_path), HOSTILE)


@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": True},
        {"add_bos_token": True, "bos_token": None},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_prefix_space": True},
    ],
)
def test_settings_of_gpt2(config: dict, merges: Path, tmp_path: Path) -> None:
    shutil.copytree(merges, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_same(load_tokenizer(tmp_path), GPT2Tokenizer.from_pretrained(tmp_path), SENTENCES + HOSTILE)


@pytest.mark.parametrize("form", ["t5", "gpt2", "byt5"])
def test_clean_up_tokenization_spaces(form: str, spiece: Path, merges: Path, tmp_path: Path) -> None:
    oracle = {
        "t5": lambda: T5Tokenizer.from_pretrained(spiece),
        "gpt2": lambda: GPT2Tokenizer.from_pretrained(merges),
    }
    oracle.get(form, ByT5Tokenizer)().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clean_up_tokenization_spaces": True}))
    spaced = "it was n't , he 's said . do n't ? I 'm , ' we 've ' they 're !"
    assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path), [spaced])
    assert (load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).encode(spaced)) == spaced) == (
        form == "gpt2"
    )


def test_padding_and_truncation_inside_tokenizer_json_are_not_applied(merges: Path, tmp_path: Path) -> None:
    GPT2Tokenizer.from_pretrained(merges).save_pretrained(tmp_path)
    pipeline = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pipeline.enable_padding(length=50)
    pipeline.enable_truncation(3)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(SENTENCES[0]) == load_tokenizer(merges).encode(SENTENCES[0])


def test_a_byte_level_tokenizer_of_another_class_is_read_from_its_file(merges: Path, tmp_path: Path) -> None:
    """As in CodeT5: a byte-level BPE for a T5, with each text between <s> and </s>."""
    pipeline = tokenizers.Tokenizer.from_str(GPT2Tokenizer.from_pretrained(merges).backend_tokenizer.to_str())
    pipeline.add_special_tokens(
        ["<s>", "</s>", "<pad>", *(f"<extra_id_{number}>" for number in range(99, -1, -1))]
    )
    ends = [(token, pipeline.token_to_id(token)) for token in ("</s>", "<s>")]
    pipeline.post_processor = tokenizers.processors.RobertaProcessing(*ends, add_prefix_space=False)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, oracle = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert_same(ours, oracle, SENTENCES + HOSTILE)
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (oracle.pad_token_id, oracle.eos_token_id, None)
    assert ours.sentinel_id(0) == ours.vocab_size - 1


# --------------------------------------------------------------------------------------------- encode, decode


def test_gpt2_and_byt5_are_lossless(merges: Path, tmp_path: Path) -> None:
    gpt2, bytes_ = load_tokenizer(merges), load_tokenizer(byt5(tmp_path))
    for text in SENTENCES + [text for text in HOSTILE if "<" not in text]:
        assert gpt2.decode(gpt2.encode(text)) == text
        assert bytes_.decode(bytes_.encode(text)) == text


def test_t5_restores_a_plain_sentence(spiece: Path) -> None:
    t5 = load_tokenizer(spiece)
    for text in SENTENCES[:5]:
        assert t5.decode(t5.encode(text)) == text
    assert t5.decode(t5.encode("  The \n quick\tbrown  ")) == "The quick brown"


def test_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byt5(tmp_path))
    assert tokenizer.encode("hé") == [ord("h") + 3, 0xC3 + 3, 0xA9 + 3, 1]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id) == (0, 1, 2, None)
    assert (tokenizer.sentinel_id(0), tokenizer.sentinel_id(124), tokenizer.vocab_size) == (259, 383, 384)
    assert tokenizer.decode([0xC3 + 3, ord("h") + 3]) == "h"  # half a character is left out


def test_decode_accepts_lists_arrays_and_tensors(pair):
    ours, _ = pair
    ids = ours.encode("The house is wonderful.")
    expected = ours.decode(ids)
    assert expected
    for row in (
        tuple(ids),
        iter(ids),
        torch.tensor(ids),
        np.array(ids),
        list(torch.tensor(ids)),
        list(np.array(ids)),
        np.array(ids, dtype=np.uint64),
        torch.tensor(ids, dtype=torch.int16),
        np.array([*ids, 2**64 - 1], dtype=np.uint64),
        [*ids, 2**70],
    ):
        assert ours.decode(row) == expected
    assert ours.decode([]) == ours.decode(torch.tensor([], dtype=torch.long)) == ""


def test_decode_skips_ignored_labels_and_ids_beyond_the_vocabulary(pair):
    ours, _ = pair
    ids = ours.encode("The house")
    beyond = [ours.vocab_size, ours.vocab_size + 27, 2**40]
    assert ours.decode([-100, *ids, -100, -100]) == ours.decode(ids)
    assert ours.decode([*beyond, *ids, *beyond]) == ours.decode(ids)
    assert ours.decode(torch.full((4,), -100)) == ""


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), r"one row of whole numbers, got a Tensor of shape \(2, 3\)"),
        (torch.zeros(3), r"one row of whole numbers, got a Tensor of shape \(3,\)"),
        (torch.tensor(3), r"one row of whole numbers, got a Tensor of shape \(\)"),
        ([[1, 2], [3]], r"one row of whole numbers, got \[\[1, 2\], \[3\]\]"),
        ("text", "one row of whole numbers, got 'text'"),
        (7, "one row of whole numbers, got 7"),
        ([5, -1], "-1 is not a token id"),
        ([5, -(2**70)], "-1180591620717411303424 is not a token id"),
        ([True, False], r"one row of whole numbers, got \[True, False\]"),
        (torch.ones(3, dtype=torch.bool), r"one row of whole numbers, got a Tensor of shape \(3,\)"),
        (np.ones(3, dtype=bool), r"one row of whole numbers, got a ndarray of shape \(3,\)"),
        (b"bytes", "one row of whole numbers, got b'bytes'"),
        (torch.ones(3, dtype=torch.long, device="meta"), r"got a Tensor of shape \(3,\)"),
        (torch.ones(3, dtype=torch.long).to_sparse(), r"got a Tensor of shape \(3,\)"),
        (["x" * 10**6], r"one row of whole numbers, got .{1,100}$"),
    ],
)
def test_decode_refuses_anything_but_one_row_of_ids(ids, message, merges):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(merges).decode(ids)


def test_a_lone_surrogate_is_named(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match=r"lone surrogate, '\\ud83d', at character 2"):
        ours.encode("ab\ud83dcd")


@pytest.mark.parametrize("text", [None, b"bytes", ["a", "b"]])
def test_encode_takes_one_string(text, merges):
    with pytest.raises(TypeError, match=f"one string, got {type(text).__name__}"):
        load_tokenizer(merges).encode(text)


def test_sentinels(spiece: Path, merges: Path) -> None:
    t5 = load_tokenizer(spiece)
    assert [t5.sentinel_id(number) for number in range(100)] == list(
        range(t5.vocab_size - 1, t5.vocab_size - 101, -1)
    )
    assert t5.encode("<extra_id_3>") == [t5.sentinel_id(3), t5.eos_id]
    for tokenizer, number in ((t5, 100), (t5, -1), (load_tokenizer(merges), 0)):
        with pytest.raises(ValueError, match=f"<extra_id_{number}> is not in this vocabulary of"):
            tokenizer.sentinel_id(number)


def test_sentinels_of_mt5_are_pieces_that_begin_a_word(tmp_path: Path) -> None:
    ours = load_tokenizer(mt5(tmp_path))
    assert ours.decode([ours.sentinel_id(3)]).strip() == "<extra_id_3>"
    assert ours.sentinel_id(0) == ours.sentinel_id(9) + 9
    with pytest.raises(ValueError, match="<extra_id_10> is not in this vocabulary"):
        ours.sentinel_id(10)
    write_json(tmp_path, "tokenizer_config.json", extra_ids=0, tokenizer_class="MT5Tokenizer")
    assert load_tokenizer(tmp_path).encode(SENTENCES[0]) == ours.encode(SENTENCES[0])


def test_extra_ids_is_the_number_of_sentinels(spiece: Path, tmp_path: Path) -> None:
    shutil.copy(spiece / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 5}')
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == load_tokenizer(spiece).vocab_size - 95
    assert ours.sentinel_id(4) == ours.vocab_size - 5


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_sentinels_that_are_also_pieces(extra_ids: int, tmp_path: Path) -> None:
    train_spiece(tmp_path, [f"<extra_id_{number}>" for number in range(99, -1, -1)])
    write_json(tmp_path, "tokenizer_config.json", extra_ids=extra_ids, tokenizer_class="T5Tokenizer")
    ours, oracle = load_tokenizer(tmp_path), T5Tokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == max(oracle.get_vocab().values()) + 1
    text = "a<extra_id_0> b<extra_id_99>"
    assert ours.encode(text) == oracle.encode(text)
    assert ours.decode(ours.encode(text), skip_special_tokens=False).count("<extra_id_") == 2


def test_tokenizers_can_be_pickled(pair):
    ours, _ = pair
    there = pickle.loads(pickle.dumps(ours))
    assert there.encode(SENTENCES[1]) == ours.encode(SENTENCES[1])


# ----------------------------------------------------------------------------------------------------- saving


def test_saving_and_loading(pair, tmp_path):
    ours, oracle = pair
    ours.save_pretrained(tmp_path / "new" / "directory")
    again = load_tokenizer(tmp_path / "new" / "directory")
    reopened = type(oracle).from_pretrained(tmp_path / "new" / "directory")
    assert again.vocab_size == len(reopened) == ours.vocab_size
    assert (again.pad_id, again.eos_id, again.unk_id, again.bos_id) == (
        ours.pad_id,
        ours.eos_id,
        ours.unk_id,
        ours.bos_id,
    )
    for text in SENTENCES + HOSTILE:
        assert again.encode(text) == ours.encode(text)
    assert oracle_ids(reopened, SENTENCES + HOSTILE) == oracle_ids(oracle, SENTENCES + HOSTILE)
    assert_same(again, reopened, SENTENCES + HOSTILE)


def test_saved_files_equal_the_loaded_ones(spiece: Path, merges: Path, tmp_path: Path) -> None:
    for number, source in enumerate((spiece, merges)):
        load_tokenizer(source).save_pretrained(tmp_path / str(number))
        for path in source.iterdir():
            assert (tmp_path / str(number) / path.name).read_bytes() == path.read_bytes()


def test_saving_after_the_files_were_deleted(merges: Path, tmp_path: Path) -> None:
    shutil.copytree(merges, tmp_path / "a")
    tokenizer = load_tokenizer(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    assert load_tokenizer(tmp_path / "a").encode("The dog") == tokenizer.encode("The dog")


def test_files_of_another_tokenizer_are_removed(spiece: Path, merges: Path, tmp_path: Path) -> None:
    load_tokenizer(spiece).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    load_tokenizer(merges).save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"vocab.json", "merges.txt", "config.json", "model.safetensors"}
    assert load_tokenizer(tmp_path).encode("The dog") == load_tokenizer(merges).encode("The dog")
    assert AutoTokenizer.from_pretrained(tmp_path).encode("The dog") == load_tokenizer(merges).encode(
        "The dog"
    )


def test_a_failed_save_keeps_the_old_files(
    merges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(merges)
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_directory_is_named(merges: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab\.json: a file, expected a directory to save"):
        load_tokenizer(merges).save_pretrained(merges / "vocab.json")


def test_byt5_from_config_json_is_saved_with_its_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}')
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("ab") == [100, 101, 1]
    assert ByT5Tokenizer.from_pretrained(tmp_path / "saved").encode("ab") == [100, 101, 1]


# ----------------------------------------------------------------------------------------------------- errors


MERGEABLE = '{"a": 0, "b": 1, "ab": 2}'
MERGES = {"vocab.json": MERGEABLE, "merges.txt": "#version: 0.2\na b\n"}
WORD_LEVEL = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, r"tokenizer\.json: broken JSON"),
        ({"tokenizer.json": "[1]"}, r"tokenizer\.json: expected a JSON object, found list"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: not a tokenizer"),
        (
            {"tokenizer.json": '{"model": {"type": "Unigram", "vocab": []}}'},
            r"tokenizer\.json: not a tokenizer",
        ),
        ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, r"tokenizer\.json: not a tokenizer"),
        ({"tokenizer.json": '{"model": {"type": "New"}}'}, r"tokenizer\.json: not a tokenizer"),
        ({"spiece.model": ""}, r"spiece\.model: not a SentencePiece model"),
        ({"spiece.model": "not protobuf at all"}, r"spiece\.model: not a SentencePiece model"),
        (
            MERGES | {"vocab.json": '{"a": "b"}'},
            r"vocab\.json: the id of 'a' is 'b', expected a whole number from 0 to",
        ),
        (
            MERGES | {"merges.txt": "#version: 0.2\na b\na c\n"},
            r"merges\.txt:3: found 'a c', expected",
        ),
        (MERGES | {"merges.txt": "b a\n"}, r"merges\.txt:1: found 'b a', expected two tokens"),
        (MERGES | {"merges.txt": "ab\n"}, r"merges\.txt:1: found 'ab', expected two tokens"),
        (MERGES | {"merges.txt": ""}, r"merges\.txt: the file is empty"),
        (
            MERGES | {"vocab.json": '{"a": 0, "b": 1, "ab": 1}'},
            r"vocab\.json: '(b|ab)' and '(b|ab)' have the id 1, expected one token for each id",
        ),
        (
            MERGES | {"tokenizer_config.json": '{"tokenizer_class": "BartTokenizer"}'},
            "vocab.json: read as a GPT2Tokenizer's, but tokenizer_class is 'BartTokenizer'; save that",
        ),
        (
            MERGES | {"tokenizer_config.json": '{"tokenizer_class": ["GPT2Tokenizer"]}'},
            r"tokenizer_config\.json: tokenizer_class is \['GPT2Tokenizer'\], expected the name of a class",
        ),
        (
            MERGES | {"tokenizer_config.json": '{"eos_token": null}'},
            r"tokenizer_config\.json: no eos_token, expected the token that begins or ends a text",
        ),
        (
            MERGES | {"tokenizer_config.json": '{"tokenizer_class": "RobertaTokenizer", "cls_token": ""}'},
            r"tokenizer_config\.json: no cls_token, expected",
        ),
        (
            MERGES | {"tokenizer_config.json": '{"add_bos_token": "yes"}'},
            r"tokenizer_config\.json: add_bos_token is 'yes', expected true or false",
        ),
        (
            MERGES | {"tokenizer_config.json": '{"added_tokens_decoder": {"3": {}}}'},
            r"tokenizer_config\.json: added_tokens_decoder is {}, expected a token such as",
        ),
        (
            MERGES | {"special_tokens_map.json": '{"pad_token": {"content": "x", "lstrip": 1}}'},
            r"special_tokens_map\.json: pad_token is {'content': 'x', 'lstrip': 1}, expected a token",
        ),
        (
            MERGES | {"special_tokens_map.json": '{"additional_special_tokens": "x"}'},
            r"special_tokens_map\.json: additional_special_tokens is 'x', expected a list of tokens",
        ),
        (
            MERGES | {"tokenizer_config.json": json.dumps({"x" * 10**5 + "_token": {}})},
            r"tokenizer_config\.json: 'x+\.\.\.x*_token' is {}, expected a token",
        ),
        (
            MERGES | {"added_tokens.json": '{"x": "y"}'},
            r"added_tokens\.json: the id of 'x' is 'y', expected a whole number from 0 to",
        ),
        (
            MERGES | {"added_tokens.json": '["a"]'},
            r"added_tokens\.json: expected a JSON object, found list",
        ),
        (MERGES | {"config.json": "no"}, r"config\.json: broken JSON"),
        (
            {
                "tokenizer.json": json.dumps(
                    {
                        "model": WORD_LEVEL,
                        "post_processor": {
                            "type": "TemplateProcessing",
                            "single": [
                                {"Sequence": {"id": "A", "type_id": 0}},
                                {"SpecialToken": {"id": "x", "type_id": 0}},
                            ],
                            "pair": [],
                            "special_tokens": {"x": {"id": "x", "ids": [7], "tokens": ["x"]}},
                        },
                    }
                ),
                "tokenizer_config.json": '{"eos_token": "</s>"}',
            },
            r"tokenizer\.json: post_processor adds an id that no token has",
        ),
    ],
)
def test_a_broken_file_is_named(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "spiece.model", "vocab.json", "merges.txt"])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\xff\xfe{\0}\0", "text in UTF-16"),
        (b"PAR1\x15\x04", "a parquet file"),
    ],
)
def test_another_format_is_named(file: str, start: bytes, message: str, tmp_path: Path) -> None:
    for name, content in MERGES.items() if file in MERGES else ():
        (tmp_path / name).write_text(content)
    (tmp_path / file).write_bytes(start)
    with pytest.raises(ValueError, match=f"{re.escape(file)}: {message}"):
        load_tokenizer(tmp_path)


BPE_MODEL = {"type": "BPE", "vocab": json.loads(MERGEABLE), "merges": []}
HUGE = [2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**12, 10**30, -1, -(2**63), 1.5, True]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer", "extra_ids": ...}},
            r"tokenizer_config\.json: extra_ids is {}, expected",
        ),
        (
            {"vocab.json": {"a": 0, "ab": ...}, "merges.txt": {}},
            r"vocab\.json: the id of 'ab' is {}, expected",
        ),
        (
            {"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer"}, "added_tokens.json": {"x": ...}},
            r"added_tokens\.json: the id of 'x' is {}, expected",
        ),
        ({"tokenizer.json": {"model": BPE_MODEL | {"vocab": {"a": ...}}}}, r"tokenizer\.json: "),
    ],
    ids=["extra_ids", "vocab.json", "added_tokens.json", "tokenizer.json"],
)
def test_a_number_without_limit_is_refused_at_once(
    files: dict[str, dict], message: str, number: float, tmp_path: Path
) -> None:
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values, default=lambda _: number))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message.format("(?=-?[0-9T])[0-9.Tru e-]+")):
        load_tokenizer(tmp_path)
    assert time.perf_counter() - start < 2


def test_a_length_that_stands_for_no_limit_is_accepted(merges: Path, tmp_path: Path) -> None:
    shutil.copytree(merges, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert load_tokenizer(tmp_path).encode("The dog") == load_tokenizer(merges).encode("The dog")


CONFIG_KEYS = [
    *("eos_token", "bos_token", "unk_token", "pad_token", "cls_token", "sep_token", "image_token"),
    *("tokenizer_class", "extra_ids", "added_tokens_decoder", "extra_special_tokens", "model_max_length"),
    *("additional_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space", "model_type"),
    *("clean_up_tokenization_spaces", "<new>", "</s>", ""),
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**31, 2**63, 10**30])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["</s>", "<extra_id_0>", "(a+)+$", "\x1b[31m", "ByT5Tokenizer", "NFKC", "x" * 3000]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "id", "type", "0", "500"]) | st.text(max_size=3), values
        )
    ),
    max_leaves=6,
)


@pytest.fixture(scope="session")
def templates(spiece: Path, merges: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A directory of each kind of tokenizer."""
    t5, gpt2, roberta, plain = (tmp_path_factory.mktemp("template") for _ in range(4))
    T5Tokenizer.from_pretrained(spiece).save_pretrained(t5)
    GPT2Tokenizer.from_pretrained(merges).save_pretrained(gpt2)
    return [spiece, merges, t5, gpt2, codet5(roberta), byt5(plain)]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key_is_refused_by_name_or_harmless(templates, tmp_path, data):
    directory = tmp_path / "tokenizer"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(data.draw(st.sampled_from(templates)), directory)
    names = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"]
    names += [path.name for path in directory.glob("*.json") if path.name not in names]
    path = directory / data.draw(st.sampled_from(names))
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(values, data)
    path.write_text(json.dumps(values), encoding="utf-8")
    start = time.perf_counter()
    try:
        tokenizer = load_tokenizer(directory)
        for text in ("The dog 日本", "", "a <extra_id_0></s>"):
            ids = tokenizer.encode(text)
            assert all(0 <= number < tokenizer.vocab_size for number in ids)
            assert isinstance(tokenizer.decode(ids, skip_special_tokens=False), str)
    except (ValueError, FileNotFoundError) as error:
        assert str(directory) in str(error)
        assert "\n" not in str(error) and len(str(error)) < 800
    assert time.perf_counter() - start < 5


def change(values: dict, data: st.DataObject) -> None:
    """Put any JSON value under a key of an object, or of one inside it."""
    container, key = values, data.draw(st.sampled_from([*values, *CONFIG_KEYS]))
    while isinstance(inner := container.get(key), dict) and inner and data.draw(st.booleans()):
        container, key = inner, data.draw(st.sampled_from([*inner][:40]))
    container[key] = data.draw(json_values)


def damaged_tables(table: bytes) -> Iterator[bytes]:
    """A Unicode table with a wrong size, strings without an end, or units out of bounds."""
    size = int.from_bytes(table[:4], "little")
    units, strings = np.frombuffer(table[4 : 4 + size], "<u4"), table[4 + size :]
    yield b"\xff\xff\xff\x7f" + table[4:]
    yield b"\0\0\0\0" + table[4:]
    yield table[:size]
    yield table[:-1]
    yield table[: 4 + size] + strings.replace(b"\0", b"A")
    yield table[: 4 + size] + strings.replace(b"\0", b"\xff\0")
    is_leaf = units >> 31 == 1
    yield table[:4] + np.where(is_leaf, units | 0xFFFFFF, units).astype("<u4").tobytes() + strings
    yield table[:4] + np.where(is_leaf, units, units | 0x7FFFFC00).astype("<u4").tobytes() + strings
    yield table[:4] + np.where(is_leaf, 0, units).astype("<u4").tobytes() + strings


@pytest.mark.parametrize("tokenizer_class", ["T5Tokenizer", "PreTrainedTokenizerFast"])
def test_a_damaged_unicode_table_is_refused(tokenizer_class: str, spiece: Path, tmp_path: Path) -> None:
    T5Tokenizer.from_pretrained(spiece).save_pretrained(tmp_path)
    write_json(tmp_path, "tokenizer_config.json", tokenizer_class=tokenizer_class, eos_token="</s>")
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    steps = values["normalizer"].get("normalizers", [values["normalizer"]])
    [step] = [step for step in steps if step["type"] == "Precompiled"]
    tables = [*damaged_tables(base64.b64decode(step["precompiled_charsmap"]))]
    load_tokenizer(tmp_path)
    for table in tables:
        step["precompiled_charsmap"] = base64.b64encode(table).decode()
        write_json(tmp_path, "tokenizer.json", **values)
        with pytest.raises(
            ValueError, match=r"tokenizer\.json: not a tokenizer \(.*(Unicode table|buffer|utf-8)"
        ):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("pipeline", "text", "reason"),
    [
        ({}, "b", "Exception.*Missing"),
        (
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            },
            "a" * 40 + "!",
            "PanicException.*retry-limit",
        ),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"}},
            "a" * 40 + "!",
            "PanicException.*retry-limit",
        ),
        (
            {
                "normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": ""},
                "added_tokens": [special("x", normalized=True) | {"id": 2, "special": False}],
            },
            "日本",
            "PanicException",
        ),
    ],
    ids=["no unknown token", "pre-tokenizer", "normalizer", "added token"],
)
def test_a_tokenizer_that_fails_on_a_text_is_named(
    pipeline: dict, text: str, reason: str, tmp_path: Path
) -> None:
    write_json(tmp_path, "tokenizer.json", model=WORD_LEVEL, **pipeline)
    write_json(tmp_path, "tokenizer_config.json", eos_token="</s>")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(ValueError, match=rf"tokenizer\.json: cannot encode this text \(.*{reason}") as caught:
        tokenizer.encode(text)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_an_interrupt_is_not_taken_for_a_damaged_file(merges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(merges)

    def interrupt(text: str) -> list[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")


@pytest.mark.parametrize("form", ["spiece", "byt5", "merges"])
def test_the_time_to_find_added_tokens_does_not_depend_on_their_number(
    form: str, spiece: Path, merges: Path, tmp_path: Path
) -> None:
    if form == "byt5":
        byt5(tmp_path)
    else:
        shutil.copytree({"spiece": spiece, "merges": merges}[form], tmp_path, dirs_exist_ok=True)
    names = [f"<item_{number}>" for number in range(10_000)]
    write_json(tmp_path, "added_tokens.json", **{name: 1000 + number for number, name in enumerate(names)})
    tokenizer = load_tokenizer(tmp_path)
    start = time.perf_counter()
    assert len(set(tokenizer.encode("".join(names)))) >= 10_000
    tokenizer.encode("<item_" * 20_000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("unit", ["a", " ", "ab ", "👍", "▁", "\0", "\n", "e\u0301"])
def test_a_word_of_any_length_takes_linear_time(pair, unit):
    ours, _ = pair
    start = time.perf_counter()
    ours.decode(ours.encode(unit * (200_000 // len(unit.encode()))))
    assert time.perf_counter() - start < 5


# --------------------------------------------------------------------------------------------------- adapters


def adapter(directory: Path, base: object) -> Path:
    directory.mkdir()
    write_json(directory, "adapter_config.json", base_model_name_or_path=base)
    return directory


def test_an_adapter_has_the_tokenizer_of_its_base_model(merges: Path, spiece: Path, tmp_path: Path) -> None:
    base = shutil.copytree(merges, tmp_path / "base")
    write_json(base, "config.json", model_type="gpt2")
    first = adapter(tmp_path / "first", str(base))
    second = adapter(tmp_path / "second", str(first))
    expected = load_tokenizer(base).encode(SENTENCES[0])
    assert load_tokenizer(first).encode(SENTENCES[0]) == expected
    assert load_tokenizer(second).encode(SENTENCES[0]) == expected
    shutil.copy(spiece / "spiece.model", first)  # an adapter's own comes first
    for directory in (first, second):
        assert load_tokenizer(directory).encode(SENTENCES[0]) == load_tokenizer(spiece).encode(SENTENCES[0])


def test_an_adapter_without_a_tokenizer_of_a_base_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter_config\.json: base_model_name_or_path is .*leads back"):
        load_tokenizer(adapter(tmp_path / "loop", str(tmp_path / "loop")))
    (tmp_path / "base").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"base_model_name_or_path is .*, a directory without a model"
    ):
        load_tokenizer(adapter(tmp_path / "lost", str(tmp_path / "base")))
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"base: no tokenizer; expected tokenizer\.json"):
        load_tokenizer(adapter(tmp_path / "alone", str(tmp_path / "base")))


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "files", [[], ["config.json"], ["vocab.json"], ["merges.txt", "tokenizer_config.json"]]
)
def test_a_directory_without_a_tokenizer(files: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer; expected tokenizer\.json, spiece\.model or vocab\.json"
    ):
        load_tokenizer(tmp_path)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_check_vocabulary(merges: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byt5(tmp_path))
    check_vocabulary(tokenizer, T5Config(vocab_size=384, decoder_start_token_id=0), "models/t5")
    check_vocabulary(tokenizer, T5Config(vocab_size=400, decoder_start_token_id=0), "models/t5")
    with pytest.raises(
        ValueError, match=r"^models/gpt2: the tokenizer has 384 ids, but the embedding only 300 rows"
    ):
        check_vocabulary(tokenizer, GPT2Config(vocab_size=300), Path("models/gpt2"))


# ----------------------------------------------------------------------------------------------- spiece.model


MUTATE = """
import random, sys, time
from pathlib import Path
from ftcore import load_tokenizer

directory, texts = Path(sys.argv[1]), {texts!r}
content = (directory / "spiece.model").read_bytes()
rng = random.Random(0)
outcomes = {{"read": 0, "refused": 0}}
for _ in range(150):
    mutated = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        # Half of the changes are in the pieces at the start, the others mostly in the Unicode table.
        mutated[rng.randrange(rng.choice([3000, len(content)]))] = rng.randrange(256)
    if rng.random() < 0.2:
        del mutated[rng.randrange(len(mutated)) :]
    (directory / "spiece.model").write_bytes(mutated)
    start = time.perf_counter()
    try:
        tokenizer = load_tokenizer(directory)
        for text in texts:
            tokenizer.decode(tokenizer.encode(text))
        outcomes["read"] += 1
    except ValueError as error:
        assert "spiece.model" in str(error) and "\\n" not in str(error), error
        outcomes["refused"] += 1
    assert time.perf_counter() - start < 10
print(outcomes)
"""


def test_a_mutated_model_neither_crashes_nor_hangs(spiece: Path, tmp_path: Path) -> None:
    shutil.copy(spiece / "spiece.model", tmp_path)
    command = [sys.executable, "-c", MUTATE.format(texts=SENTENCES), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "'refused': " in result.stdout and "'read': 0" not in result.stdout


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 10**6, b"\x00" * 10**6, b"\x0a\xff\xff\xff\xff\x0f" * 10**5],
    ids=["empty", "ones", "zeros", "lengths"],
)
def test_a_hostile_model_is_refused_at_once(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"spiece\.model: not a SentencePiece model, or damaged$"):
        load_tokenizer(tmp_path)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused(share: float, spiece: Path, tmp_path: Path) -> None:
    content = (spiece / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"spiece\.model: not a SentencePiece model, or damaged"):
        load_tokenizer(tmp_path)


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=model,
        vocab_size=200,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"spiece\.model: not a unigram model, which T5's is"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("size", "accepted"), [(100, True), (1000, False)])
def test_a_character_that_becomes_a_long_text_is_refused(size: int, accepted: bool, tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text(f"61\t{' '.join(['62'] * size)}\n")  # a -> bbb...
    train_spiece(tmp_path, [], normalization_rule_tsv=str(rules))
    if accepted:
        load_tokenizer(tmp_path).encode("a")
    else:
        with pytest.raises(ValueError, match=r"spiece\.model: not a SentencePiece model, or damaged"):
            load_tokenizer(tmp_path)


def test_a_model_without_a_piece_for_unknown_characters_is_refused(tmp_path: Path) -> None:
    path = mt5(tmp_path) / "spiece.model"
    piece = b"<unk>\x15\0\0\0\0\x18"  # text, score 0.0, type
    path.write_bytes(path.read_bytes().replace(piece + b"\x02", piece + b"\x05"))
    with pytest.raises(ValueError, match=r"spiece\.model: no piece for unknown characters"):
        load_tokenizer(tmp_path)


def test_user_defined_pieces_are_never_split_or_merged(spiece: Path) -> None:
    tokenizer = load_tokenizer(spiece)
    sep = tokenizer._id_of("<sep>")
    for text in ("a<sep>b", "<sep>", "a <sep> b"):
        assert tokenizer.encode(text).count(sep) == 1
    assert tokenizer.decode(tokenizer.encode("a <sep>")) == "a<sep>"  # not special: kept when decoding
