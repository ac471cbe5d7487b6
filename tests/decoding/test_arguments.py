"""Any generation_config.json is followed, named or refused by file and key; NumPy's numbers; bounds."""

import copy
import inspect
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.utils import GenerationMixin

from ftcore import load_model, save_model
from ftcore.decoding import generate
from ftcore.decoding.arguments import (
    MAX_IDS,
    NOT_IMPLEMENTED,
    TYPES,
    WITHOUT_EFFECT,
    Arguments,
    arguments_for,
)
from ftcore.models import GPT2Config, GPT2LMHeadModel
from tests.helpers.small_models import VOCAB, model_of

IDS = torch.tensor([[5, 6, 7]])
FAMILIES = ("gpt2", "t5, relu, tied")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directories = {name: tmp_path_factory.mktemp("checkpoint") for name in FAMILIES}
    for name, directory in directories.items():
        save_model(model_of(name), directory)
    return directories


def with_settings(directory: Path, values: dict[str, Any], file: str = "generation_config.json") -> Any:
    """The checkpoint with a generation_config.json, or with more keys in its config.json."""
    path = directory / file
    before = path.read_text() if path.exists() else None
    path.write_text(json.dumps((json.loads(before) if before else {}) | values))
    try:
        return load_model(directory)
    finally:
        path.unlink() if before is None else path.write_text(before)


# Any value of any key

# Numbers between these bounds are valid but slow.
numbers = st.integers(-3, 60) | st.integers(2**40, 2**70) | st.integers(-(2**70), -(2**40))
numbers |= st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 0.5, 1.0, 1e-45])
values = st.recursive(
    numbers | st.none() | st.booleans() | st.text(max_size=5) | st.sampled_from(["never", "0.7", "5"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
keys = sorted({*TYPES, *NOT_IMPLEMENTED, *WITHOUT_EFFECT})


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=3))
def test_any_settings_work_or_are_refused_by_file_and_key(
    family: str, checkpoints: dict[str, Path], chosen: dict[str, Any]
) -> None:
    model = with_settings(checkpoints[family], chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            generate(model, IDS)
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{checkpoints[family]}/generation_config.json: "), message
            assert any(key in message for key in chosen), message
            assert len(message) < 600 and message.isprintable()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "0.7"}, "temperature is '0.7', expected a number"),
        ({"eos_token_id": "1"}, "eos_token_id is '1', expected a whole number or a list of whole numbers"),
        ({"bad_words_ids": [5, 6]}, "bad_words_ids is [5, 6], expected a list of lists of whole numbers"),
        ({"bad_words_ids": "rude"}, "bad_words_ids is 'rude', expected a list of lists of whole numbers"),
        ({"num_beams": True}, "num_beams is True, expected a whole number"),
        ({"do_sample": 1}, "do_sample is 1, expected true or false"),
        ({"exponential_decay_length_penalty": [1]}, "expected a list of two numbers"),
        ({"suppress_tokens": [-1]}, "suppress_tokens holds -1, expected token ids from 0"),
        ({"num_beams": 10**9}, "num_beams is 1000000000, expected at most"),
        ({"num_beams": 10**30}, "num_beams is 1000000000000000000000000000000, expected a whole number"),
        (
            {"num_return_sequences": 10**9, "do_sample": True},
            "num_return_sequences is 1000000000, expected at",
        ),
        ({"num_beams": 2, "num_return_sequences": 4}, "num_return_sequences is 4, more than num_beams, 2"),
        ({"max_length": 1}, "a prompt of"),
        ({"min_new_tokens": 500}, "the minimum length of"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_settings_are_refused_in_a_second(
    family: str, checkpoints: dict[str, Path], values: dict[str, Any], message: str
) -> None:
    model = with_settings(checkpoints[family], values)
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        generate(model, IDS)
    assert time.perf_counter() - start < 1
    assert str(caught.value).startswith(f"{checkpoints[family] / 'generation_config.json'}: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_lengths_beyond_the_memory_are_refused() -> None:
    for arguments in ({"max_new_tokens": 10**9}, {"max_new_tokens": MAX_IDS // 4, "num_beams": 4}):
        with pytest.raises(ValueError, match="lower max_new_tokens, max_length, num_beams or"):
            generate(model_of("t5, relu, tied"), IDS, **arguments)


# Settings that are not followed


def test_settings_without_an_implementation_are_named_once_per_model(checkpoints: dict[str, Path]) -> None:
    neutral = {"transformers_version": "5", "use_cache": False, "num_beam_groups": 1, "sequence_bias": None}
    ignored = {"sequence_bias": [[[5], -9.0]], "guidance_scale": 1.5, "num_beam": 4}
    for model in (with_settings(checkpoints["gpt2"], neutral | ignored) for _ in range(2)):
        with pytest.warns(UserWarning) as caught:
            generate(model, IDS, max_new_tokens=2)
        [message] = [str(warning.message) for warning in caught]
        assert message == (
            f"{checkpoints['gpt2'] / 'generation_config.json'}: not implemented and ignored: "
            "'sequence_bias', 'guidance_scale', 'num_beam'"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(model, IDS, max_new_tokens=2)
            generate(copy.deepcopy(model), IDS, max_new_tokens=2)
            generate(with_settings(checkpoints["gpt2"], neutral), IDS, max_new_tokens=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_json_is_followed_where_generation_config_json_is_missing(
    family: str, checkpoints: dict[str, Path]
) -> None:
    directory = checkpoints[family]
    old = {"num_beams": 3, "max_length": 9, "sequence_bias": [[[5], -9.0]], "summary_type": "cls_index"}
    model = with_settings(directory, old, "config.json")
    assert model.generation_config is None
    with pytest.warns(UserWarning, match=r"config.json: not implemented and ignored: 'sequence_bias'$"):
        got = generate(model, IDS)
    assert got.tolist() == generate(model_of(family), IDS, num_beams=3, max_length=9).tolist()

    model = with_settings(directory, {"num_beams": "3"}, "config.json")
    with pytest.raises(ValueError, match=r"/config.json: num_beams is '3', expected a whole number"):
        generate(model, IDS)
    model.generation_config = {"max_length": 9}
    assert generate(model, IDS).tolist() == generate(model_of(family), IDS, max_length=9).tolist()


def test_every_setting_of_transformers_is_known() -> None:
    theirs = transformers.GenerationConfig()
    names = {*vars(theirs), *inspect.signature(GenerationMixin.generate).parameters}
    ours = {*TYPES, *NOT_IMPLEMENTED, *WITHOUT_EFFECT, "streamer", "self", "kwargs", "_original_object_hash"}
    assert names <= ours
    neutral = theirs._get_default_generation_params()
    for name, value in NOT_IMPLEMENTED.items():
        assert not neutral.get(name) or neutral[name] == value, name
    shared = set(neutral) & set(TYPES) - {"max_length"}
    assert {name: neutral[name] for name in shared} == {name: getattr(Arguments(), name) for name in shared}


@pytest.mark.parametrize("name", ["force_words_ids", "use_cache", "constraints"])
def test_arguments_of_transformers_are_named_as_such(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        generate(model_of("gpt2"), IDS, **{name: [[5]]})
    assert (
        str(caught.value)
        == f"generate has no argument '{name}': it is one of transformers', not implemented here"
    )
    with pytest.raises(ValueError, match="did you mean 'force_words_ids'"):
        generate(model_of("gpt2"), IDS, force_word_ids=[[5]])


# NumPy's numbers


NUMPY: dict[str, Any] = {int: np.int64, float: np.float32, bool: np.bool_}


def as_numpy(value: Any) -> Any:
    if isinstance(value, list):
        return [as_numpy(item) for item in value]
    return NUMPY[type(value)](value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 4, "num_beams": 2, "length_penalty": 0.5, "num_return_sequences": 2},
        {"max_length": 9, "min_length": 5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.25, "typical_p": 0.5},
        {"eos_token_id": [3, 4], "pad_token_id": 2, "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8]},
        {"eos_token_id": 3, "exponential_decay_length_penalty": [1, 1.5], "forced_eos_token_id": 3},
    ],
)
def test_numpy_numbers_are_taken_as_pythons(arguments: dict[str, Any]) -> None:
    converted = {name: as_numpy(value) for name, value in arguments.items()}
    answers = []
    for given_arguments in (arguments, converted):
        generator = torch.Generator().manual_seed(0)
        answers.append(generate(model_of("gpt2"), IDS, generator=generator, **given_arguments).tolist())
    assert answers[0] == answers[1]


def test_arrays_are_taken_as_lists() -> None:
    chosen = arguments_for(
        model_of("gpt2"), {"eos_token_id": np.array([3, 4]), "bad_words_ids": np.array([[5]])}
    )
    assert chosen.eos_token_id == [3, 4] and chosen.bad_words_ids == [[5]]


def test_special_tokens_out_of_range_name_the_file_that_they_come_from(checkpoints: dict[str, Path]) -> None:
    model = with_settings(checkpoints["t5, relu, tied"], {"decoder_start_token_id": VOCAB}, "config.json")
    with pytest.raises(
        ValueError, match=f"/config.json: decoder_start_token_id is {VOCAB}, expected a token"
    ):
        generate(model, IDS)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_head=1, n_layer=1, eos_token_id=-5))
    with pytest.raises(ValueError, match=r"config.json: eos_token_id holds -5, expected token ids from 0"):
        generate(model, IDS)
