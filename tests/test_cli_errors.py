"""Errors of a command: one line on standard error and an exit status."""

import pytest

from ftcore.cli import FAILED_RUN, clear_errors, warn


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--lr is 3\n  too much"), "door: --lr is 3 too much"),
        (FileNotFoundError("no such file: x.json"), "door: no such file: x.json"),
        (
            FileNotFoundError(2, "No such file or directory", "x.json"),
            "door: x.json: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "door: No space left on device"),
    ],
)
def test_one_line(capsys: pytest.CaptureFixture, error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as ending, clear_errors("door"):
        raise error
    assert ending.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line + "\n")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(KeyError), clear_errors("door"):
        raise KeyError("a bug")
    with pytest.raises(ValueError, match="a bug"), clear_errors("door", (FloatingPointError,), FAILED_RUN):
        raise ValueError("a bug")


def test_a_failed_run_has_its_own_status(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending, clear_errors("door", (FloatingPointError,), FAILED_RUN):
        raise FloatingPointError("the loss is nan")
    assert ending.value.code == 1
    assert capsys.readouterr().err == "door: the loss is nan\n"


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture) -> None:
    warn("3 sources are cut")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: 3 sources are cut\n")
