"""The page is one file that loads nothing, and no token becomes markup."""

import base64
import hashlib
import json
import re
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.explorer.page import SCRIPTS, as_html, record_page
from ftcore.explorer.recorder import Search
from ftcore.explorer.serialize import to_json

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "{{ script }}",
    "\u2028 \u2029 \x00 \u202e",
    "👩\u200d💻 مرحبا",
    "x" * 10_000,
]


class Elements(HTMLParser):
    """The parsed page: elements with their attributes, and the contents of scripts, styles and the title."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.inside = {}
        self.current = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.current = dict(attributes).get("id", tag) if tag in ("script", "style", "title") else None

    def handle_endtag(self, tag):
        self.current = None

    def handle_data(self, data):
        if self.current is not None:
            self.inside[self.current] = self.inside.get(self.current, "") + data


@pytest.fixture(scope="module")
def content(family):
    search = Search(max_new_tokens=3, num_beams=2)
    return record_page(
        family.model, family.tokenizer, family.directory, family.text, family.other, search, live=False
    )


def test_the_page_loads_nothing(content):
    page = Elements(as_html(content))
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset")
    ]
    assert set(addresses) == {"data:,", "#panels"}
    assert "url(" not in page.inside["style"] and "@import" not in page.inside["style"]
    assert not re.search(
        r"\b(import|eval|Function)\s*\(|innerHTML|outerHTML|insertAdjacent|document\.write",
        page.inside["script"],
    )


def test_the_policy_allows_only_this_script(content):
    page = Elements(as_html(content))
    (policy,) = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv")]
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe" not in policy
    assert "connect-src 'self'" in as_html(content | {"live": True})


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_on_standard_error(family, progress, capfd):
    search = Search(max_new_tokens=3, num_beams=2)
    record_page(
        family.model, family.tokenizer, "", family.text, family.other, search, live=False, progress=progress
    )
    out, err = capfd.readouterr()
    assert out == ""
    for stage in ("searches", "activations", "ablations of single heads", "patches of the residual stream"):
        assert (f"{stage}: " in err) == progress, stage
    assert progress or err == ""


def test_the_page_embeds_the_recording(content):
    assert json.loads(Elements(as_html(content)).inside["content"]) == json.loads(to_json(content))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(HOSTILE) | st.text(max_size=30))
def test_no_token_and_no_name_becomes_markup(content, text):
    plain = Elements(as_html(content))
    changed = content | {
        "model": content["model"] | {"name": text},
        "recording": content["recording"] | {"text": text, "pieces": {"1": text}},
    }
    hostile = Elements(as_html(changed))
    assert len(hostile.inside["title"]) <= len(text) + len("Inside ")
    assert hostile.elements == plain.elements
    assert hostile.inside["script"] == plain.inside["script"]
    assert json.loads(hostile.inside["content"])["recording"]["pieces"]["1"] == text


def test_all_page_files_are_packaged():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    (packaged,) = config["options.package_data"]["ftcore.explorer"].split(",")
    package = ROOT / "ftcore" / "explorer"
    files = {path for path in package.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files == set(package.glob(packaged))
    scripts = {path.stem for path in files if path.suffix == ".js"}
    assert scripts == set(SCRIPTS)
