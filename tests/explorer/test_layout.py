"""The page where space or color is scarce: long texts, phones, zoom, print, dark colors. In Chromium."""

import json
import re
import zlib

import pytest

from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search
from ftcore.explorer.serialize import to_json
from tests.helpers.browser import Visit

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def content(family):
    """The recording of a page, as the page reads it."""
    return record_content(family, family.text, family.other)


def record_content(family, text, other=None):
    search = Search(max_new_tokens=3, num_beams=2)
    return json.loads(
        to_json(record_page(family.model, family.tokenizer, "tiny", text, other, search, live=False))
    )


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a recorded page; its errors fail the test."""
    tabs = []

    def open_page(content, address="", **options):
        path = tmp_path / f"{len(tabs)}.html"
        path.write_text(as_html(content), encoding="utf-8")
        tabs.append(Visit(browser, path.as_uri() + address, **options))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.context.close()
        assert tab.errors == []


def open_head(tab, content, block=0):
    """Open head 0 of the decoder's self-attention."""
    prefix = "decoder." if content["model"]["family"] == "T5" else ""
    tab.click(f'[data-part="{prefix}attn.{block}"] .head')


def ink(tab, selector, left=0, top=0):
    """The number of pixels drawn on a canvas, right of `left` and below `top`."""
    return tab.page.locator(selector).evaluate(
        """(canvas, [left, top]) => {
          const { width, height } = canvas;
          const copy = Object.assign(document.createElement("canvas"), { width, height });
          const context = copy.getContext("2d", { willReadFrequently: true });
          context.drawImage(canvas, 0, 0);
          const { data } = context.getImageData(left, top, width - left, height - top);
          return data.filter((value, i) => i % 4 === 3 && value > 0).length;
        }""",
        [left, top],
    )


def box(tab, selector):
    return tab.page.locator(selector).first.bounding_box()


def test_the_map_of_a_phone_scrolls_with_labels(visit, family):
    content = record_content(family, family.text * 4)
    tab = visit(content, viewport=PHONE)
    part = "encoder.attn.0" if content["model"]["family"] == "T5" else "attn.0"
    tab.click(f'[data-part="{part}"] .head')
    assert box(tab, ".cells")["height"] >= 14 * len(content["recording"]["source"][0])
    assert ink(tab, ".row-labels") and ink(tab, ".column-labels")
    scroller = tab.page.locator(".map .scroller")
    assert scroller.evaluate("(node) => node.scrollWidth > node.clientWidth")
    scroller.evaluate("(node) => (node.scrollLeft = 150)")
    assert box(tab, ".row-labels")["x"] == pytest.approx(box(tab, ".map .scroller")["x"], abs=1)
    assert box(tab, ".cells")["x"] < box(tab, ".row-labels")["x"]
    # Arrow keys scroll to the cell that they move to.
    tab.page.locator(".cells canvas").first.focus()
    count = len(content["recording"]["source"][0]) + 2  # with the tokens that GPT-2 adds
    tab.press(*["ArrowRight"] * count)
    cells, seen = box(tab, ".cells"), box(tab, ".map .scroller")
    assert cells["x"] + cells["width"] <= seen["x"] + seen["width"] + 1
    tab.press(*["ArrowLeft"] * count)
    assert scroller.evaluate("(node) => node.scrollLeft") == 0


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_long_labels_are_not_clipped_at_the_right(visit, content, width):
    pieces = content["recording"]["pieces"] | dict.fromkeys(content["recording"]["pieces"], "W" * 20)
    wide = content | {"recording": content["recording"] | {"pieces": pieces}, "pieces": {}, "other": None}
    tab = visit(wide, viewport={"width": width, "height": 800})
    open_head(tab, content)
    cells, edge = box(tab, ".cells")["width"], box(tab, ".column-labels")["width"]
    assert ink(tab, ".column-labels", left=round(cells)) > 0
    assert ink(tab, ".column-labels", left=round(edge) - 1) == 0


def test_zoom_to_twice_the_size_loses_nothing(visit, content):
    """A window of 1280 by 900 pixels at 200%."""
    tab = visit(content, viewport={"width": 640, "height": 450}, device_scale_factor=2)
    open_head(tab, content)
    assert ink(tab, ".row-labels") and ink(tab, ".column-labels")
    for view in ("attention", "next", "lens", "beams", "interventions"):
        tab.click(f"#tab-{view}")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 640, view
        hidden = tab.page.locator("#panel .scroller").evaluate_all(
            "(nodes) => nodes.map((node) => node.scrollHeight - node.clientHeight)"
        )
        assert set(hidden) <= {0}, view


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
@pytest.mark.parametrize("length", [25, 60, 100])
def test_every_row_and_a_label_is_shown_of_a_long_text(visit, family, length):
    content = record_content(family, ("Ada sews. Bea runs. " * 9)[:length])
    tab = visit(content, viewport={"width": 900, "height": 500})
    open_head(tab, content)
    scroller = tab.page.locator(".map .scroller")
    assert scroller.evaluate("(node) => node.scrollHeight - node.clientHeight") == 0
    shown, rows = box(tab, ".cells"), length + 2
    assert shown["height"] / rows == pytest.approx(shown["width"] / rows)  # a weight is a square
    for labels in (".row-labels", ".column-labels"):
        assert ink(tab, labels) > 100
    assert ink(tab, ".row-labels", top=round(shown["height"] - 3 * shown["height"] / rows - 20)) > 0


def test_bars_are_printed_in_light_colors(visit, content):
    tab = visit(content, "#tab=next", color_scheme="dark")
    bars = tab.page.locator(".measure i").count()
    streams = re.findall(rb"stream\r?\n(.*?)endstream", tab.page.pdf(), re.DOTALL)
    drawn = b"".join(zlib.decompress(stream) for stream in streams if stream.startswith(b"x"))
    accent = tuple(int(digits, 16) / 255 for digits in ("25", "63", "c9"))  # --accent of the light theme
    fills = [tuple(map(float, color.split())) for color in re.findall(rb"([\d.]+ [\d.]+ [\d.]+) rg", drawn)]
    assert bars >= 20
    assert sum(color == pytest.approx(accent, abs=1e-3) for color in fills) >= bars
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"  # on the screen again


@pytest.mark.parametrize(
    ("width", "view"), [(390, "attention"), (1280, "lens"), (1280, "beams"), (390, "interventions")]
)
def test_paper_shows_everything(visit, family, width, view):
    content = record_content(family, family.text * 3, family.other * 3)
    part = "encoder.attn.0" if content["model"]["family"] == "T5" else "attn.0"
    tab = visit(content, f"#tab={view}&part={part}", viewport={"width": width, "height": 700})
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.page.emulate_media(media="print")
    tab.page.set_viewport_size({"width": 703, "height": 300})  # A4 within the margins, and lower than it
    tab.settle()
    cut = tab.page.evaluate(
        """() => [...document.querySelectorAll("main *, footer")]
          .filter((node) => !node.closest("svg, .token, button"))
          .filter((node) => {
            const hides = getComputedStyle(node).overflowY !== "visible";
            const isCut = hides && node.scrollHeight > node.clientHeight + 1;
            return isCut || node.getBoundingClientRect().right > 704;
          }).map((node) => node.outerHTML.slice(0, 200))"""
    )
    assert cut == []
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.page.evaluate("document.documentElement.className") == ""
