"""Command-line options. Does not import torch, so `--help` is fast.

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
import dataclasses
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal, NoReturn, TypeVar

from ftcore.checkpoints.files import read_json
from ftcore.checkpoints.yaml_files import read_yaml
from ftcore.output import WRONG_INPUT, as_options, did_you_mean, flag, is_main_process, one_line, printable

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
    also: str = "",
) -> Any:
    """A dataclass field that is a command-line option. Its type is the field's annotation.

    Args:
        default: REQUIRED where there is none.
        help: one text for --help; the default is appended.
        group: heading in --help; holds for the options after it, up to the next one with a heading.
        metavar: placeholder of the value in --help.
        at_least, below: bounds, checked by `check_options`.
        resumable: whether a resumed run may change it.
        searchable: whether ftcore.tune may vary it; "log" draws a range on a logarithmic scale.
        positional: given without its name; it may be left out.
        also: its names in other libraries, separated by spaces, which errors suggest it for; "bf16=bf16"
            where a name stands for a value.
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
        "also": also,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Raise ValueError naming the first option of a wrong type, not among its choices or out of its bounds.

    NaN, infinity and integers of more than 64 bits, which torch does not take, are out of all bounds. A path
    becomes text and, where the option is a list, a single text a list of one.
    """
    types_of = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = _plain(getattr(options, field.name), types_of[field.name])
        setattr(options, field.name, value)
        if expected := _expected(value, types_of[field.name], field.metadata):
            raise ValueError(f"{flag(field.name)} is {shown(value)}, expected {expected}")


def _expected(value: Any, annotation: Any, metadata: Mapping[str, Any]) -> str | None:
    """What the value of an option should have been; None if it is that."""
    if not fits(value, annotation):
        kinds = (kind for kind in _alternatives(annotation) if kind is not type(None))
        return " or ".join(map(_description, kinds))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "an integer of at most 64 bits"
    at_least, below = metadata.get("at_least"), metadata.get("below")
    if at_least is None or value is None or at_least <= value < (below or math.inf):
        return None
    return f"from {at_least} to below {below}" if below else f"at least {at_least}"


def _plain(value: Any, annotation: Any) -> Any:
    """Paths as text; a single text as a list, if that is the only type that the annotation has for it."""
    if isinstance(value, list):
        return [_plain(item, str) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    is_single = isinstance(value, str) and not fits(value, annotation) and fits([value], annotation)
    return [value] if is_single else value


def _description(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    if typing.get_origin(annotation) is list:
        return "a list of texts"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[annotation]


def check_resumed(kind: type, saved: Mapping[str, Any], options: Any, what: str, instead: str = "") -> None:
    """Raise ValueError naming the first changed option that a resumed run may not change.

    Args:
        kind: the dataclass of the options.
        what: subject of the message, such as "runs/qa: the run".
        instead: end of the message: how to get what was wanted.
    """
    for field in dataclasses.fields(kind):
        then, now = saved[field.name], getattr(options, field.name)
        if now != then and not field.metadata["resumable"]:
            with_then, with_now = _as_flag(field.name, then), _as_flag(field.name, now)
            raise ValueError(f"{what} was started {with_then}, it cannot continue {with_now}{instead}")


def _as_flag(name: str, value: Any) -> str:
    """ "with --lr 0.1", "without --fast" """
    if value is None or value is False:
        return f"without {flag(name)}"
    values = value if isinstance(value, list) else [] if value is True else [value]
    return " ".join(["with", flag(name), *map(str, values)])


def parse(options: type[Options], argv: Sequence[str] | None = None, *, command: str) -> Options:
    """Read the command line into an instance of the dataclass `options`; its docstring heads the help.

    `--config FILE` gives values by field name, which the command line overrides; not where `options`
    has a field of that name. Exits with status 2 and one line where something is unknown, missing or of the
    wrong type, or where the dataclass itself (its `__post_init__`) raises ValueError.
    """
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    parser = _parser(options, command)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [name for action in parser._actions for name in action.option_strings]
        synonyms = {flag(also): f"{flag(name)} {value}".rstrip() for also, name, value in _also(options)}
        word = unknown[0].partition("=")[0].replace("_", "-")
        hint = did_you_mean(word, flags, synonyms)
        if not word.startswith("-") and any(field.metadata["positional"] for field in fields):
            hint = "; quote a text with spaces"
        parser.error(f"unknown argument {unknown[0]!r}{hint}")
    from_line = vars(given)
    config = from_line.pop("config", None) if _takes_config_file(options) else None
    try:
        values = (_read_config(options, Path(config)) if config else {}) | from_line
        for field in fields:
            if field.name not in values and field.default is REQUIRED:
                raise ValueError(f"{flag(field.name)} is missing")
        return options(**values)
    except ValueError as error:
        message = as_options(str(error))
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


def _also(options: type) -> Iterator[tuple[str, str, str]]:
    """(name in another library, option, value that the name stands for or "") of all options."""
    for field in dataclasses.fields(options):
        for also in field.metadata["also"].split():
            other, _, value = also.partition("=")
            yield other, field.name, value


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
    for field in dataclasses.fields(options):
        if title := field.metadata["group"]:
            group = parser.add_argument_group(title)
        arguments = _argument(types_of[field.name], field)
        if field.metadata["positional"]:
            group.add_argument(field.name, nargs="?", **arguments)
        else:
            group.add_argument(flag(field.name), **arguments)
    if _takes_config_file(options):
        parser.add_argument(
            "--config", metavar="FILE", help="JSON or YAML file of options, such as a run's train_config.json"
        )
    return parser


def _takes_config_file(options: type) -> bool:
    """False if the command has its own --config."""
    return "config" not in {field.name for field in dataclasses.fields(options)}


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
    """Read field values from a JSON file or, by its name, a YAML file.

    Raises:
        ValueError: not of that format, or an unknown key; the message names file and key.
    """
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        values = read_yaml(path) if is_yaml else read_json(path, unique_keys=True)
    except OSError as error:
        raise ValueError(one_line(error)) from None
    known = [field.name for field in dataclasses.fields(options)]
    if unknown := [key for key in values if key not in known]:
        synonyms = {also: f"{name}: {value}" if value else name for also, name, value in _also(options)}
        meant = did_you_mean(unknown[0].replace("-", "_"), known, synonyms)
        raise ValueError(f"{path}: unknown option {shown(unknown[0])}{meant}")
    return values


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value from a file has the type of a dataclass field; an int fits a float."""
    return any(_is_of(value, kind) for kind in _alternatives(annotation))


def _is_of(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, *typing.get_args(kind)) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
