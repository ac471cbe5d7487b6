"""python -m ftcore.course: starting, the board, one step, watching, wrong use."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path
from threading import Timer

import pytest

import ftcore.course
from ftcore.lessons.board import WIDTH
from ftcore.lessons.runner import ROOT, STEP_FILES, TEMPLATES, Result
from ftcore.output import INTERRUPTED
from tests.helpers.course_checks import SOLUTIONS, check_step, edited_solutions

Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "ftcore.course"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Status and output of the command, whose steps are checked in this process (see test_child.py)."""

    def check_steps(folder: Path, numbers: Sequence[int], time_limit: float = 0.0) -> list[Result]:
        return [check_step(folder, number) for number in numbers]

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = ftcore.course.main([*map(str, arguments)])
        except SystemExit as ending:
            status = int(ending.code or 0)
        return status, *capsys.readouterr()

    monkeypatch.setattr(ftcore.course, "run_steps", check_steps)
    return run


def solve(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(SOLUTIONS / name, folder / name)


def test_a_new_folder_is_all_to_do(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    status, out, err = run("--start", folder)
    assert (status, err) == (0, "") and f"python -m ftcore.course {folder}" in out
    assert {path.name for path in folder.iterdir()} == {"README.md", *STEP_FILES}
    status, out, err = run(folder)
    assert (status, err) == (0, "")
    assert out.startswith("Your own T5 and GPT-2: 0 of 14 steps done") and out.count("  to do  ") == 14
    assert f"Next: {folder}/step01_softmax.py:" in out


def test_the_first_wrong_step_is_shown_in_detail(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    run("--start", folder)
    solve(folder, "step01_softmax.py", "step02_attention.py", "step04_heads.py")
    wrong = (SOLUTIONS / "step03_masks.py").read_text(encoding="utf-8").replace("tril()", "tril(1)")
    (folder / "step03_masks.py").write_text(f'print("h\\x1bi")\n{wrong}', encoding="utf-8")
    status, out, _ = run(folder)
    assert status == 1 and "3 of 14 steps done" in out
    board, _, detail = out.partition("\nStep 3, masks: wrong\n")
    assert " 3  wrong  masks" in board and " 4  done   heads" in board and " 5  to do" in board
    assert "Likely mistake: A position sees the one after it too." in detail
    assert "Printed by step03_masks.py:\n  | h\\x1bi\n" in detail
    assert max(map(len, out.splitlines())) <= WIDTH

    status, out, _ = run(folder, "--step", 3)
    detail, _, _ = detail.partition("\nPrinted by step04_heads.py:")  # which imports step 3 again
    assert (status, out) == (1, f"Step 3, masks: wrong\n{detail}")
    assert run(folder, "--step", 2)[:2] == (0, "Step 2, attention: done\n")


def test_all_done(run: Run, tmp_path: Path) -> None:
    shutil.copytree(SOLUTIONS, tmp_path, dirs_exist_ok=True)
    status, out, err = run(tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("Your own T5 and GPT-2: 14 of 14 steps done\n") and out.count("  done   ") == 14
    notes = " ".join(out.split())
    assert (
        "weights of gpt2-mini continues 'Emotion: i': ' feel" in notes
        and "weights of t5-mini-qa answers: " in notes
    )
    assert out.splitlines()[-1].startswith("  Your GPT-2 and your T5 equal those of transformers")
    assert max(map(len, out.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("step", "edited", "old", "new", "first"),
    [
        (6, 6, "wte(input_ids) +", "wte(input_ids) * 4 +", "transformer.h.0.ln_1"),
        (10, 8, "* self.wi_1(hidden)", "+ self.wi_1(hidden)", "encoder.block.0.layer.1.DenseReluDense.wo"),
    ],
)
def test_table_of_a_wrong_module_fits(
    run: Run, step: int, edited: int, old: str, new: str, first: str, tmp_path: Path
) -> None:
    edited_solutions(tmp_path, edited, old, new)
    status, out, _ = run(tmp_path, "--step", step)
    assert status == 1 and f"first in {first}" in " ".join(out.split())
    assert re.search(rf"^{first} .* differs$", out, re.M)
    assert max(map(len, out.splitlines())) <= WIDTH


def test_a_file_that_hides_a_module_is_named(run: Run, tmp_path: Path) -> None:
    run("--start", tmp_path / "mine")
    (tmp_path / "mine" / "torch.py").write_text("raise SystemExit", encoding="utf-8")
    status, _, err = run(tmp_path / "mine", "--step", 1)
    assert status == 0 and "torch.py hides the module torch" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["step01_softmax.py", "notes.txt"])
def test_nothing_is_overwritten(run: Run, content: str, tmp_path: Path) -> None:
    (tmp_path / content).write_text("mine", encoding="utf-8")
    status, out, err = run("--start", tmp_path)
    assert (status, out) == (2, "") and err.count("\n") == 1 and "is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a folder to check or --start"),
        (["x", "--start", "y"], "give either a folder to check or --start"),
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--step", "15"], "--step is 15, expected from 1 to below 15"),
        ([".", "--stop"], "unknown argument '--stop', did you mean '--step'?"),
    ],
)
def test_wrong_use_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_watch_checks_again_when_a_file_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    ftcore.course.start(folder)
    command = [*COMMAND, str(folder), "--watch", "--step", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        give_up = Timer(90.0, watching.kill)
        give_up.start()
        assert watching.stdout.readline() == "Step 1, softmax: to do\n"
        time.sleep(1.0)
        assert watching.poll() is None
        solve(folder, "step01_softmax.py")
        while (line := watching.stdout.readline()) != "Step 1, softmax: done\n":
            assert line and "softmax: " not in line
        watching.send_signal(signal.SIGINT)  # Ctrl-C
        assert watching.wait() == 0
        give_up.cancel()
        assert watching.stderr.read() == ""


def test_ctrl_c_ends_a_check_without_a_traceback(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    text = f"open({str(runs)!r}, 'w').close()\nwhile True:\n    pass\n"
    (tmp_path / "step01_softmax.py").write_text(text, encoding="utf-8")
    command = [*COMMAND, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as checking:
        give_up = Timer(90.0, checking.kill)
        give_up.start()
        while not runs.exists() and checking.poll() is None:
            time.sleep(0.05)
        os.killpg(checking.pid, signal.SIGINT)  # as a terminal does, parent and child
        assert checking.communicate()[0] == ""
        give_up.cancel()
    assert checking.returncode == INTERRUPTED


def test_templates_are_package_data() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.package_data"]["ftcore.lessons"].split(", ")
    for name in ("README.md", *STEP_FILES):
        assert any(fnmatch(f"templates/{name}", pattern) for pattern in patterns), name


def test_every_template_is_a_file_to_fill_in() -> None:
    for file in STEP_FILES:
        text = (TEMPLATES / file).read_text(encoding="utf-8")
        assert text.startswith(f'"""Step {int(file[4:6])}: ') and "raise NotImplementedError" in text, file
        for part in ("# region Hint\n", "# Questions\n", "# region Answers\n"):
            assert text.count(part) == 1, (file, part)
        assert text.count("# region ") == text.count("# endregion") == 2
        assert file in (TEMPLATES / "README.md").read_text(encoding="utf-8")
