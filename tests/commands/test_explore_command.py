"""python -m ftcore.explore: a page of any checkpoint, and one-line errors."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch

from ftcore import load_model, save_model
from ftcore.explore import main
from tests.helpers import tiny_checkpoints as tiny

SHORT = ["--max-new-tokens", "2", "--num-beams", "2"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_t5(tmp_path_factory.mktemp("byt5"))


def content(page: Path) -> dict:
    return json.loads(re.search(r'id="content">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[1])


def test_the_default_page_shows_the_embedded_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(SHORT) == 0
    assert capsys.readouterr().out.startswith("page  explore.html (")
    page = content(tmp_path / "explore.html")
    assert page["model"]["name"].endswith("weights/t5-mini-qa")
    assert page["head_ablations"]["answers"] and page["activation_patches"]["answers"]


def test_the_default_model_without_a_clone_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ftcore.explore.CLONE", tmp_path)
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    line = "ftcore.explore: weights/t5-mini-qa, the default of --model, is not here: it comes with a clone"
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(line)


def test_a_question_is_formatted_as_in_training(t5, tmp_path):
    page = tmp_path / "page.html"
    options = ["--context", "Ada sews.", "--question", "Who?", "--other", "Bea sews."]
    assert main(["--model", t5, *options, "--out", str(page), *SHORT]) == 0
    assert content(page)["recording"]["text"] == "question: Who? context: Ada sews."
    assert content(page)["other"]["text"] == "question: Who? context: Bea sews."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", "c"], "--context and --question go together"),
        (["--prompt", "p", "--context", "c", "--question", "q"], "not both"),
        (["--model", "m"], "--model needs a text"),
        (["--serve", "--out", "page.html"], "not both"),
        (["--port", "8000"], "--port needs --serve"),
        (["--serve", "--port", "99999"], "--port is 99999"),
        (["--num-beams", "1"], "--num-beams is 1, expected from 2"),
        (["--num-beams", "100000"], "--num-beams is 100000, expected from 2"),
        (["--max-new-tokens", "100000"], "--max-new-tokens is 100000"),
        (["--temperature", "1e-45"], "--temperature is 1e-45"),
        (["--seed", str(2**70)], f"--seed is {2**70}"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (["--model", "nowhere", "--prompt", "p"], "nowhere"),
        (["--out", "nowhere/page.html"], "its directory does not exist"),
        (["--device", "abacus"], "--device is 'abacus'"),
    ],
)
def test_an_invalid_option_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_too_long_text_is_refused(tmp_path, capsys):
    directory, page = tiny.save_gpt2(tmp_path, n_positions=8), tmp_path / "page.html"
    with pytest.raises(SystemExit) as end:
        main(["--model", directory, "--prompt", "more than eight", "--out", str(page), *SHORT])
    assert end.value.code == 2
    assert "the text has 15 tokens, expected at most 6 and 2 new ones" in capsys.readouterr().err
    assert not page.exists()


def test_a_port_in_use_is_named(t5, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["--model", t5, "--prompt", "p", "--serve", "--port", str(taken.getsockname()[1]), *SHORT])
    assert "(0 takes any free port)" in capsys.readouterr().err


def test_nan_weights_are_named(tmp_path, capsys):
    directory, page = tiny.save_gpt2(tmp_path), tmp_path / "page.html"
    model = load_model(directory)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    save_model(model, directory)
    with pytest.raises(SystemExit) as end:
        main(["--model", directory, "--prompt", "Ada", "--out", str(page), *SHORT])
    error = capsys.readouterr().err
    assert end.value.code == 1 and "transformer.ln_f.weight holds NaN" in error and error.count("\n") == 1
    assert not page.exists()
