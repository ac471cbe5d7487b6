"""What is printed of the results."""

from dataclasses import replace

from ftcore.lessons.board import MOST_LINES, WIDTH, board, details
from ftcore.lessons.runner import DONE, ERROR, STEP_FILES, TO_DO, WRONG, Result

RESULTS = [Result(number, "a title " * 12, TO_DO) for number in range(1, len(STEP_FILES) + 1)]


def test_every_line_fits_also_of_long_results() -> None:
    words = "word " * 60
    long = Result(2, words, WRONG, words, words, [words, words], "d/step02_attention.py", 3, "x = 1 + " * 30)
    lines = [*board([RESULTS[0], long, *RESULTS[2:]]), *details(long), *details(replace(long, note=words))]
    assert max(map(len, lines)) <= WIDTH
    assert "d/step02_attention.py:3" in " ".join(lines)


def test_only_the_first_wrong_step_is_in_detail() -> None:
    results = [
        replace(RESULTS[0], status=DONE, note="It writes."),
        replace(RESULTS[1], status=ERROR, what="second"),
        replace(RESULTS[2], status=WRONG, what="third"),
        *RESULTS[3:],
    ]
    text = "\n".join(board(results))
    assert "It writes." in text and "Step 2, attention: error\n  second" in text
    assert "third" not in text and "Next: " not in text


def test_the_note_of_several_steps_is_printed_once() -> None:
    noted = [replace(result, status=DONE, note="Random weights.") for result in RESULTS[:2]]
    assert "\n".join(board([*noted, *RESULTS[2:]])).count("Random weights.") == 1


def test_what_every_step_prints_is_shown_in_part() -> None:
    results = [
        replace(RESULTS[0], status=DONE, printed="one\n"),
        replace(RESULTS[1], status=WRONG, printed="\x1b[2Jtwo"),
        replace(RESULTS[2], printed="\n".join(map(str, range(1000)))),
        *RESULTS[3:],
    ]
    text = "\n".join(board(results))
    assert text.count("Printed by ") == 3
    assert "Printed by step01_softmax.py:\n  | one" in text
    assert "Printed by step02_attention.py:\n  | \\x1b[2Jtwo" in text
    assert f"  | {MOST_LINES - 1}\n  | ... ({1000 - MOST_LINES} more lines)" in text


def test_no_empty_line_at_the_end() -> None:
    done = [replace(result, status=DONE) for result in RESULTS]
    assert list(board(done))[-1] and list(board(RESULTS))[-1].startswith("Next: ")
