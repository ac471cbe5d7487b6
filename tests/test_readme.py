"""The documentation is true: links resolve, the file tree is complete, commands and code run."""

import importlib
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ftcore import load_model, load_tokenizer, save_model
from ftcore.benchmark.cases import SHAPES
from ftcore.cli import parse
from ftcore.lora.adapter import save_adapter
from ftcore.lora.lora import add_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from tests.helpers.small_clone import small_data

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
LAYOUT = ROOT / "docs" / "layout.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]

# Their commands read data sets that are not part of the project; they are parsed, and run by hand.
NOT_RUN = {ROOT / "docs" / "real_data.md", ROOT / "docs" / "published_checkpoints.md"}
# tests/examples/test_tutorials.py runs these.
LESSONS = {"examples/t5_question_answering.py", "examples/gpt2_emotion.py"}

INSTALL = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e"
TRAIN_COMMAND = f'{INSTALL} ".[plot]" && .venv/bin/python -m ftcore.train'
TEST_COMMAND = f'{INSTALL} ".[test]" && .venv/bin/python -m pytest'


class Block(NamedTuple):
    language: str
    file: str | None  # name of the file, from a line such as "`pairs.csv`:" before the block
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document."""
    fenced = re.compile(
        r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
    )
    for match in fenced.finditer(document.read_text(encoding="utf-8")):
        yield Block(match["language"], match["file"], match["text"])


def command_lines(block: Block) -> list[list[str]]:
    """The command lines of a block, split into words, without installation and linters."""
    lines = block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else []
    return [
        shlex.split(line, comments=True) for line in lines if re.match(r"python (-m ftcore|examples)", line)
    ]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------- its statements


def test_the_two_commands_stand_alone_in_their_blocks():
    lines = [block.text.strip() for block in blocks(README) if block.text.startswith("python3")]
    assert lines == [TRAIN_COMMAND, TEST_COMMAND]


def test_the_book_lists_its_pages():
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in contents} == set()


def test_the_file_tree_is_complete():
    (tree,) = [block.text for block in blocks(LAYOUT) if block.text.startswith("ftcore/\n")]
    described, folders = set(), [""]
    for line in tree.splitlines():
        indent, name, description = re.fullmatch(r"((?:  )*)(\S+) *(.*)", line).groups()
        folders[len(indent) // 2 + 1 :] = []
        path = folders[-1] + name
        assert path not in described, f"{path} twice"
        assert description or name.endswith("/"), f"{path} is not described"
        described.add(path)
        folders.append(path)
    assert described == existing()


def existing() -> set[str]:
    """All of ftcore/, and the direct contents of examples/, weights/ and docs/; folders with a slash."""
    paths = list((ROOT / "ftcore").rglob("*"))
    for folder in ("examples", "weights", "docs"):
        paths += (ROOT / folder).glob("*")
    paths += [ROOT / folder for folder in ("ftcore", "examples", "weights", "docs")]
    kept = [path for path in paths if "__pycache__" not in path.parts]
    return {name_of(path) + "/" * path.is_dir() for path in kept}


# ------------------------------------------------------------------------------------------- its commands

ALL_COMMANDS = [
    pytest.param(words, id=f"{name_of(document)}-{number}")
    for document in DOCUMENTS
    for number, words in enumerate(words for block in blocks(document) for words in command_lines(block))
    if words[1] == "-m"
]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_options_of_commands_exist(words):
    name = words[2].removeprefix("ftcore.")
    command = importlib.import_module(f"ftcore.{name}")
    parse(getattr(command, f"{name.capitalize()}Options"), words[3:], command=words[2])


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small stand-in for the clone, as the working directory.

    The data sets are cut to a few records. The weights are random, tiny, with the real tokenizers; there are
    copies under the hub names that documents use.
    """
    small_data(tmp_path, paragraphs=2, lines=8)
    shutil.copytree(ROOT / "examples" / "configs", tmp_path / "examples" / "configs")
    for name in ("weights/t5-mini", "google-t5/t5-small", "google/flan-t5-base"):
        save_tiny_t5(tmp_path / name)
    save_tiny_adapter(tmp_path / "weights/t5-mini-qa", base=tmp_path / "weights/t5-mini")
    for name in ("weights/gpt2-mini", "openai-community/gpt2"):
        save_tiny_gpt2(tmp_path / name)
    for name, shape in SHAPES.items():
        monkeypatch.setitem(SHAPES, name, shape | (TINY_GPT2 if shape["model_type"] == "gpt2" else TINY_T5))
    # The other backends take seconds to start; tests/benchmark/ runs them.
    monkeypatch.setattr("ftcore.bench.installed_backends", lambda **_: ["ftcore"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ftcore.training.run_files.CLONE", tmp_path)
    return tmp_path


TINY_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
TINY_GPT2 = {"n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}


def save_tiny_t5(directory: Path) -> None:
    copy_tokenizer(ROOT / "weights" / "t5-mini", directory)
    vocab_size = load_tokenizer(directory).vocab_size
    config = T5Config(vocab_size=vocab_size, decoder_start_token_id=0, **TINY_T5)
    save_model(T5ForConditionalGeneration(config), directory)


def save_tiny_adapter(directory: Path, base: Path) -> None:
    model = load_model(base)
    add_lora(model, rank=2)
    save_adapter(model, directory, base_model=str(base))


def save_tiny_gpt2(directory: Path) -> None:
    copy_tokenizer(ROOT / "weights" / "gpt2-mini", directory)
    tokenizer = load_tokenizer(directory)
    ids = {"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.bos_id}
    config = GPT2Config(vocab_size=tokenizer.vocab_size, **ids, **TINY_GPT2)
    save_model(GPT2LMHeadModel(config), directory)


def copy_tokenizer(source: Path, directory: Path) -> None:
    directory.mkdir(parents=True)
    for file in ("spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if (source / file).exists():
            shutil.copy(source / file, directory)


# Options that make a command short enough for a test; of two equal options the last one counts.
BRIEF = ["--max-target-length", "16", "--device", "cpu"]
SHORT = {
    "tune": ["--trials", "2", "--max-steps", "2", "--eval-every", "1", "--eval-answers", "2", *BRIEF],
    "train": ["--max-steps", "2", "--eval-every", "2", "--eval-answers", "2", *BRIEF],
    "evaluate": ["--limit", "4", *BRIEF],
    "generate": [],
    "compare": ["--length", "8"],
    "explore": ["--max-new-tokens", "2", "--num-beams", "2"],
    "course": [],
    "bench": ["--rows", "load", "--quick", "--runs", "1", "--threads", "1"],
}


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in NOT_RUN], ids=name_of)
def test_a_document_runs_from_top_to_bottom(document, clone, monkeypatch):
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks(document):
        if block.file:
            (clone / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, name_of(document), "exec"), names)
        for words in command_lines(block):
            run_command(words, monkeypatch)


def run_command(words: list[str], monkeypatch) -> None:
    if words[1] == "-m":
        name = words[2].removeprefix("ftcore.")
        if name == "compare":
            pytest.importorskip("transformers")
        status = importlib.import_module(f"ftcore.{name}").main([*words[3:], *SHORT[name]])
        assert not status, shlex.join(words)
    elif words[1] not in LESSONS:
        monkeypatch.setattr("sys.argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
