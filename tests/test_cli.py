"""Dataclasses as command-line options: help, types, bounds, --config files."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.__main__ import find_commands
from ftcore.cli import REQUIRED, check_options, option, parse, to_argv
from ftcore.generate import GenerateOptions
from ftcore.output import flag
from ftcore.training.options import TrainOptions

OPTION_CLASSES = [
    getattr(import_module(f"ftcore.{name}"), f"{name.capitalize()}Options") for name in find_commands()
]


@dataclass
class Trip:
    """Plan a trip.

    By train or on foot.
    """

    goal: str = option(REQUIRED, "where to go")
    days: int = option(3, "how long", at_least=1)
    speed: float = option(1.5, "in km/h, 100% of the time", at_least=0)
    friends: list[str] | None = option(None, "friends of all kinds, and enemies", group="Company")
    mood: Literal["good", "bad"] = option("good", "of the group")
    pause: int | float = option(0.1, "hours, or below 1 a share")
    map_file: str | None = option(None, "file with the way (default: none)", metavar="FILE")
    night: bool = option(False, "travel at night")

    def __post_init__(self) -> None:
        check_options(self)


def trip(*arguments: str) -> Trip:
    return parse(Trip, arguments, command="trip")


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ending:
        trip(*arguments)
    assert ending.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    [line] = captured.err.splitlines()
    assert line.startswith("trip: ") and line.endswith("(--help lists the options)") and len(line) < 1500
    return line


def test_types_and_defaults() -> None:
    assert trip("--goal", "Rome") == Trip("Rome")
    got = trip(
        "--goal=Rome",
        "--days",
        "5",
        "--speed",
        "2",
        "--mood",
        "bad",
        "--pause",
        "2",
        "--map-file",
        "x",
        "--night",
    )
    assert got == Trip("Rome", 5, 2.0, None, "bad", 2, "x", True)
    assert [type(value) for value in (got.speed, got.pause, trip("--goal", "x", "--pause", "2.0").pause)] == [
        float,
        int,
        float,
    ]
    assert trip("--goal", "x", "--pause", "1e-3").pause == 1e-3


def test_a_list_takes_its_values_in_one_flag_or_several() -> None:
    assert trip("--goal", "x", "--friends", "Ada", "Bo", "--days", "2").friends == ["Ada", "Bo"]
    assert trip("--goal", "x", "--friends", "Ada", "--friends", "Bo").friends == ["Ada", "Bo"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--goal is missing"),
        (["--goal", "x", "--dyas", "3"], "unknown argument '--dyas', did you mean '--days'?"),
        (["--goal", "x", "--dyas=3"], "did you mean '--days'?"),
        (["--goal", "x", "Rome"], "unknown argument 'Rome'"),
        (["--goal", "x", "--day", "3"], "did you mean '--days'?"),  # no abbreviations
        (["--goal", "x", "--map_file", "3"], "did you mean '--map-file'?"),
        (["--goal", "x", "--days", "two"], "--days: invalid int value: 'two'"),
        (["--goal", "x", "--pause", "long"], "--pause: invalid number value: 'long'"),
        (["--goal", "x", "--mood", "sad"], "--mood: invalid choice: 'sad'"),
        (["--goal", "x", "--days"], "--days: expected one argument"),
        (["--goal", "x", "--days", "0"], "--days is 0, expected at least 1"),
        (["--config", "/nowhere/x.json"], "no such file: /nowhere/x.json"),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture, arguments: list[str], complaint: str
) -> None:
    assert complaint in refusal(capsys, *arguments)


@dataclass
class LongTrip(Trip):
    """Plan more."""

    days: int = option(30, "how long it takes", at_least=1)
    stops: int = option(2, "on the way")


@dataclass
class WalkTo:
    """Walk."""

    goal: str | None = option(None, "where to go", metavar="PLACE", positional=True)
    days: int = option(3, "how long it takes", at_least=1)


def test_a_positional_option_has_no_flag_and_may_be_left_out(capsys: pytest.CaptureFixture) -> None:
    for arguments in (["Rome", "--days", "5"], ["--days", "5", "Rome"]):
        assert parse(WalkTo, arguments, command="walk") == WalkTo("Rome", 5)
    assert parse(WalkTo, [], command="walk") == WalkTo(None, 3)
    for wrong in (["--goal", "Rome"], ["Rome", "Paris"]):
        with pytest.raises(SystemExit):
            parse(WalkTo, wrong, command="walk")
        assert f"walk: unknown argument {wrong[0] if '--goal' in wrong else 'Paris'!r}" in (
            error := capsys.readouterr().err
        )
        assert ("quote a text with spaces" in error) == ("Paris" in wrong)


def test_a_derived_dataclass_has_the_options_of_both(capsys: pytest.CaptureFixture) -> None:
    assert parse(LongTrip, ["--goal", "x", "--stops", "3"], command="trip") == LongTrip("x", stops=3)
    fields = dataclasses.fields(LongTrip)
    assert [(field.name, field.metadata["help"]) for field in fields[:2]] == [
        ("goal", "where to go"),
        ("days", "how long it takes"),
    ]
    with pytest.raises(SystemExit):
        parse(LongTrip, ["--days", "0", "--goal", "x"], command="trip")
    assert "--days is 0, expected at least 1" in capsys.readouterr().err


@dataclass
class Flags:
    """Of all kinds."""

    goal: str = option("Rome", "where to go")
    pause: int | float | None = option(None, "hours")
    friends: list[str] | None = option(None, "who comes along")
    night: bool = option(False, "travel at night")
    quiet: bool | None = option(None, "do not talk")


texts = st.text("abc é'", min_size=1)


@settings(deadline=None, max_examples=60)
@given(
    options=st.builds(
        Flags,
        goal=texts,
        pause=st.none() | st.integers(0, 99) | st.floats(1e-9, 1e9),
        friends=st.none() | st.lists(texts, min_size=1),
        night=st.booleans(),
        quiet=st.none() | st.booleans(),
    )
)
def test_options_round_trip_through_a_command_line(options: Flags) -> None:
    assert parse(Flags, to_argv(options), command="trip") == options


def test_defaults_are_left_out_of_a_command_line() -> None:
    assert to_argv(Flags()) == []
    assert to_argv(Flags(pause=2, quiet=False)) == ["--pause", "2", "--no-quiet"]


def test_help_is_the_docstring_and_the_help_texts(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending:
        trip("--help")
    assert ending.value.code == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "Plan a trip. By train or on foot." in words
    assert "--days N how long (default: 3)" in words
    assert "--speed X in km/h, 100% of the time (default: 1.5)" in words
    assert "friends of all kinds, and enemies" in words
    assert "--mood {good,bad} of the group (default: good)" in words
    assert "--pause N|X" in words and "--map-file FILE file with the way (default: none)" in words
    assert text.index("Company:") > text.index("--speed")


# --- --config files


def as_file(path: Path, values: Any) -> str:
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    config = as_file(tmp_path / "trip.json", {"goal": "Rome", "days": 9, "night": True, "speed": 2})
    assert trip("--config", config, "--days", "4") == Trip("Rome", 4, 2, night=True)


@pytest.mark.skipif(find_spec("yaml") is None, reason="needs PyYAML")
def test_a_config_may_be_yaml(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = as_file(tmp_path / "trip.YAML", "goal: no\nspeed: 1e-3  # slow\nfriends: Ada\nnight: true\n")
    assert trip("--config", config, "--days", "4") == Trip("no", 4, 0.001, ["Ada"], night=True)
    for text, complaint in (
        ("goal: x\nnight: yes", "trip.yml: --night is 'yes', expected true or false"),
        ("goal: x\ndyas: 3", "trip.yml: unknown option 'dyas', did you mean 'days'?"),
        ("goal: x\ngoal: y", "trip.yml, line 2: broken YAML: key 'goal' twice"),
    ):
        assert complaint in refusal(capsys, "--config", as_file(tmp_path / "trip.yml", text))


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        Trip,
        goal=st.text(),
        days=st.integers(1, 10**6),
        speed=st.floats(0, allow_infinity=False),
        mood=st.sampled_from(["good", "bad"]),
        pause=st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
        map_file=st.none() | st.text(),
        night=st.booleans(),
        friends=st.none() | st.lists(st.text()),
    )
)
def test_a_saved_file_gives_the_same_options(tmp_path_factory: pytest.TempPathFactory, options: Trip) -> None:
    config = as_file(tmp_path_factory.mktemp("config") / "trip.json", dataclasses.asdict(options))
    assert trip("--config", config) == options


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "trip.json: broken JSON: Expecting property name"),
        ("", "trip.json: the file is empty"),
        ('{"goal": "x", "goal": "y"}', "trip.json: broken JSON: key 'goal' twice"),
        ([1], "trip.json: expected a JSON object, found list"),
        ({"gaol": "x"}, "trip.json: unknown option 'gaol', did you mean 'goal'?"),
        ({"goal": 3}, "trip.json: --goal is 3, expected a text"),
        ({"goal": "x", "days": "3"}, "--days is '3', expected an integer"),
        ({"days": 3}, "trip.json: --goal is missing"),
        ({"goal": "x", "days": 0}, "trip.json: --days is 0, expected at least 1"),
        (
            {"goal": "x", "speed": 10**30},
            f"trip.json: --speed is {10**30}, expected an integer of at",
        ),
    ],
)
def test_a_wrong_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: Any, complaint: str
) -> None:
    line = refusal(capsys, "--config", as_file(tmp_path / "trip.json", content))
    assert complaint in line and line.count("trip.json") == 1


# --- options made in Python


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"goal": 3}, "--goal is 3, expected a text"),
        ({"goal": None}, "--goal is None, expected a text"),
        ({"days": "3"}, "--days is '3', expected an integer"),
        ({"days": True}, "--days is True, expected an integer"),
        ({"days": 2.5}, "--days is 2.5, expected an integer"),
        ({"days": 0}, "--days is 0, expected at least 1"),
        ({"days": 2**63}, f"--days is {2**63}, expected an integer of at most 64 bits"),
        ({"speed": "fast"}, "--speed is 'fast', expected a number"),
        ({"speed": math.nan}, "--speed is nan, expected at least 0"),
        ({"speed": math.inf}, "--speed is inf, expected at least 0"),
        ({"pause": "long"}, "--pause is 'long', expected an integer or a number"),
        ({"night": 1}, "--night is 1, expected true or false"),
        ({"mood": "sad"}, "--mood is 'sad', expected one of good, bad"),
        ({"mood": ["good"]}, "--mood is ['good'], expected one of good, bad"),
        ({"friends": [1]}, "--friends is [1], expected a list of texts"),
        ({"friends": [["Ada"]]}, "--friends is [['Ada']], expected a list of texts"),
        ({"map_file": ["x"]}, "--map-file is ['x'], expected a text"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        Trip(**{"goal": "x"} | values)


def test_paths_become_text_and_a_single_text_a_list() -> None:
    got = Trip("x", speed=2, map_file=Path("a", "b"), friends=Path("Ada"))  # type: ignore[arg-type]
    assert (got.map_file, got.friends) == (str(Path("a", "b")), ["Ada"])
    assert Trip("x", friends=[Path("Ada"), "Bo"]).friends == ["Ada", "Bo"]  # type: ignore[list-item]


# --- all commands


@pytest.mark.parametrize("options", OPTION_CLASSES, ids=lambda options: options.__name__)
def test_every_command_checks_its_options(options: type) -> None:
    """From Python as on the command line."""
    needed = {field.name: "x" for field in dataclasses.fields(options) if field.default is REQUIRED}
    number = next(field.name for field in dataclasses.fields(options) if isinstance(field.default, int))
    for wrong in ("x", 1.5, [1]):
        with pytest.raises(ValueError, match=f"{flag(number)} is .*, expected "):
            options(**needed | {number: wrong})


@pytest.mark.parametrize("options", OPTION_CLASSES, ids=lambda options: options.__name__)
def test_every_option_of_every_command_has_a_help_text(options: type) -> None:
    for field in dataclasses.fields(options):
        text = field.metadata["help"]
        assert text and text[0] not in ",.)" and text.count("(") == text.count(")"), f"{field.name}: {text!r}"
        assert not text.endswith((",", ".", " a")), f"{field.name}: {text!r}"


@pytest.mark.parametrize("command", find_commands())
def test_help_does_not_import_torch(command: str) -> None:
    """Importing torch takes seconds."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['ftcore.{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('ftcore.{command}', run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"usage: ftcore.{command}" in done.stdout and "--config FILE" in done.stdout


def test_a_misspelt_option_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ftcore.train", "--epoch", "3"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and not done.stdout
    assert (
        done.stderr
        == "ftcore.train: unknown argument '--epoch', did you mean '--epochs'? (--help lists the options)\n"
    )


HUGGING_FACE = """
learning_rate --lr
num_train_epochs --epochs
per_device_train_batch_size --batch-size
per_device_eval_batch_size --eval-batch-size
gradient_accumulation_steps --grad-accum
warmup_ratio --warmup
warmup_steps --warmup
lr_scheduler_type --schedule
max_grad_norm --clip-norm
label_smoothing_factor --label-smoothing
optim --optimizer
adafactor --optimizer adafactor
bf16 --precision bf16
fp16 --precision fp16
eval_steps --eval-every
save_steps --save-every
save_total_limit --keep
logging_steps --log-every
early_stopping_patience --early-stopping
max_length --max-source-length
model_name_or_path --model
output_dir --output
overwrite_output_dir --overwrite
train_file --train
validation_file --valid
resume_from_checkpoint --resume
dataloader_num_workers --workers
use_cpu --device cpu
lora_r --lora-rank
fsdp --parallel fsdp
"""


@pytest.mark.parametrize("line", HUGGING_FACE.split("\n")[1:-1])
def test_names_of_hugging_face_are_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture, line: str
) -> None:
    """On the command line and in --config, with dashes and with underscores."""
    name, _, meant = line.partition(" ")
    option_name, _, value = meant.removeprefix("--").replace("-", "_").partition(" ")
    in_file = f"{option_name}: {value}" if value else option_name
    for spelling in (name, name.replace("_", "-")):
        config = as_file(tmp_path / "train.json", {spelling: 1})
        for arguments, unknown, suggestion in (
            ([f"--{spelling}", "1"], f"unknown argument '--{spelling}'", meant),
            ([f"--{spelling}=1"], f"unknown argument '--{spelling}=1'", meant),
            (["--config", config], f"unknown option '{spelling}'", in_file),
        ):
            with pytest.raises(SystemExit):
                parse(TrainOptions, arguments, command="train")
            assert f"{unknown}, did you mean {suggestion!r}?" in capsys.readouterr().err


@pytest.mark.parametrize("options", OPTION_CLASSES, ids=lambda options: options.__name__)
def test_names_of_other_libraries_are_no_options(options: type) -> None:
    names = [field.name for field in dataclasses.fields(options)]
    others = [
        name.partition("=")[0]
        for field in dataclasses.fields(options)
        for name in field.metadata["also"].split()
    ]
    assert len({*names, *others}) == len(names) + len(others)


def test_hugging_faces_names_of_a_search_are_understood(capsys: pytest.CaptureFixture) -> None:
    for name, meant in (("--do_sample", "--sample"), ("--max-length", "--max-new-tokens")):
        with pytest.raises(SystemExit):
            parse(GenerateOptions, ["--model", "x", "--prompt", "x", name, "5"], command="generate")
        assert f"unknown argument '{name}', did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", find_commands())
def test_waiting_threads_sleep_unless_the_user_chose(name: str) -> None:
    """libgomp reads its settings when torch is imported."""
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT')); sys.exit()\n"
        "sys.meta_path.insert(0, Finder)\n"
        f"import ftcore.{name}\n"
        "import torch\n"
    )
    unset = {key: value for key, value in os.environ.items() if "SPINCOUNT" not in key and "WAIT" not in key}
    for chosen, count in (
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "3"}, "3"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ):
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, capture_output=True, text=True, env=unset | chosen, check=True)
        assert done.stdout == f"{count}\n"
