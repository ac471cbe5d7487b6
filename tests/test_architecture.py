"""House rules that no type checker knows: imports point one way, few packages, no machine's paths."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ftcore"

# The packages from the ground up. A package imports those on lower floors. Those on one floor may import each
# other where their modules stay free of cycles.
FLOORS = [
    {"cli", "metrics", "models"},
    {"checkpoints", "lora"},
    {"data"},
    {"fast", "training", "decoding"},
    {"benchmark"},
    {"study", "tuning"},
    {"analysis"},
    {"explorer"},
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

CORE = {"torch", "sentencepiece", "tokenizers", "numpy", "tqdm", "safetensors"}
EXTRAS = {"huggingface_hub", "matplotlib", "optuna", "transformers"}  # imported only where they are used

MODULES = sorted(PACKAGE.rglob("*.py"))
NO_COMMANDS = {"__init__", "cli", "metrics"}
DOORS = [path for path in MODULES if path.parent == PACKAGE and path.stem not in NO_COMMANDS]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that a module imports, at its top and inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"ftcore(\.\w+)+", str(node.value)):
            yield str(node.value)  # what the lazy package files import by name


def room_of(module: str) -> str | None:
    """ "ftcore.data.loader" -> "data"; None for what is no room: another package, or ftcore itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ftcore" and len(parts) > 1 and parts[1] in ROOMS else None


def in_words(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_folder_is_a_known_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(ROOMS)


# The training loop, on the page where everybody looks for it: a search runs it too, a benchmark measures it.
LOOP = "ftcore.train"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE], ids=in_words)
def test_rooms_import_only_the_floors_below(path):
    here = path.relative_to(PACKAGE).parts[0]
    for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if module.split(".")[0] != "ftcore" or module in ("ftcore.lazily", "ftcore.__version__"):
            continue
        if here == "benchmark" and module.startswith(LOOP):
            continue
        there = room_of(module)
        assert there is not None, f"{in_words(path)} imports {module}, which is no room"
        assert ROOMS[there] <= ROOMS[here], f"{in_words(path)} imports {module}"


def test_models_import_nothing_else_of_ftcore():
    for path in (PACKAGE / "models").glob("*.py"):
        rooms = {room_of(module) for module in imports(ast.parse(path.read_text(encoding="utf-8")))}
        assert rooms <= {None, "models"}, in_words(path)


@pytest.mark.parametrize("path", DOORS, ids=in_words)
def test_doors_do_not_lead_into_each_other(path):
    others = {f"ftcore.{door.stem}" for door in DOORS if door != path}
    if path.stem == "tune":
        others.remove(LOOP)
    for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert not any(module == other or module.startswith(f"{other}.") for other in others), module


@pytest.mark.parametrize("path", MODULES, ids=in_words)
def test_only_the_core_packages_are_needed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for module in imports(node):
            package = module.split(".")[0]
            if package in sys.stdlib_module_names or package in CORE | {"ftcore"}:
                continue
            assert package in EXTRAS, f"{in_words(path)} imports {package}"
            assert id(node) in inside_functions, f"{in_words(path)} imports the extra {package} at its top"


def text_files() -> list[Path]:
    """The repository's own text, without what is generated or ignored."""
    suffixes = {".py", ".md", ".txt", ".json", ".toml", ".cfg", ".typed", ".jsonl"}
    folders = ["ftcore", "examples", "weights", "docs", "tests", ".ci"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    return [path for path in files if path.suffix in suffixes or path.parent.name == ".ci"]


def test_no_file_knows_a_machine():
    machine = re.compile(r"/(?:home|root|Users|work|mnt)/\w|[A-Z]:\\Users")
    found = [
        f"{in_words(path)}: {match.group()}"
        for path in text_files()
        if (match := machine.search(path.read_text(encoding="utf-8")))
    ]
    assert not found
