"""What the course prints: the board, and one step in detail. At most 80 columns."""

import textwrap
from collections.abc import Iterator, Sequence

from ftcore.cli import printable
from ftcore.lessons.runner import DONE, ERROR, STEP_FILES, TO_DO, WRONG, Result

WIDTH = 80
MOST_LINES = 20  # of what a step prints


def board(results: Sequence[Result]) -> str:
    """A line for each step, and the first that is wrong in detail."""
    done = sum(result.status == DONE for result in results)
    lines = [f"Your own T5 and GPT-2: {done} of {len(results)} steps done", ""]
    lines += [f"{r.number:2}  {r.status:5}  {r.name:17}  {r.title}"[:WIDTH] for r in results]
    if first := first_wrong(results):
        lines += ["", *details(first)]
    elif next_step := next((r for r in results if r.status == TO_DO), None):
        lines += ["", f"Next: {STEP_FILES[next_step.number - 1]}"]
    return "\n".join(lines)


def first_wrong(results: Sequence[Result]) -> Result | None:
    return next((result for result in results if result.status in (WRONG, ERROR)), None)


def details(result: Result) -> Iterator[str]:
    """The lines about one step."""
    yield f"Step {result.number}, {result.name}: {result.status}"
    if result.line:
        yield f"  {result.file}, line {result.line}: {printable(result.source)}"
    yield from _wrapped(result.what)
    if result.report:
        yield ""
        yield from (f"  {line}" for line in result.report.splitlines())
    for cause in result.causes:
        yield ""
        yield from _wrapped(f"Likely mistake: {cause}")
    yield from _wrapped(result.note)
    yield from _printed(result)


def _wrapped(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _printed(result: Result) -> Iterator[str]:
    lines = result.printed.splitlines()
    if lines:
        yield ""
        yield f"Printed by {STEP_FILES[result.number - 1]}:"
        yield from (f"  | {printable(line)}" for line in lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            yield f"  | ... ({len(lines) - MOST_LINES} more lines)"
