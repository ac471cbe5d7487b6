"""The commands: `python -m ftcore` lists them; `python -m ftcore NAME ...` and `ftcore NAME ...` run one."""

import ast
import runpy
import sys
from pathlib import Path

from ftcore.output import WRONG_INPUT, did_you_mean, guard_output

NO_COMMANDS = (
    "__init__",
    "__main__",
    "cli",
    "figures",
    "metrics",
    "output",
)  # the other modules of this folder


def find_commands() -> dict[str, str]:
    """What each command does, by name: the beginning of its module's docstring. Imports none of them."""
    modules = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in NO_COMMANDS]
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in modules}
    return {name: (text or "").partition(": `python -m")[0] for name, text in docstrings.items()}


def main() -> int:
    """Run the command that the first argument names, or list all of them."""
    commands = find_commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in commands:
        del sys.argv[1]
        runpy.run_module(f"ftcore.{name}", run_name="__main__", alter_sys=True)
        return 0  # a command that returns a status has raised SystemExit
    guard_output("ftcore")
    if name not in ("--help", "-h"):
        print(f"ftcore: no command {name!r}{did_you_mean(name, commands)}", file=sys.stderr)
        return WRONG_INPUT
    print("usage: python -m ftcore.NAME [options], or ftcore NAME [options]; --help lists the options\n")
    for name, purpose in commands.items():
        print(f"  {name:10}{purpose}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
