"""Every public name of the API reference has a docstring of the promised form.

A sentence first, then what the signature does not show: shapes of tensors, and errors. Functions that a
package exports also mention each of their parameters. Elsewhere, names and types of parameters must do.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ftcore"
TOP_LEVEL = ["train", "figures", "metrics"]  # modules outside of packages that the reference shows
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

# A tuple such as (B, T), (..., in) or (rows, repeats * length).
SHAPE = re.compile(
    r"\([^()]*\b[A-Z]\b[^()]*\)|\((?:[\w.]+(?: [-+*/] [\w.]+)*, ?)+[\w.* +-]*\)|\b(shapes?|tensors?)\b"
)
ERRORS = {"ValueError", "FileNotFoundError", "FloatingPointError", "OSError"}
# Clear without a word: the same thing in every function.
OBVIOUS = {
    "self",
    "cls",
    "model",
    "tokenizer",
    "config",
    "path",
    "directory",
    "inputs",
    "seed",
    "title",
    "progress",
}
FILLER = {
    "a",
    "an",
    "the",
    "of",
    "this",
    "that",
    "is",
    "and",
    "or",
    "to",
    "in",
    "for",
    "get",
    "function",
    "class",
}


class Name(NamedTuple):
    """A function, method or class with its place in the source."""

    file: Path
    owner: str  # the class of a method, else ""
    node: ast.FunctionDef | ast.ClassDef
    signature: str  # with its comments

    @property
    def text(self) -> str:
        return ast.get_docstring(self.node) or ""

    def __str__(self) -> str:
        name = ".".join(filter(None, [self.owner, self.node.name]))
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.node.lineno} {name}"


@cache
def public_names(package: str) -> list[Name]:
    """The functions, classes and methods of a package, or of a module, without those that begin with _."""
    folder = PACKAGE / package
    files = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [name for file in files for name in names_in(file)]


def names_in(file: Path) -> Iterator[Name]:
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()

    def visit(body: list[ast.stmt], owner: str) -> Iterator[Name]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_public(node):
                signature = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
                yield Name(file, owner, node, signature)
                if isinstance(node, ast.ClassDef):
                    yield from visit(node.body, node.name)

    return visit(ast.parse(source).body, "")


def is_public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a name is shown: not one with _, nor the further signatures of an overloaded function."""
    return not node.name.startswith("_") and "overload" not in map(ast.unparse, node.decorator_list)


@cache
def documented_methods() -> dict[str, set[str]]:
    """By class of ftcore: its methods with a docstring, those of its base classes included."""
    names = [name for package in [*PACKAGES, *TOP_LEVEL] for name in public_names(package)]
    bases = {
        name.node.name: [ast.unparse(base) for base in name.node.bases]
        for name in names
        if isinstance(name.node, ast.ClassDef)
    }
    own = {base: {name.node.name for name in names if name.owner == base and name.text} for base in bases}

    def with_inherited(class_name: str) -> set[str]:
        return own.get(class_name, set()).union(*map(with_inherited, bases.get(class_name, [])))

    return {class_name: with_inherited(class_name) for class_name in bases}


def problems(name: Name) -> Iterator[str]:
    """What a docstring lacks."""
    if name.text:
        yield from problems_of_a_docstring(name)
    elif name.node.name not in documented_methods().get(name.owner, set()):
        yield "no docstring"


def problems_of_a_docstring(name: Name) -> Iterator[str]:
    summary = " ".join(name.text.partition("\n\n")[0].split())
    if not summary.endswith((".", ":")) and not re.match(r"\(.+\) -> ", summary):
        yield "its first sentence has no full stop"
    if not words(summary) - words(name.node.name.replace("_", " ")) - FILLER:
        yield "says only what the name says"
    if isinstance(name.node, ast.FunctionDef):
        yield from problems_of_a_function(name, name.node, summary)


def problems_of_a_function(name: Name, node: ast.FunctionDef, summary: str) -> Iterator[str]:
    returns = ast.unparse(node.returns) if node.returns else ""
    if returns == "None" and not re.match(
        r"(?!The |An? |No |See |After |Raises )[A-Za-z]+(?<!ing)\b", summary
    ):
        yield "a function that returns nothing begins with its verb"
    types = [ast.unparse(argument.annotation) for argument in parameters(node) if argument.annotation]
    has_tensors = any(re.match(r"(tuple\[)?Tensor\b", kind) for kind in [returns, *types])
    if has_tensors and not SHAPE.search(name.text + name.signature):
        yield "no shape"
    for error in sorted(raised(node)):
        if error not in name.text:
            yield f"does not mention {error}"


def words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z0-9]+", text.lower())}


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def raised(node: ast.FunctionDef) -> set[str]:
    """The errors that a function raises itself, but for those that it may catch again."""
    caught = {
        id(inner)
        for block in ast.walk(node)
        if isinstance(block, ast.Try)
        for line in block.body
        for inner in ast.walk(line)
    }
    errors = (
        inner.exc for inner in ast.walk(node) if isinstance(inner, ast.Raise) and id(inner) not in caught
    )
    return {
        error.func.id for error in errors if isinstance(error, ast.Call) and hasattr(error.func, "id")
    } & ERRORS


@pytest.mark.parametrize("package", [*PACKAGES, *TOP_LEVEL])
def test_public_names_are_documented(package):
    assert [f"{name}: {problem}" for name in public_names(package) for problem in problems(name)] == []


# ---------------------------------------------------------------------------- what the packages export


def exported() -> list[object]:
    """The functions and classes that `from ftcore.PACKAGE import ...` is meant for."""
    found = {}
    for package in ["ftcore", *(f"ftcore.{name}" for name in PACKAGES)]:
        module = importlib.import_module(package)
        values = [getattr(module, name) for name in getattr(module, "__all__", vars(module))]
        for value in values:
            if inspect.isfunction(value) or inspect.isclass(value):
                found[value.__module__, value.__qualname__] = value
    return [value for (module, _), value in found.items() if module.startswith("ftcore")]


def undocumented_parameters(value: object) -> set[str]:
    """The parameters that neither the docstring nor a comment in the signature mentions.

    A class is made by its `__init__`. A dataclass shows its fields with comments.
    """
    function = value if inspect.isfunction(value) else vars(value).get("__init__")
    if function is None or is_dataclass(value) or getattr(value, "_is_protocol", False):
        return set()
    signature = inspect.getsource(function).partition('"""')[0]
    described = f"{value.__doc__} {function.__doc__} " + " ".join(re.findall(r"^.*#.*$", signature, re.M))
    names = set(inspect.signature(function).parameters) - OBVIOUS
    return {name for name in names if not re.search(rf"\b{name}\b", described, re.I)}


def test_exported_functions_mention_every_parameter():
    values = exported()
    assert len(values) > 60
    missing = {value.__qualname__: sorted(undocumented_parameters(value)) for value in values}
    assert {name: names for name, names in missing.items() if names} == {}
