"""Texts in, texts out: order, batches, streaming, warnings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from ftcore.data import load_tokenizer
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import TextStream, generate, generate_from_ids, generate_texts, stream_text
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

TEXTS = ["Ada Lovelace was", "I", "the engine of Mr. Babbage weaves", "a b", "naïve 🙂"]


def gpt2_byte_tokenizer(directory: Path) -> Tokenizer:
    """A GPT-2 tokenizer without merges: every token is a byte."""
    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return load_tokenizer(directory)


def t5_byte_tokenizer(directory: Path, **config: object) -> Tokenizer:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", **config}))
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, Tokenizer]:
    tokenizer = gpt2_byte_tokenizer(tmp_path_factory.mktemp("gpt2"))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=256)
    model = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(model.transformer.wpe.weight, std=0.1)
    return model, tokenizer


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[T5ForConditionalGeneration, Tokenizer]:
    tokenizer = t5_byte_tokenizer(tmp_path_factory.mktemp("byt5"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, decoder_start_token_id=0, tie_word_embeddings=False)
    model = T5ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=3.0)
    return model, tokenizer


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_give_the_answers_of_single_texts(family: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = request.getfixturevalue(family)
    alone = [generate_texts(model, tokenizer, [text], max_new_tokens=9)[0] for text in TEXTS]
    assert len(set(alone)) > 1
    for batch_size in (1, 2, 3, 9):
        assert generate_texts(model, tokenizer, TEXTS, batch_size=batch_size, max_new_tokens=9) == alone
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert generate_from_ids(model, tokenizer, ids, max_new_tokens=9) == alone


def test_gpt2_returns_the_continuation_without_the_prompt(gpt2: tuple[GPT2LMHeadModel, Tokenizer]) -> None:
    model, tokenizer = gpt2
    source = tokenizer.encode("Ada")
    whole = generate(model, torch.tensor([source]), max_new_tokens=7)[0].tolist()
    assert generate_texts(model, tokenizer, ["Ada"], max_new_tokens=7) == [tokenizer.decode(whole[3:])]


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"stop_strings": ["e", "a"]}]
)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_scored_texts(family: str, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Equal texts, and the scores that `generate` returns for each text alone, without padding."""
    model, tokenizer = request.getfixturevalue(family)
    o = options | {"max_new_tokens": 9}
    texts = generate_texts(model, tokenizer, TEXTS, **o)
    scored = generate_texts(model, tokenizer, TEXTS, batch_size=3, return_scores=True, **o)
    for text, answer, prompt in zip(texts, scored, TEXTS, strict=True):
        answers = answer if "num_beams" in options else [answer]
        assert [one.text for one in answers] == (text if "num_beams" in options else [text])
        ids = torch.tensor([tokenizer.encode(prompt)])
        alone = generate(model, ids, return_scores=True, tokenizer=tokenizer, **o)
        length = alone.token_scores.shape[1]
        for number, one in enumerate(answers):
            assert one.tokens == alone.ids[number, -length:].tolist()[: len(one.tokens)]
            assert one.token_scores == pytest.approx(
                alone.token_scores[number].tolist()[: len(one.tokens)], rel=1e-4
            )
            assert not alone.token_scores[number, len(one.tokens) :].any()
            assert one.score == pytest.approx(alone.sequence_scores[number].item(), rel=1e-4)


def test_several_sequences_are_returned_as_lists(gpt2: tuple[GPT2LMHeadModel, Tokenizer]) -> None:
    model, tokenizer = gpt2
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5}
    answers = generate_texts(model, tokenizer, TEXTS, batch_size=2, **options)
    assert [len(answer) for answer in answers] == [2] * len(TEXTS)
    assert answers[1] == generate_texts(model, tokenizer, [TEXTS[1]], **options)[0]
    assert generate_texts(model, tokenizer, [], **options) == []


def test_padding_after_eos_is_not_decoded(gpt2: tuple[GPT2LMHeadModel, Tokenizer]) -> None:
    """Even if the pad token is an ordinary one."""
    model, tokenizer = gpt2
    ends = list(range(0, 256, 2))
    answers = generate_texts(model, tokenizer, TEXTS, eos_token_id=ends, pad_token_id=33, max_new_tokens=12)
    for text, answer in zip(TEXTS, answers, strict=True):
        [alone] = generate_texts(model, tokenizer, [text], eos_token_id=ends, max_new_tokens=12)
        assert answer == alone


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("seed", range(3))
def test_the_pieces_of_a_stream_are_the_text(family: str, seed: int, request: pytest.FixtureRequest) -> None:
    model, tokenizer = request.getfixturevalue(family)
    options = {"do_sample": True, "max_new_tokens": 40, "top_k": 0}
    pieces: list[str] = []
    generator = torch.Generator().manual_seed(seed)
    streamed = stream_text(model, tokenizer, "Ada", pieces.append, generator=generator, **options)
    generator = torch.Generator().manual_seed(seed)
    [whole] = generate_texts(model, tokenizer, ["Ada"], generator=generator, **options)
    assert "".join(pieces) == streamed == whole
    assert len(pieces) > 1


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12))
def test_a_stream_writes_only_final_text(gpt2: tuple[GPT2LMHeadModel, Tokenizer], text: str) -> None:
    """With a token per byte, a character is written when it is complete, never as U+FFFD."""
    _, tokenizer = gpt2
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in tokenizer.encode(text):
        stream(torch.tensor([token]))
        assert text.startswith(stream.written)
    stream.close()
    assert "".join(pieces) == text


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The pieces of a stream, joined; each is a part of the text of all tokens."""
    whole, pieces = tokenizer.decode(tokens), []
    stream = TextStream(tokenizer, pieces.append)
    for token in tokens:
        stream(torch.tensor([token]))
        assert whole.startswith(stream.written)
    stream.close()
    return "".join(pieces)


def test_a_stream_waits_for_the_clean_up_of_spaces(tmp_path: Path) -> None:
    tokenizer = t5_byte_tokenizer(tmp_path, clean_up_tokenization_spaces=True)
    for text, cleaned in (("they do n't know .", "they don't know."), ("we 've , it 's", "we've, it's")):
        assert streamed(tokenizer, tokenizer.encode(text)) == cleaned


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([" ", " '", ".", " n", "'t", "e", "word"]), min_size=4).map("".join))
def test_a_stream_of_cleaned_text_is_the_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tokenizer = t5_byte_tokenizer(tmp_path_factory.getbasetemp(), clean_up_tokenization_spaces=True)
    tokens = tokenizer.encode(text)
    assert streamed(tokenizer, tokens) == tokenizer.decode(tokens)


# Empty prompts, special tokens, stop strings, generators


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_gpt2_continues_an_empty_prompt_from_bos(
    gpt2: tuple[GPT2LMHeadModel, Tokenizer], options: dict[str, Any]
) -> None:
    """In a batch with longer prompts too; the pad token is the same."""
    model, tokenizer = gpt2
    options = options | {"max_new_tokens": 7, "bos_token_id": 256}
    want = tokenizer.decode(generate(model, torch.tensor([[256]]), **options)[0, 1:])
    assert tokenizer.decode(generate(model, **options)[0, 1:]) == want
    assert generate_texts(model, tokenizer, [""], **options) == [want]
    assert generate_texts(model, tokenizer, ["Ada", "", "I"], **options)[1] == want
    if "num_beams" not in options:
        assert stream_text(model, tokenizer, "", lambda piece: None, **options) == want


def saying(tokens: list[int], prompt_length: int) -> dict[str, Any]:
    """Arguments with which these tokens are the only possible answer."""

    def next_token(batch_id: int, ids: Tensor) -> list[int]:
        return tokens[len(ids) - prompt_length :][:1] or tokens[-1:]

    return {"prefix_allowed_tokens_fn": next_token, "max_new_tokens": len(tokens) + 3}


def streamed_pieces(model: Any, tokenizer: Tokenizer, text: str, **options: Any) -> list[str]:
    pieces: list[str] = []
    stream_text(model, tokenizer, text, pieces.append, **options)
    return pieces


def test_special_tokens_may_be_kept(t5: tuple[T5ForConditionalGeneration, Tokenizer]) -> None:
    """But not the end token and the padding after it."""
    model, tokenizer = t5
    text = "<extra_id_0> sews<extra_id_1>."
    options = saying(tokenizer.encode(text), 1)
    kept = tokenizer.decode(tokenizer.encode(text)[:-1], skip_special_tokens=False)
    assert "<extra_id_0>" in kept and "<extra_id_1>" in kept and "</s>" not in kept
    assert generate_texts(model, tokenizer, ["a", "bc"], skip_special_tokens=False, **options) == [kept] * 2
    assert generate_texts(model, tokenizer, ["a"], **options) == [tokenizer.decode(tokenizer.encode(text))]
    pieces = streamed_pieces(model, tokenizer, "a", skip_special_tokens=False, **options)
    assert "".join(pieces) == kept and len(pieces) > 3


def test_an_end_token_inside_of_the_answer_is_special_too(gpt2: tuple[GPT2LMHeadModel, Tokenizer]) -> None:
    model, tokenizer = gpt2
    answer = [65, 256, 66, 256, 256]
    options = {"eos_token_id": None, **saying(answer, 3), "max_new_tokens": 5}
    for skip, want in ((True, "bc"), (False, "b<|endoftext|>c")):
        assert generate_texts(model, tokenizer, ["Ada"], skip_special_tokens=skip, **options) == [want]
        pieces = streamed_pieces(model, tokenizer, "Ada", skip_special_tokens=skip, **options)
        assert "".join(pieces) == want


@pytest.mark.parametrize("stop", ["er", "weave", "ves on", ["x", "es", "weaves"], "x"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_answers_end_before_a_stop_string(
    family: str, stop: str | list[str], request: pytest.FixtureRequest
) -> None:
    """The ids include it; padding after it is left out, an ordinary token too."""
    model, tokenizer = request.getfixturevalue(family)
    text = "it weaves on ever"
    options = saying(tokenizer.encode(text), 1 if family == "t5" else 3) | {"stop_strings": stop}
    stops = [stop] if isinstance(stop, str) else stop
    want = text[: min((text.find(one) for one in stops if one in text), default=None)]
    assert (
        generate_texts(model, tokenizer, ["Ada", "Bea"], pad_token_id=33, **options)[0][: len(want)] == want
    )
    if stop != "x":
        assert generate_texts(model, tokenizer, ["Ada", "Bea"], pad_token_id=33, **options) == [want] * 2
        pieces = streamed_pieces(model, tokenizer, "Ada", **options)
        assert "".join(pieces) == want and len(pieces) > 1


@settings(max_examples=100, deadline=None)
@given(
    st.text("abé 🙂", min_size=1, max_size=12),
    st.lists(st.text("abé 🙂", min_size=1, max_size=3), max_size=3),
)
def test_a_stream_ends_before_a_stop_string(
    gpt2: tuple[GPT2LMHeadModel, Tokenizer], text: str, stop_strings: list[str]
) -> None:
    _, tokenizer = gpt2
    want = text[: min((text.find(one) for one in stop_strings if one in text), default=None)]
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append, stop_strings=stop_strings)
    for token in tokenizer.encode(text):
        stream(torch.tensor([token]))
        assert want.startswith(stream.written)
    stream.close()
    assert "".join(pieces) == want


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_text_with_its_own_generator_does_not_depend_on_the_others(
    family: str, request: pytest.FixtureRequest
) -> None:
    model, tokenizer = request.getfixturevalue(family)
    options = {"do_sample": True, "max_new_tokens": 9, "top_k": 0, "num_return_sequences": 2}

    def sampled(numbers: list[int], batch_size: int) -> dict[int, list[str]]:
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        texts = [TEXTS[number] for number in numbers]
        answers = generate_texts(
            model, tokenizer, texts, generator=generators, batch_size=batch_size, **options
        )
        return dict(zip(numbers, answers, strict=True))

    together = sampled([0, 1, 2, 3, 4], 8)
    assert len({answer for pair in together.values() for answer in pair}) == 10
    assert sampled([0, 1, 2, 3, 4], 1) == sampled([0, 1, 2, 3, 4], 3) == together
    assert sampled([3, 1, 4], 2) == {number: together[number] for number in (3, 1, 4)}


def test_a_prompt_that_ends_in_a_space_causes_a_warning(gpt2: tuple[GPT2LMHeadModel, Tokenizer]) -> None:
    model, tokenizer = gpt2
    with pytest.warns(UserWarning, match="1 of 2 prompts end in a space"):
        [kept, _] = generate_texts(model, tokenizer, ["Ada ", "Ada"], max_new_tokens=5)
    ids = torch.tensor([tokenizer.encode("Ada ")])
    assert kept == tokenizer.decode(generate(model, ids, max_new_tokens=5)[0, 4:])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["Ada", ""], {"bos_token_id": None}, "prompt 2: the prompt is empty, and bos_token_id, which would"),
        (["Ada"], {"do_sample": True, "generator": []}, "generator is a list of 0, expected 1, one for each"),
        (
            ["Ada", "x" * 50],
            {"max_new_tokens": 20},
            "prompt 2: a prompt of 50 tokens and 20 new ones exceed the model's 64",
        ),
        (["Ada"], {"batch_size": 0}, "batch_size is 0"),
        (["Ada"], {"batch_size": 1.5}, "batch_size is 1.5, expected a whole number"),
        (["Ada"], {"num_beam": 2}, "did you mean 'num_beams'"),
    ],
)
def test_invalid_calls_are_refused(
    gpt2: tuple[GPT2LMHeadModel, Tokenizer], texts: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_texts(*gpt2, texts, **options)


def test_a_stream_has_a_single_answer(gpt2: tuple[GPT2LMHeadModel, Tokenizer]) -> None:
    with pytest.raises(ValueError, match="num_return_sequences is 2, but a stream shows only one"):
        stream_text(*gpt2, "Ada", print, do_sample=True, num_return_sequences=2)
    with pytest.raises(ValueError, match="streamer needs num_beams=1"):
        stream_text(*gpt2, "Ada", print, num_beams=2)


def test_a_single_text_is_refused_where_lists_or_ids_are_expected(
    gpt2: tuple[GPT2LMHeadModel, Tokenizer],
) -> None:
    model, tokenizer = gpt2
    with pytest.raises(ValueError, match=r"^texts is 'Ada sews', expected a list of texts$"):
        generate_texts(model, tokenizer, "Ada sews")
    for wrong in ("Ada sews", tokenizer.encode("Ada")):
        with pytest.raises(ValueError, match=r"^input_ids is .*, expected a tensor of token ids"):
            generate(model, wrong)  # type: ignore[arg-type]
