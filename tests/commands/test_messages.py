"""Messages of the library name arguments, those of a command options; printed commands are quoted."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import ftcore.train
from ftcore.output import cli_errors
from ftcore.training.launch import start_command
from tests.helpers import tiny_runs

PACKAGE = Path(__file__).resolve().parents[2] / "ftcore"
COMMANDS = ("bench", "compare", "course", "evaluate", "explore", "generate", "train", "tune")


def trees(pattern: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.glob(pattern)):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def literals(node: ast.AST) -> Iterator[str]:
    """The string literals inside a node, also of f-strings."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def library_messages() -> Iterator[tuple[str, str]]:
    """(file:line, literal) of every error that the library raises."""
    for name, tree in trees("*/**/*.py"):
        if name != "training/options.py":
            for node in ast.walk(tree):
                if isinstance(node, ast.Raise):
                    yield from ((f"{name}:{node.lineno}", text) for text in literals(node))


def option_names() -> set[str]:
    names = set()
    for command in COMMANDS:
        if (PACKAGE / f"{command}.py").exists():
            module = importlib.import_module(f"ftcore.{command}")
            names |= {
                field.name for kind in vars(module).values() if is_dataclass(kind) for field in fields(kind)
            }
    return names


def test_errors_of_the_library_name_arguments_not_options() -> None:
    found = [
        (where, text)
        for where, text in library_messages()
        if re.search(r"(?<!\w)--(?!nproc-per-node)[a-z]", text) and "-m ftcore." not in text
    ]
    assert not found  # write `batch_size`; `cli_errors` makes it --batch-size


def test_names_in_backticks_are_options() -> None:
    """`cli_errors` turns every such name into an option."""
    names = option_names()
    named = [(where, name) for where, text in library_messages() for name in re.findall(r"`(\w+)`", text)]
    assert named and not [pair for pair in named if pair[1] not in names]


def test_a_command_turns_arguments_into_options(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), cli_errors("ftcore.train"):
        raise ValueError("`max_source_length` is 3: run `git lfs pull`")
    assert capsys.readouterr().err == "ftcore.train: --max-source-length is 3: run `git lfs pull`\n"


def test_no_command_is_printed_without_quoting() -> None:
    """Values in an f-string with a command would not be quoted: shlex.join quotes them."""
    found = [
        f"{name}:{node.lineno}"
        for name, tree in trees("**/*.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and any(isinstance(part, ast.FormattedValue) for part in node.values)
        if any(re.search(r"-m ftcore\.\w+ .*--", text, re.S) for text in literals(node))
        if not any("torchrun --nproc-per-node 2" in text for text in literals(node))  # a literal is inserted
    ]
    assert not found


def test_printed_commands_run_in_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, data = tmp_path / "it's $HOME & more", tiny_runs.questions(tmp_path / "qa.jsonl", 8)
    paths = ["--model", str(tiny_runs.tiny_t5(tmp_path / "t5")), "--train", str(data), "--output", str(run)]
    options = ["--max-steps", "1", "--eval-answers", "0", "--max-target-length", "20"]
    assert ftcore.train.main([*paths, *options]) == 0
    [command] = re.findall("^try them +(.*)$", capsys.readouterr().out, re.M)
    words = shlex.split(command)
    assert words[words.index("--model") + 1] == str(run / "best")
    for strategy in (None, "ddp"):
        words = shlex.split(start_command(strategy, "--output", str(run), "--resume"))
        assert words[-3:] == ["--output", str(run), "--resume"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("rows.jsonl", "no key 'question' .* The task is qa, the default: --task names another"),
        ("a.csv,b.csv", "no such file: a.csv,b.csv; separate several files by spaces"),
    ],
)
def test_a_training_file_of_another_task_or_a_list_with_commas(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    train: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_runs.write_lines(tmp_path / "rows.jsonl", [{"text": "i feel fine", "label": "joy"}])
    with pytest.raises(SystemExit):
        ftcore.train.main(["--model", str(tiny_runs.tiny_t5(tmp_path / "t5")), "--train", train])
    assert re.search(f"{message}$", capsys.readouterr().err.strip())
