"""What the commands share: options from the command line, and errors that are one line. No torch in here.

A command's options are one dataclass, whose field comments are the help text.

    @dataclass
    class Options:
        # [Data]
        train: str                      # file to train on
        batch_size: int = 8             # examples a step
        precision: Literal["fp32", "bf16"] = "fp32"  # number format of the computation
        freeze: list[str] | None = None  # names of modules
        resume: bool = False            # go on with the run in --output

becomes `--train FILE --batch-size N --precision {fp32,bf16} --freeze NAME [NAME ...] --resume`. A line
`# [Title]` begins a group of the help. Comment lines above a field continue its help. A dataclass that
derives from another has the options of both. A saved options file is read back by `--config`; `arguments`
gives the command line of options that are there already.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

Options = TypeVar("Options")

_GROUP = re.compile(r"\s*# \[(?P<title>.+)\]$")
_COMMENT = re.compile(r"\s*# (?P<text>.+)$")
_FIELD = re.compile(r"\s*(?P<name>\w+): .*?(\s# (?P<text>.+))?$")


def parse(options: type[Options], argv: Sequence[str] | None = None, *, command: str) -> Options:
    """Read the command line into an instance of the dataclass `options`; its docstring heads the help.

    `--config FILE.json` gives values by field name, which the command line overrides; not where `options`
    has a field of that name. Exits with status 2 and one line where something is unknown, missing or of the
    wrong type, or where the dataclass itself (its `__post_init__`) raises ValueError.
    """
    parser = _parser(options, command)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown(unknown[0], parser))
    from_line = vars(given)
    config = from_line.pop("config", None) if _has_saved_options(options) else None
    try:
        values = (_read_config(options, Path(config)) if config else {}) | from_line
        for field in dataclasses.fields(options):  # type: ignore[arg-type]
            if field.name not in values and _is_required(field):
                raise ValueError(f"{_flag(field.name)} is missing")
        return options(**values)
    except ValueError as error:
        parser.error(str(error))


def arguments(options: Any) -> list[str]:
    """The command line, in words, that `parse` reads back as these options; defaults are left out."""
    words: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None or value == field.default:
            continue
        flag = _flag(field.name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


class _Parser(argparse.ArgumentParser):
    """Argparse whose errors are one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def _parser(options: type, command: str) -> _Parser:
    parser = _Parser(
        prog=command,
        description=inspect.getdoc(options),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that only what was given overrides --config
        allow_abbrev=False,
    )
    types_of = typing.get_type_hints(options)
    groups: dict[str, Any] = {"": parser}
    for name, (title, text) in _help_texts(options).items():
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        field = {f.name: f for f in dataclasses.fields(options)}[name]
        groups[title].add_argument(_flag(name), **_argument(types_of[name], _with_default(text, field)))
    if _has_saved_options(options):
        parser.add_argument("--config", metavar="FILE", help="JSON file of options, as a run saves them")
    return parser


def _has_saved_options(options: type) -> bool:
    """Not where a command means something else by --config."""
    return "config" not in {field.name for field in dataclasses.fields(options)}


def _argument(annotation: Any, help_text: str) -> dict[str, Any]:
    """The keywords of add_argument for a field's type."""
    choices = [option for option in _alternatives(annotation) if option is not type(None)]
    help_text = help_text.replace("%", "%%")
    if annotation is bool:
        return {"action": "store_true", "help": help_text}
    if choices == [bool]:  # None, the default, leaves it open
        return {"action": argparse.BooleanOptionalAction, "help": help_text}
    if typing.get_origin(choices[0]) is list:  # --friends A B, --friends A --friends B
        return {"nargs": "+", "action": "extend", "metavar": _metavar(help_text), "help": help_text}
    if typing.get_origin(choices[0]) is Literal:
        return {"choices": list(typing.get_args(choices[0])), "help": help_text}
    if int in choices and float in choices:
        return {"type": _number, "metavar": "N|X", "help": help_text}
    metavar = {int: "N", float: "X"}.get(choices[0], _metavar(help_text))
    return {"type": choices[0], "metavar": metavar, "help": help_text}


def _alternatives(annotation: Any) -> list[Any]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return list(typing.get_args(annotation)) if is_union else [annotation]


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


_number.__name__ = "number"  # argparse names it where the text is none


def _metavar(help_text: str) -> str:
    """What stands for a text's value in the help: its kind, when the help's first word names one."""
    first = help_text.split()[0].lower() if help_text else ""
    kinds = {"file": "FILE", "directory": "DIR", "checkpoint": "DIR", "names": "NAME"}
    return (kinds | {text: text.upper() for text in ("key=value", "name=range")}).get(first, "TEXT")


def _with_default(text: str, field: dataclasses.Field[Any]) -> str:
    default = field.default
    if default is dataclasses.MISSING or default is None or isinstance(default, bool):
        return text
    return f"{text} (default: {default})"


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help_texts(options: type) -> dict[str, tuple[str, str]]:
    """Field name -> (group title, help text), out of the comments in the dataclass's source.

    A dataclass that derives from another has its options too, and may say something else about them.
    """
    inherited = [_help_texts(base) for base in options.__bases__ if dataclasses.is_dataclass(base)]
    return {name: text for texts in (*inherited, _own_help_texts(options)) for name, text in texts.items()}


def _own_help_texts(options: type) -> dict[str, tuple[str, str]]:
    names = {field.name for field in dataclasses.fields(options)}
    texts: dict[str, tuple[str, str]] = {}
    title = ""
    above: list[str] = []
    for line in inspect.getsource(options).splitlines():
        if group := _GROUP.match(line):
            title, above = group["title"], []
        elif comment := _COMMENT.match(line):
            above.append(comment["text"])
        elif (field := _FIELD.match(line)) and field["name"] in names and field["name"] not in texts:
            texts[field["name"]] = title, " ".join([*above, field["text"] or ""]).strip()
            above = []
        else:
            above = []
    return texts


def _read_config(options: type, path: Path) -> dict[str, Any]:
    """Field values out of a JSON file.

    Raises:
        ValueError: not JSON, an unknown key or a value of the wrong type; the message names file and key.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object of options")
    types_of = typing.get_type_hints(options)
    for key, value in values.items():
        if key not in types_of:
            raise ValueError(f"{path}: unknown option {key!r}{did_you_mean(key, types_of)}")
        if not _fits(value, types_of[key]):
            raise ValueError(f"{path}: {key} is {value!r}, which does not fit {_flag(key)}")
    return values


def _fits(value: Any, annotation: Any) -> bool:
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return True
        elif typing.get_origin(kind) is list:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return True
        elif isinstance(value, bool):
            if kind is bool:
                return True
        elif isinstance(value, kind) or (kind is float and isinstance(value, int)):
            return True
    return False


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return f"unknown argument {argument!r}{did_you_mean(argument.split('=')[0], flags)}"


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """The end of an error about an unknown word: the known one that is most like it, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


# Errors


WRONG_INPUT = 2  # exit status of a command that was asked for something it cannot do
FAILED_RUN = 1  # exit status of a command that began its work and could not finish it
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


@contextmanager
def clear_errors(
    command: str,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
    status: int = WRONG_INPUT,
) -> Iterator[None]:
    """Turn errors of these kinds into `command: message` on standard error and this exit status.

    The kinds are those that the library raises for a wrong input: put it around reading options, files and
    checkpoints. Around the work itself a ValueError is a bug, and its traceback is wanted.
    """
    try:
        yield
    except kinds as error:
        print(f"{command}: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(status) from None


def warn(message: str) -> None:
    """Tell the user something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return " ".join(text.split())
