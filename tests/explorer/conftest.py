"""Tiny checkpoints and a browser for the tests of the explorer."""

import os
import shutil
from pathlib import Path
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


@pytest.fixture(scope="module")
def browser():
    """Chromium; the tests are skipped without it or Playwright.

    Closed after each module: Playwright's event loop runs as long, and other tests start their own.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; it comes with the extra test"
    )
    with playwright.sync_playwright() as driver:
        names = ("chromium", "chromium-browser", "google-chrome")
        path = next(filter(None, map(shutil.which, names)), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip(f"no Chromium: looked for {', '.join(names)} and for Playwright's own")
        # Chromium refuses to run as root with its sandbox.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        with driver.chromium.launch(executable_path=path, args=arguments) as chromium:
            yield chromium
