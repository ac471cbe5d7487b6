"""Command-line options, one-line errors, console output. Does not import torch, so `--help` is fast.

A command's options are one dataclass, in which every option is one record:

    @dataclass
    class Options:
        train: str = option(REQUIRED, "file to train on", group="Data", metavar="FILE")
        batch_size: int = option(8, "examples per step", at_least=1)
        precision: Literal["fp32", "bf16"] = option("fp32", "number format of the computation")
        freeze: list[str] | None = option(None, "names of modules", metavar="NAME")
        resume: bool = option(False, "continue the run in --output")

becomes `--train FILE --batch-size N --precision {fp32,bf16} --freeze NAME [NAME ...] --resume`.
"""

import argparse
import atexit
import dataclasses
import difflib
import inspect
import io
import math
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal, NoReturn, TypeVar

from ftcore.checkpoints.files import read_json

# Threads that wait for each other soon sleep. By default libgomp, which runs torch's CPU threads, lets them
# spin 30 times as long: beside busy processes, a training step then takes many seconds. Read by import torch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

Options = TypeVar("Options")

REQUIRED: Any = dataclasses.MISSING


def option(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    metavar: str | None = None,
    at_least: float | None = None,
    below: float | None = None,
    resumable: bool = False,
    searchable: bool | Literal["log"] = False,
    positional: bool = False,
) -> Any:
    """A dataclass field that is a command-line option. Its type is the field's annotation.

    Args:
        default: REQUIRED where there is none.
        help: one text for --help; the default is appended.
        group: heading in --help; holds for the options after it, up to the next one with a heading.
        metavar: placeholder of the value in --help.
        at_least, below: bounds, checked by `check_bounds`.
        resumable: whether a resumed run may change it.
        searchable: whether ftcore.tune may vary it; "log" draws a range on a logarithmic scale.
        positional: given without its name; it may be left out.
    """
    metadata = {
        "help": help,
        "group": group,
        "metavar": metavar,
        "at_least": at_least,
        "below": below,
        "resumable": resumable,
        "searchable": searchable,
        "positional": positional,
    }
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`"""
    return "--" + name.replace("_", "-")


def check_bounds(options: Any) -> None:
    """Raise ValueError naming the first option out of its bounds; NaN and infinity always are.

    So are integers of more than 64 bits, which torch does not take.
    """
    for field in dataclasses.fields(options):
        value, low = getattr(options, field.name), field.metadata.get("at_least")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{flag(field.name)} is {shown(value)}, expected an integer of at most 64 bits")
        below = field.metadata.get("below") or math.inf
        if low is not None and value is not None and not low <= value < below:
            expected = f"at least {low}" if below == math.inf else f"from {low} to below {below}"
            raise ValueError(f"{flag(field.name)} is {value}, expected {expected}")


def check_resumed(kind: type, saved: Mapping[str, Any], options: Any, what: str) -> None:
    """Raise ValueError naming the first changed option that a resumed run may not change.

    Args:
        kind: the dataclass of the options.
        what: subject of the message, such as "runs/qa: the run".
    """
    for field in _fields(kind):
        then, now = saved[field.name], getattr(options, field.name)
        if now != then and not field.metadata["resumable"]:
            with_then, with_now = _as_flag(field.name, then), _as_flag(field.name, now)
            raise ValueError(f"{what} was started {with_then}, it cannot continue {with_now}")


def _as_flag(name: str, value: Any) -> str:
    """ "with --lr 0.1", "without --fast" """
    if value is None or value is False:
        return f"without {flag(name)}"
    values = value if isinstance(value, list) else [] if value is True else [value]
    return " ".join(["with", flag(name), *map(str, values)])


def parse(options: type[Options], argv: Sequence[str] | None = None, *, command: str) -> Options:
    """Read the command line into an instance of the dataclass `options`; its docstring heads the help.

    `--config FILE.json` gives values by field name, which the command line overrides; not where `options`
    has a field of that name. Exits with status 2 and one line where something is unknown, missing or of the
    wrong type, or where the dataclass itself (its `__post_init__`) raises ValueError.
    """
    parser = _parser(options, command)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [name for action in parser._actions for name in action.option_strings]
        parser.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].split('=')[0], flags)}")
    from_line = vars(given)
    config = from_line.pop("config", None) if _takes_config_file(options) else None
    try:
        values = (_read_config(options, Path(config)) if config else {}) | from_line
        for field in _fields(options):
            if field.name not in values and field.default is REQUIRED:
                raise ValueError(f"{flag(field.name)} is missing")
        return options(**values)
    except ValueError as error:
        message = _as_options(str(error))
        named = {name.replace("-", "_") for name in re.findall("--([a-z-]+)", message)}
        if config and named - from_line.keys() and not message.startswith(f"{config}: "):
            message = f"{config}: {message}"
        parser.error(message)


def to_argv(options: Any) -> list[str]:
    """The command line that `parse` reads back as these options; defaults are left out."""
    words: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name) if value else flag(field.name).replace("--", "--no-", 1))
        else:
            words += [flag(field.name), *map(str, value if isinstance(value, list) else [value])]
    return words


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {printable(message)} (--help lists the options)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if is_main_process():
            super()._print_message(message, file)


def _fields(options: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(options)


def _parser(options: type, command: str) -> _Parser:
    parser = _Parser(
        prog=command,
        description=inspect.getdoc(options),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that only what was given overrides --config
        allow_abbrev=False,
    )
    types_of = typing.get_type_hints(options)
    group: Any = parser
    for field in _fields(options):
        if title := field.metadata["group"]:
            group = parser.add_argument_group(title)
        arguments = _argument(types_of[field.name], field)
        if field.metadata["positional"]:
            group.add_argument(field.name, nargs="?", **arguments)
        else:
            group.add_argument(flag(field.name), **arguments)
    if _takes_config_file(options):
        parser.add_argument("--config", metavar="FILE", help="JSON file of options, as a run saves them")
    return parser


def _takes_config_file(options: type) -> bool:
    """False if the command has its own --config."""
    return "config" not in {field.name for field in _fields(options)}


def _argument(annotation: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Keyword arguments of `add_argument` for a field."""
    kinds = [kind for kind in _alternatives(annotation) if kind is not type(None)]
    text, default = field.metadata["help"].replace("%", "%%"), field.default
    if annotation is bool:
        return {"action": "store_true", "help": text}
    if kinds == [bool]:  # or None by default
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if default is not REQUIRED and default is not None:
        text += f" (default: {default})"
    if typing.get_origin(kinds[0]) is Literal:
        return {"choices": list(typing.get_args(kinds[0])), "help": text}
    metavar = field.metadata["metavar"]
    if typing.get_origin(kinds[0]) is list:  # --friends A B, or --friends A --friends B
        return {"nargs": "+", "action": "extend", "metavar": metavar or "TEXT", "help": text}
    if int in kinds and float in kinds:
        return {"type": _number, "metavar": metavar or "N|X", "help": text}
    return {
        "type": kinds[0],
        "metavar": metavar or {int: "N", float: "X"}.get(kinds[0], "TEXT"),
        "help": text,
    }


def _alternatives(annotation: Any) -> list[Any]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return list(typing.get_args(annotation)) if is_union else [annotation]


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


_number.__name__ = "number"  # argparse puts it into its error message


def _read_config(options: type, path: Path) -> dict[str, Any]:
    """Read field values from a JSON file.

    Raises:
        ValueError: not JSON, an unknown key or a value of the wrong type; the message names file and key.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise ValueError(one_line(error)) from None
    types_of = typing.get_type_hints(options)
    for key, value in values.items():
        if key not in types_of:
            raise ValueError(f"{path}: unknown option {shown(key)}{did_you_mean(key, types_of)}")
        if not fits(value, types_of[key]):
            raise ValueError(f"{path}: {key} is {shown(value)}, which does not fit {flag(key)}")
    return values


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value from a file has the type of a dataclass field; an int fits a float."""
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return True
        elif typing.get_origin(kind) is list:
            if isinstance(value, list) and all(fits(item, *typing.get_args(kind)) for item in value):
                return True
        elif isinstance(value, bool):
            if kind is bool:
                return True
        elif isinstance(value, kind) or (kind is float and isinstance(value, int)):
            return True
    return False


# Errors and output

WRONG_INPUT = 2  # exit status: invalid options or input
FAILED_RUN = 1  # exit status: the command started and failed
INTERRUPTED = 130  # exit status after Ctrl-C, the shells' convention
BROKEN_PIPE = 141  # exit status where the reader of a pipe has ended, the shells' convention

LONGEST_MESSAGE = 1200  # characters of an error or a warning


def is_main_process() -> bool:
    """False on the ranks above 0 that torchrun starts, which print nothing."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


@contextmanager
def cli_errors(
    command: str,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
    status: int = WRONG_INPUT,
) -> Iterator[None]:
    """Turn errors of these kinds into `command: message` on standard error and this exit status.

    The default kinds are what the library raises for wrong input: use it around reading options, files and
    checkpoints. Elsewhere a ValueError is a bug and keeps its traceback.

    The library names its arguments in backticks, and here they become options: `batch_size` -> --batch-size.
    """
    try:
        yield
    except kinds as error:
        if is_main_process():
            print(f"{command}: {_as_options(one_line(error))}", file=sys.stderr)
        raise SystemExit(status) from None


def _as_options(message: str) -> str:
    return re.sub(r"`(\w+)`", lambda name: flag(name[1]), message)


def one_line(error: BaseException) -> str:
    """An error's message as one printable line; the class name where there is no message."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return printable(" ".join(text.split())) or type(error).__name__


def printable(text: str) -> str:
    """A line with control characters escaped, so that a file cannot control the terminal, and cut if long."""
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    if is_main_process():
        print(f"warning: {printable(message)}", file=sys.stderr)


def log(line: str) -> None:
    """Print a line to standard output, above a progress bar."""
    from tqdm import tqdm

    if is_main_process():
        tqdm.write(line, file=sys.stdout)


def progress_bar(*arguments: Any, **settings: Any) -> Any:
    """Make tqdm's progress bar: a widget in a notebook with ipywidgets, else text as wide as the window."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets: text will do
        from tqdm.auto import tqdm

    ipython = sys.modules.get("IPython")
    if ipython and ipython.get_ipython():  # notebooks show standard error in red
        settings.setdefault("file", sys.stdout)
    return tqdm(*arguments, dynamic_ncols=True, **settings)


class _GuardedOutput(io.RawIOBase):
    """The bytes of a standard stream: after the first error of a write, they are dropped.

    Args:
        command: ended by the error, where standard output is its result; else None.
    """

    def __init__(self, raw: io.RawIOBase, command: str | None) -> None:
        self._raw, self._command, self._failed = raw, command, False

    def write(self, data: Any) -> int | None:
        if not self._failed:
            try:
                return self._raw.write(data)
            except OSError as error:
                self._failed = True
                if self._command:
                    self._end(self._command, error)
        return len(data)

    def _end(self, command: str, error: OSError) -> NoReturn:
        if isinstance(error, BrokenPipeError):  # the reader has seen enough, as in `| head`
            raise SystemExit(BROKEN_PIPE)
        print(f"{command}: standard output: {one_line(error)}", file=sys.stderr)
        raise SystemExit(FAILED_RUN)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()


def guard_output(command: str | None = None) -> None:
    """Let no print raise, whatever standard output and standard error are connected to.

    Characters missing in the encoding are escaped. Once a write fails (closed pipe, full disk, closed
    terminal), further output is dropped, so that a run continues.

    Args:
        command: given where standard output is the result. The command then ends: quietly if a pipe was
            closed, else with one line and status 1.
    """
    for name in ("stderr", "stdout"):
        stream, settings = getattr(sys, name), {}
        if stream is None:  # closed by the shell (`>&-`): writes fail, and no other file gets its number
            raw: Any = open(os.devnull, "rb", buffering=0)  # noqa: SIM115
        else:
            stream.flush()
            raw = getattr(stream.buffer, "raw", stream.buffer)
            settings = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        guarded: Any = _GuardedOutput(raw, command if name == "stdout" else None)
        if not settings.get("write_through"):  # python -u
            guarded = io.BufferedWriter(guarded)
        encoding = getattr(stream, "encoding", "utf-8")
        setattr(sys, name, io.TextIOWrapper(guarded, encoding, "backslashreplace", **settings))
    atexit.register(_flush_output)


def _flush_output() -> None:
    """Before Python's own flush at exit, whose errors print a traceback."""
    try:
        sys.stdout.flush()
    except SystemExit as ending:
        os._exit(int(ending.code or 0))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of an error about an unknown word: the most similar known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def few(names: Sequence[str], limit: int = 4) -> str:
    """The first of many names, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
