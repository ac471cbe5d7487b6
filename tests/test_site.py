"""The pages that docs/site/hooks.py makes, and their links. `mkdocs build --strict` checks the rest."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.test_docstrings import PACKAGES, TOP_LEVEL

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rewritten(hooks: ModuleType, page: str, markdown: str) -> str:
    return hooks.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page)))


def test_the_navigation_has_every_chapter_in_the_order_of_the_book(hooks):
    nav = hooks.on_config(SimpleNamespace()).nav
    chapters = [page for section in nav[2:] for page in next(iter(section.values())) if str(page) in CHAPTERS]
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert chapters == re.findall(r"^\d+\. \[.+?\]\((\w+\.md)\)", contents, re.M)


def test_the_reference_shows_every_package(hooks):
    assert sorted(hooks.PACKAGES) == PACKAGES
    assert hooks.TOP_LEVEL == TOP_LEVEL
    assert "::: ftcore.models.attention\n" in hooks.reference("models")


def test_every_link_of_a_chapter_leads_to_a_page(hooks):
    made = {hooks.page_of(path) for path in hooks.linked_files()} | {"index.md", "book.md"}
    made |= CHAPTERS | {f"reference/{name}.md" for name in hooks.PACKAGES}
    for chapter in CHAPTERS:
        assert {
            hooks.page_of(path) for path in hooks.targets(f"docs/{chapter}") if path.endswith(".md")
        } <= made
    assert {"project/ftcore/models/gpt2.py.md", "project/examples/README.md"} <= made


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("models.md", "../ftcore/models/t5.py", "project/ftcore/models/t5.py.md"),
        ("models.md", "../ftcore/models", "reference/models.md"),
        ("models.md", "hooks.md#names", "hooks.md#names"),
        ("models.md", "../README.md", "index.md"),
        ("models.md", "../examples/data", "project/examples/README.md"),
        ("models.md", "README.md", "book.md"),
        ("models.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_are_those_of_the_site(hooks, page, link, expected):
    assert rewritten(hooks, page, f"see [it]({link})") == f"see [it]({expected})"


def test_links_in_code_are_left_alone(hooks):
    markdown = "```python\na[0](../ftcore/models/t5.py)\n```\n"
    assert rewritten(hooks, "models.md", markdown) == markdown


def test_a_notebook_shows_text_code_and_outputs(hooks):
    picture = {"output_type": "display_data", "data": {"image/png": "AAAA\n", "text/plain": "<Figure>"}}
    printed = {"output_type": "stream", "text": ["1 < 2\n"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "print('```')", "outputs": [printed, picture]},
    ]
    parts = list(hooks.notebook_parts(json.loads(json.dumps({"cells": cells}))))
    assert parts[:2] == ["# Title\ntext", "````python\nprint('```')\n````"]
    assert "<pre>1 &lt; 2\n</pre>" in parts[2]
    assert 'src="data:image/png;base64,AAAA"' in parts[3]
