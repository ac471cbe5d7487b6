"""The files that a student starts with."""

import ast
from collections.abc import Iterator

import pytest

from ftcore.lessons.runner import STEP_FILES, TEMPLATES
from tests.helpers.course_checks import SOLUTIONS


def functions(nodes: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions and methods, by dotted name."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}{node.name}.")


def body(function: ast.FunctionDef) -> str:
    """The code of a function without its docstring."""
    has_docstring = ast.get_docstring(function) is not None
    return "\n".join(ast.unparse(node) for node in function.body[has_docstring:])


@pytest.mark.parametrize("file", STEP_FILES)
def test_signatures_and_complete_functions_are_those_of_the_solution(file):
    template, solution = (
        dict(functions(ast.parse((folder / file).read_text(encoding="utf-8")).body))
        for folder in (TEMPLATES, SOLUTIONS)
    )
    assert template.keys() <= solution.keys()
    for name, function in template.items():
        assert ast.unparse(function.args) == ast.unparse(solution[name].args), name
        if "NotImplementedError" not in body(function):
            assert body(function) == body(solution[name]), name
