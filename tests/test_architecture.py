"""Rules that no type checker checks: imports point one way, few packages, no machine's paths."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ftcore"

# Packages and top-level modules by layer. A package imports from its own layer and those before it; inside
# of a layer, modules import each other without cycles.
LAYERS = [
    {"models"},
    {"cli", "output", "metrics", "checkpoints", "lora"},
    {"figures"},
    {"data"},
    {"fast", "training", "decoding"},
    {"benchmark"},
    {"study"},
    {"analysis"},
    {"explorer"},
    {"lessons"},
]
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}

CORE = {"torch", "sentencepiece", "tokenizers", "numpy", "tqdm", "safetensors"}
EXTRAS = {  # imported only where they are used
    *("datasets", "huggingface_hub", "matplotlib", "optuna", "pyarrow", "rouge_score", "sacrebleu"),
    *("transformers", "yaml"),
}

TEMPLATES = PACKAGE / "lessons" / "templates"  # a student's files, which import each other by name
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != TEMPLATES)
LIBRARIES = {"__init__", "__main__", "cli", "figures", "metrics", "output"}
COMMANDS = [path for path in MODULES if path.parent == PACKAGE and path.stem not in LIBRARIES]

# The training loop is where readers look for it, in the command's module; tune and benchmark run it too, and
# ftcore.training offers it, imported when it is asked for.
TRAINING_LOOP = "ftcore.train"
LOOP_USERS = ("ftcore/benchmark/backends.py", "ftcore/training/__init__.py")
# `from_pretrained` and `generate` of the model classes. Imported when they are called.
METHODS = ("ftcore/models/config.py", ("ftcore.checkpoints", "ftcore.decoding"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that a module imports, at its top and inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str | None:
    """ "ftcore.data.loader" -> "data"; None for other packages and for names of ftcore itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ftcore" and len(parts) > 1 and parts[1] in LAYER_OF else None


def in_words(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_allowed(path: Path, module: str) -> bool:
    """Exceptions to the direction of imports."""
    if module.startswith(TRAINING_LOOP) and in_words(path) in LOOP_USERS:
        return True
    return in_words(path) == METHODS[0] and module.startswith(METHODS[1])


def test_every_folder_is_in_a_layer():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(LAYER_OF)


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE], ids=in_words)
def test_packages_import_only_lower_layers(path):
    here = path.relative_to(PACKAGE).parts[0]
    for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if module.split(".")[0] != "ftcore" or module == "ftcore.__version__":
            continue
        if is_allowed(path, module):
            continue
        there = package_of(module)
        assert there is not None, f"{in_words(path)} imports {module}, which is in no layer"
        assert LAYER_OF[there] <= LAYER_OF[here], f"{in_words(path)} imports {module}"


def test_modules_import_each_other_without_cycles():
    graph = {}
    names = {
        in_words(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in MODULES
    }
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        found = {module if module in names else module.rpartition(".")[0] for module in imports(top)}
        graph[name] = {module for module in found if module in names and module != name}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", COMMANDS, ids=in_words)
def test_commands_do_not_import_each_other(path):
    others = {f"ftcore.{command.stem}" for command in COMMANDS if command != path}
    if path.stem == "tune":
        others.remove(TRAINING_LOOP)
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


def test_no_machine_paths():
    machine = re.compile(r"/(?:home|root|Users|work|mnt)/\w|[A-Z]:\\Users")
    found = [
        f"{in_words(path)}: {match.group()}"
        for path in text_files()
        if (match := machine.search(path.read_text(encoding="utf-8")))
    ]
    assert not found
