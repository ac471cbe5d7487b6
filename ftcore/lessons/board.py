"""What the course prints: the board, and one step in detail. At most 80 columns."""

import textwrap
from collections.abc import Iterator, Sequence

from ftcore.lessons.runner import DONE, ERROR, FINAL, TO_DO, WRONG, Result
from ftcore.output import printable

WIDTH = 80
MOST_LINES = 20  # of what a step prints


def board(results: Sequence[Result]) -> Iterator[str]:
    """A line for each step, what is worth knowing of those that are done, and the first wrong one."""
    done = sum(result.status == DONE for result in results)
    yield f"Your own T5 and GPT-2: {done} of {len(results)} steps done"
    yield ""
    for result in results:
        yield f"{result.number:2}  {result.status:5}  {result.name:17}  {result.title}"[:WIDTH]
    for note in dict.fromkeys(result.note for result in results if result.note):  # that of several steps once
        yield ""
        yield from _wrapped(note)
    bad = next((result for result in results if is_wrong(result)), None)
    to_do = next((result for result in results if result.status == TO_DO), None)
    if bad is not None:
        yield ""
        yield from details(bad)
    elif to_do is not None:
        yield ""
        yield f"Next: {place(to_do)}"
    for result in results:
        if result is not bad:
            yield from _printed(result)


def is_wrong(result: Result) -> bool:
    """Whether a check failed or stopped with an error."""
    return result.status in (WRONG, ERROR)


def details(result: Result) -> Iterator[str]:
    """The lines about one step."""
    heading = f"Step {result.number}, {result.name}" if result.number < FINAL else result.title
    yield f"{heading}: {result.status}"
    if result.file:
        yield f"  {place(result)}"
    if result.source:
        yield f"    {printable(result.source)}"[:WIDTH]
    yield from _wrapped(result.what)
    if result.report:
        yield ""
        for line in result.report.splitlines():
            yield from textwrap.wrap(line, WIDTH, subsequent_indent="    ", replace_whitespace=False)
    for cause in result.causes:
        yield ""
        yield from _wrapped(f"Likely mistake: {cause}")
    yield from _wrapped(result.note)
    yield from _printed(result)


def final(result: Result) -> Iterator[str]:
    """The last lines of the board, about both models against transformers'."""
    yield from _wrapped(result.note) if result.note else details(result)


def place(result: Result) -> str:
    """ "my-models/step01_softmax.py:12", which terminals and editors open at a click."""
    return f"{result.file}:{result.line}" if result.line else result.file


def _wrapped(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _printed(result: Result) -> Iterator[str]:
    lines = result.printed.splitlines()
    if lines:
        yield ""
        yield f"Printed by {result.step_file}:"
        yield from (f"  | {printable(line)}" for line in lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            yield f"  | ... ({len(lines) - MOST_LINES} more lines)"
