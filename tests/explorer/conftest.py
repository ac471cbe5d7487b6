"""Tiny checkpoints for the tests of the explorer."""

from types import SimpleNamespace

import pytest

from ftcore import load_model, load_tokenizer
from tests.helpers import tiny_checkpoints as tiny


@pytest.fixture(scope="session")
def gpt2_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def t5_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_t5(tmp_path_factory.mktemp("byt5"))


@pytest.fixture(scope="session", params=["gpt2", "t5"])
def family(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A tiny model with its tokenizer and two texts of the same length."""
    directory = request.getfixturevalue(f"{request.param}_directory")
    texts = {"gpt2": (tiny.GPT2_TEXT, tiny.GPT2_OTHER), "t5": (tiny.T5_TEXT, tiny.T5_OTHER)}[request.param]
    return SimpleNamespace(
        name=request.param,
        directory=directory,
        model=load_model(directory),
        tokenizer=load_tokenizer(directory),
        text=texts[0],
        other=texts[1],
    )
