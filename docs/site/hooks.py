"""Pages of the site that are not in docs/, and the navigation. MkDocs calls the functions `on_...`.

Links of the book lead to files elsewhere in the project. Each of them becomes a page in project/: Markdown as
it is, a notebook with its outputs, other text as a block of code. The API reference has a page for each
package, from the docstrings, and the explore pages are recorded with the embedded checkpoints.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from posixpath import normpath, relpath
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

FIRST_PAGES = {"README.md": "index.md", "docs/README.md": "book.md"}
PATHS: dict[str, str] = {}  # of the files that `on_files` makes pages of, by the source of the page

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)

LESSONS = {
    "T5 answers questions": "examples/t5_question_answering.py",
    "GPT-2 writes about feelings": "examples/gpt2_emotion.py",
    "Notebook: look inside": "examples/notebooks/look_inside.ipynb",
    "Notebook: test your layer": "examples/notebooks/test_your_layer.ipynb",
    "Notebook: fine-tune": "examples/notebooks/fine_tune.ipynb",
}

PACKAGES = ["models", "checkpoints", "lora", "data", "training", "decoding", "study", "analysis", "explorer"]
PACKAGES += ["lessons", "benchmark", "fast"]
TOP_LEVEL = ["train", "figures", "metrics"]

# Options of python -m ftcore.explore, by the name of the page.
EXPLORED = {
    "t5": "--model weights/t5-mini-qa --question 'Where does Selorina live?' "
    "--context 'Marodan lives in Korbrook. Selorina lives in Wenhaven.'",
    "gpt2": "--model weights/gpt2-mini --prompt 'Emotion: i feel at home' --max-new-tokens 8",
}


# ------------------------------------------------------------------------------------------- navigation


def on_config(config: Any) -> Any:
    """Set the navigation: the sections of docs/README.md in their order, then lessons and reference."""
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^\*\*(.+)\*\*$", contents, flags=re.M)
    nav: list[Any] = [{"Start": "index.md"}, "book.md"]
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        nav.append({title: re.findall(r"^\d+\. \[.+?\]\((\w+\.md)\)", text, re.M)})
    lessons = [{title: page_of(path)} for title, path in LESSONS.items()]
    nav.append({"Try and read": ["explored.md", *lessons]})
    nav.append({"Reference": [f"reference/{name}.md" for name in ("ftcore", *PACKAGES)]})
    config.nav = nav
    return config


# ------------------------------------------------------------------------------------------------ files


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    files.remove(files.get_file_from_path("README.md"))  # book.md; the first page is the project's README.md
    for path in ["docs/README.md", *linked_files()]:
        add(files, config, page_of(path), as_markdown(ROOT / path))
        PATHS[page_of(path)] = path
    for name in ("ftcore", *PACKAGES):
        add(files, config, f"reference/{name}.md", reference(name))
    add(files, config, "explored.md", explored())
    for name in EXPLORED:
        add(files, config, f"explored/{name}.html", explore(name))
    return files


def add(files: Any, config: Any, name: str, content: str) -> None:
    """Add a page, or another file, of this content."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, name, content=content))


def linked_files() -> list[str]:
    """Files outside of docs/ that its pages lead to, directly or over other files."""
    found = list(LESSONS.values())
    seen = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")] + found
    for path in seen:  # grows
        if path.endswith(".md"):
            new = {name for name in targets(path) if not name.startswith("docs/")} - set(seen)
            seen += sorted(new)
            found += sorted(new)
    return found


def targets(path: str) -> Iterator[str]:
    """The files that a Markdown file links to, by their path in the project."""
    parts = FENCED.split((ROOT / path).read_text(encoding="utf-8"))
    found = (target(path, link) for link in LINK.findall("".join(parts[::2])))
    return (name for name in found if (ROOT / name).is_file())


def target(path: str, link: str) -> str:
    """The file that a link in `path` leads to; of a folder, the README.md in it or above it."""
    found = normpath(f"{path}/../{link}")
    while (ROOT / found).is_dir() and not found.startswith("ftcore/"):
        readme = f"{found}/README.md"
        found = readme if (ROOT / readme).exists() else normpath(f"{found}/..")
    return found


def page_of(path: str) -> str:
    """The source of the page on the site that shows a file or a package, by its path in the project."""
    if path in FIRST_PAGES:
        return FIRST_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"reference/{Path(path).name}.md"
    return f"project/{path}" if path.endswith(".md") else f"project/{path}.md"


# ------------------------------------------------------------------------------------------------ pages


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to the pages of the site."""
    source = page.file.src_uri
    path = PATHS.get(source, f"docs/{source}")
    if not (ROOT / path).is_file():  # a page of this file, whose links lead to pages already
        return markdown
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(lambda match: site_link(source, path, match[0]), part) for part in parts[::2]]
    return "".join(parts)


def site_link(source: str, path: str, link: str) -> str:
    """A link of the file `path`, as one of its page."""
    return relpath(page_of(target(path, link)), Path(source).parent.as_posix())


def as_markdown(path: Path) -> str:
    """The page of a file outside of docs/."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return "\n\n".join(notebook_parts(json.loads(text)))
    language = {".py": "python", ".jsonl": "json"}.get(path.suffix, "")
    return f"# {path.relative_to(ROOT).as_posix()}\n\n{code_block(text, language)}"


def code_block(text: str, language: str = "") -> str:
    """A fenced block; its fence is longer than those in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def notebook_parts(notebook: dict[str, Any]) -> Iterator[str]:
    """Markdown of the cells of a notebook and of their outputs."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else code_block(source, "python")
        for output in cell.get("outputs", []):
            yield f'<div class="notebook-output">{as_html(output)}</div>'


def as_html(output: dict[str, Any]) -> str:
    """A picture, or the text, of a notebook's output."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        picture = "".join(data["image/png"]).strip()
        return f'<img alt="figure" src="data:image/png;base64,{picture}">'
    return f"<pre>{escape(''.join(data['text/plain']))}</pre>"


def reference(name: str) -> str:
    """The page of a package: its text, then each module; "ftcore" has the modules outside of packages."""
    folder = ROOT / "ftcore" / name
    modules = TOP_LEVEL if name == "ftcore" else sorted(path.stem for path in folder.glob("[a-z]*.py"))
    package = "ftcore" if name == "ftcore" else f"ftcore.{name}"
    blocks = [f"::: {package}.{module}" for module in modules]
    overview = f"::: {package}\n    options: {{members: false, show_root_heading: false}}"
    searched_after_the_book = "---\nsearch: {boost: 0.5}\n---"
    return "\n\n".join([searched_after_the_book, f"# {package}", overview, *blocks])


@cache
def explore(name: str) -> str:
    """The explore page of a small text."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "page.html"
        command = [sys.executable, "-m", "ftcore.explore", *shlex.split(EXPLORED[name]), "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return out.read_text(encoding="utf-8")


def explored() -> str:
    """The page that embeds the explore pages."""
    parts = [
        "# Explore pages",
        "What two small checkpoints compute. [Explore](explore.md) explains the page.",
    ]
    for name, options in EXPLORED.items():
        parts += [f"## {name}", code_block(f"python -m ftcore.explore {options}", "bash")]
        parts.append(f"[In a window of its own](explored/{name}.html)")
        parts.append(f'<iframe src="explored/{name}.html" title="explore page"></iframe>')
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------ check


def on_post_build(config: Any) -> None:
    """Check that the HTML loads nothing from the network, and that each link in it leads to a file.

    Raises:
        PluginError: names the pages and their links.
    """
    site = Path(config.site_dir)
    wrong = []
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'(?:src=|<link [^>]*href=)"((?:https?:)?//[^"]+)', html)
        local = re.findall(r'(?:src|href)="(?!\w+:|/)([^"#?]+)', html)
        wrong += [f"{page.relative_to(site)}: {link}" for link in loaded]
        wrong += [f"{page.relative_to(site)}: {link}" for link in local if not (page.parent / link).exists()]
    if wrong:
        from mkdocs.exceptions import PluginError

        raise PluginError("loaded from the network, or no such file:\n" + "\n".join(wrong))
