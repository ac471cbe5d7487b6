"""`python -m ftcore` and the script `ftcore`: the list of commands, and running one by its name."""

import subprocess
import sys

import pytest

from ftcore.__main__ import find_commands, main
from tests.test_architecture import COMMANDS


def test_every_command_is_listed_with_its_purpose(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ftcore"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert listed.keys() == find_commands().keys() == {path.stem for path in COMMANDS}
    assert all(listed.values())
    assert all(len(line) <= 90 and "python -m" not in line for line in lines[1:])


@pytest.mark.parametrize("name", sorted(path.stem for path in COMMANDS))
def test_a_command_runs_by_its_name(name: str) -> None:
    run = [sys.executable, "-m", "ftcore", name]
    done = subprocess.run([*run, "--nonsense"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ftcore.{name}: unknown argument '--nonsense'")


def test_an_unknown_command_is_refused(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ftcore", "generat", "--prompt", "x"])
    assert main() == 2
    assert capsys.readouterr().err == "ftcore: no command 'generat', did you mean 'generate'?\n"


def test_the_list_imports_no_torch() -> None:
    code = "import sys, ftcore.__main__ as module; module.find_commands(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n"
