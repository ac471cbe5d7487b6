"""One-line errors, warnings, progress bars."""

import pytest

from ftcore.output import FAILED_RUN, cli_errors, progress_bar, warn
from tests.helpers.terminal import resize, terminal


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--lr is 3\n  too much"), "command: --lr is 3 too much"),
        (FileNotFoundError("no such file: x.json"), "command: no such file: x.json"),
        (
            FileNotFoundError(2, "No such file or directory", "x.json"),
            "command: x.json: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "command: No space left on device"),
        (ValueError("key \x1b[31m\u202e\x00"), r"command: key \x1b[31m\u202e\x00"),
        (ValueError("a" * 10**7 + "z"), "command: " + "a" * 600 + " ... " + "a" * 599 + "z"),
    ],
)
def test_one_line(capsys: pytest.CaptureFixture, error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as ending, cli_errors("command"):
        raise error
    assert ending.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line + "\n")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(KeyError), cli_errors("command"):
        raise KeyError("a bug")
    with pytest.raises(ValueError, match="a bug"), cli_errors("command", (FloatingPointError,), FAILED_RUN):
        raise ValueError("a bug")


def test_a_failed_run_has_its_own_status(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending, cli_errors("command", (FloatingPointError,), FAILED_RUN):
        raise FloatingPointError("the loss is nan")
    assert ending.value.code == 1
    assert capsys.readouterr().err == "command: the loss is nan\n"


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture) -> None:
    warn("3 sources are cut")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: 3 sources are cut\n")


def test_a_progress_bar_follows_the_width_of_the_window() -> None:
    with terminal(80) as stream, progress_bar(total=10, file=stream) as bar:
        assert 75 < len(str(bar)) <= 80
        resize(stream, 40)
        assert 35 < len(str(bar)) <= 40
