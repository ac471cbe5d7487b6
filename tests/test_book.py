"""Every link and anchor of the documentation resolves, and the glossary is in order."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "weights/**/*.md")
    for path in ROOT.glob(pattern)
)
GLOSSARY = ROOT / "docs" / "glossary.md"


def without_code(document: Path) -> str:
    """The text of a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


@cache
def anchors(document: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the headings; a repeated one gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", without_code(document), re.M):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if anchor in seen else anchor)
        seen[anchor] += 1
    return frozenset(found)


def links(document: Path) -> list[str]:
    """Targets of links and pictures that are not on the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", without_code(document))
    return [target for pair in targets for target in pair if target and not re.match(r"\w+:", target)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_anchors_resolve(document):
    broken = []
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_glossary_is_in_order_and_each_term_has_a_page():
    terms = re.findall(r"^### (.+)\n((?:.+\n)+)", GLOSSARY.read_text(encoding="utf-8"), re.M)
    names = [name.casefold() for name, _ in terms]
    assert len(names) > 80 and names == sorted(names)
    assert [name for name, text in terms if not re.search(r"\]\(\w+\.md", text)] == []
