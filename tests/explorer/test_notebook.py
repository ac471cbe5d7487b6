"""`show` displays the page in a frame of a notebook, where it starts without errors and can be used."""

import os
import subprocess
import sys

import pytest

from ftcore.explorer import show

SEARCH = {"max_new_tokens": 3, "num_beams": 2}


@pytest.fixture
def page(family):
    return show(family.model, family.tokenizer, family.text, family.other, height=700, **SEARCH)


@pytest.fixture
def visit(browser, page, tmp_path):
    """A tab with a document around the page, as a notebook has it; the frame, and the errors of both."""
    path = tmp_path / "notebook.html"
    path.write_text(
        f"<!DOCTYPE html><meta charset=utf-8><p>Out[1]:</p>{page._repr_html_()}", encoding="utf-8"
    )
    context = browser.new_context()
    tab, errors = context.new_page(), []
    tab.on("console", lambda message: message.type in ("error", "warning") and errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(path.as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached")
    yield tab, frame
    tab.wait_for_timeout(300)  # the page writes its address, where it has one, after 150 ms
    context.close()
    assert errors == []


def test_the_page_starts_in_a_frame_and_answers_a_click(visit, family):
    _, frame = visit
    assert frame.locator("#model-name").inner_text() == {"gpt2": "GPT-2", "t5": "T5"}[family.name]
    frame.get_by_role("tab", name="Next token").click()
    frame.get_by_role("heading", name="After").wait_for()
    position = int(frame.locator("#position-text").inner_text().split()[0])
    frame.locator("#forward").click()
    frame.locator("#position-text", has_text=f"{position + 1} of").wait_for()


def test_a_frame_has_no_address_to_copy(visit):
    _, frame = visit
    assert frame.locator("#copy-link").is_hidden()


def test_the_page_cannot_reach_the_notebook(visit):
    tab, _ = visit
    assert tab.frames[1].evaluate("origin") == "null"


def test_show_needs_no_notebook(page, family):
    assert "<iframe" in page._repr_html_() and "height: 700px" in page._repr_html_()
    assert page.html.startswith("<!DOCTYPE html>")
    assert len(repr(page)) < 100
    with pytest.raises(TypeError, match="beams"):
        show(family.model, family.tokenizer, family.text, beams=3)


def test_the_limits_of_a_page_are_read_without_torch():
    code = "import sys, ftcore.explorer; assert ftcore.explorer.MAX_BEAMS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
