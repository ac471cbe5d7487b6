"""python -m ftcore.explore: a page of any checkpoint, and one line for every mistake."""

import json
import re
from pathlib import Path

import pytest

from ftcore.explore import main
from tests.helpers import tiny_checkpoints as tiny

BRIEF = ["--max-new-tokens", "2", "--num-beams", "2"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_t5(tmp_path_factory.mktemp("byt5"))


def content(page: Path) -> dict:
    return json.loads(re.search(r'id="content">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[1])


def test_without_options_there_is_a_page_of_the_shipped_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(BRIEF) == 0
    assert capsys.readouterr().out.startswith("page  explore.html (")
    found = content(tmp_path / "explore.html")
    assert found["model"]["name"].endswith("weights/t5-mini-qa")
    assert found["knock_outs"]["answers"] and found["transplants"]["answers"]


def test_a_question_is_asked_as_in_training(t5, tmp_path):
    page = tmp_path / "page.html"
    asked = ["--context", "Ada sews.", "--question", "Who?", "--other", "Bea sews."]
    assert main(["--model", t5, *asked, "--out", str(page), *BRIEF]) == 0
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
        (["--num-beams", "1"], "--num-beams is 1, expected at least 2"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (["--model", "nowhere", "--prompt", "p"], "nowhere"),
        (["--out", "nowhere/page.html"], "its directory does not exist"),
        (["--device", "abacus"], "--device is 'abacus'"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_long_is_refused(tmp_path, capsys):
    directory = tiny.save_gpt2(tmp_path, n_positions=8)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "--model",
                directory,
                "--prompt",
                "more than eight",
                "--out",
                str(tmp_path / "page.html"),
                *BRIEF,
            ]
        )
    assert end.value.code == 2
    assert "the text has 15 tokens, expected at most 6 and 2 new ones" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_port_that_is_taken_is_named(t5, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["--model", t5, "--prompt", "p", "--serve", "--port", str(taken.getsockname()[1]), *BRIEF])
    assert "(0 takes one that is free)" in capsys.readouterr().err
