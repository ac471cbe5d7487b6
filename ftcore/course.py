"""Write T5 and GPT-2 yourself, in steps that are checked: `python -m ftcore.course`."""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ftcore.cli import check_options, option, parse
from ftcore.lessons.board import board, details, final, is_wrong
from ftcore.lessons.runner import DONE, FINAL, FINAL_LIMIT, GPT2, STEP_FILES, T5, TEMPLATES, run_steps
from ftcore.output import INTERRUPTED, cli_errors, guard_output, warn

LAST = len(STEP_FILES)
HIDEABLE = {"torch", "ftcore", "numpy", *sys.stdlib_module_names}


@dataclass
class CourseOptions:
    """Write T5 and GPT-2 yourself, in 14 steps, each checked against ftcore.

    ftcore.course --start DIR writes the files to fill in; ftcore.course DIR checks them.
    Exit status 0: nothing is wrong (steps may be to do); 1: a step is wrong; 2: invalid options.
    """

    directory: str | None = option(None, "folder of your files: check them", metavar="DIR", positional=True)

    start: str | None = option(None, "write the files of all steps into a new folder", metavar="DIR")
    step: int | None = option(None, f"check one step only, 1 to {LAST}", at_least=1, below=LAST + 1)
    watch: bool = option(False, "check again whenever a file is saved, until Ctrl-C")

    def __post_init__(self) -> None:
        check_options(self)
        if (self.directory is None) == (self.start is None):
            raise ValueError("give either a folder to check or --start with a new folder")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(CourseOptions, argv, command="ftcore.course")
    with cli_errors("ftcore.course"):
        if options.start is not None:
            start(Path(options.start))
            return 0
        assert options.directory is not None
        folder = Path(options.directory)
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; {command('--start', folder)} makes it")
    try:
        return watch(folder, options.step) if options.watch else check(folder, options.step)
    except KeyboardInterrupt:
        return INTERRUPTED


def start(folder: Path) -> None:
    """Write the files of all steps into a new or empty folder.

    Raises:
        ValueError: the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} is not empty, and no file is overwritten: "
            f"{command(folder)} checks it, --start with another folder writes new files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", *STEP_FILES):
        shutil.copyfile(TEMPLATES / name, folder / name)
    print(f"{LAST} steps in {folder}: read README.md and step01_softmax.py, then run")
    print(command(folder))


def command(*arguments: object) -> str:
    """A command line of the course, for a shell."""
    return shlex.join(["python", "-m", "ftcore.course", *map(str, arguments)])


def check(folder: Path, step: int | None) -> int:
    """Check all steps or one, and print the board or the step; returns the exit status."""
    numbers = range(1, LAST + 1) if step is None else [step]
    results = list(run_steps(folder, numbers))
    print("\n".join(board(results) if step is None else details(results[0])), flush=True)
    if step is None and results[GPT2 - 1].status == results[T5 - 1].status == DONE:
        results += run_steps(folder, [FINAL], FINAL_LIMIT)
        print("\n" + "\n".join(final(results[-1])))
    for name in sorted(HIDEABLE.intersection(path.stem for path in folder.glob("*.py"))):
        warn(f"{folder / name}.py hides the module {name} from programs that run in this folder: rename it")
    return int(any(map(is_wrong, results)))


def watch(folder: Path, step: int | None) -> int:
    """Check again whenever a file changes, until Ctrl-C."""
    status = 0
    try:
        while True:
            seen = _saved(folder)
            status = check(folder, step)
            print(flush=True)
            while _saved(folder) == seen:
                time.sleep(0.3)
    except KeyboardInterrupt:
        return status


def _saved(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time and size of all files of the student."""
    saved = {}
    for path in folder.glob("*.py"):
        with suppress(FileNotFoundError):  # while an editor replaces it
            saved[path] = (path.stat().st_mtime_ns, path.stat().st_size)
    return saved


if __name__ == "__main__":
    guard_output("ftcore.course")
    sys.exit(main())
