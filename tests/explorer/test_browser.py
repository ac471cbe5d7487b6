"""The page in Chromium: its numbers equal the model's, its controls work, and no token becomes markup.

Skipped without Chromium or Playwright.
"""

import json
import threading
from types import SimpleNamespace

import pytest
import torch

from ftcore.decoding import generate
from ftcore.explorer.interventions import ActivationPatch, Baseline, HeadAblation, outcome
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search, all_heads, decoder_logits
from ftcore.explorer.serialize import to_json
from ftcore.explorer.server import Server, Session
from ftcore.study import logit_lens, record
from tests.helpers.browser import Visit
from tests.helpers.packed_arrays import unpack

SEARCH = Search(max_new_tokens=4, num_beams=3)


@pytest.fixture(scope="module")
def recorded(family, tmp_path_factory):
    """A page on disk, with the source and the greedy answer of its text."""
    content = record_page(
        family.model, family.tokenizer, "tiny", family.text, family.other, SEARCH, live=False
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(as_html(content), encoding="utf-8")
    source = torch.tensor(content["recording"]["source"])
    ids = generate(family.model, source, max_new_tokens=4)[0]
    return SimpleNamespace(
        address=path.as_uri(),
        content=json.loads(to_json(content)),
        source=source,
        ids=ids,
        prefix="" if family.name == "gpt2" else "decoder.",
    )


@pytest.fixture
def visit(browser, recorded):
    tab = Visit(browser, recorded.address)
    yield tab
    tab.context.close()
    assert tab.errors == []
    assert {url.partition(":")[0] for url in tab.requests} <= {"file", "data"}


def activations(family, recorded, *names):
    with torch.no_grad(), record(family.model, *names) as acts:
        logits = decoder_logits(family.model, recorded.source, recorded.ids[:-1])
    return logits, acts


def test_a_head_shows_its_attention_weights(visit, family, recorded):
    names = [f"{recorded.prefix}pattern.1"] + (
        ["cross.pattern.2", "encoder.pattern.0"] if recorded.prefix else []
    )
    _, acts = activations(family, recorded, *names)
    for name in names:
        weights = acts[name][0, 1]  # (T, S) of head 1
        side = (
            "Encoder input" if name.startswith("encoder") else "Decoder input" if recorded.prefix else "Input"
        )
        visit.click(f'[data-part="{name.replace("pattern", "attn")}"] .head >> nth=1')
        for query in (0, weights.shape[0] - 1):
            visit.click(f'[aria-label*="{side}"] button >> nth={query}')
            shown = visit.rows(".weights table")
            strongest = weights[query].argmax().item()
            assert (
                int(shown[0]["cells"][0]) == strongest
                or weights[query, int(shown[0]["cells"][0])] > 0.98 * weights[query].max()
            )
            for row in shown:
                expected = weights[query, int(row["cells"][0])].item()
                assert abs(row["bar"] - expected) < expected**0.5 / 255 + 0.001
            assert "head 1: from" in visit.text("#reading") and f"({query})" in visit.text("#reading")


def test_pointing_at_a_token_colors_its_keys(visit, family, recorded):
    name = "cross.pattern.0" if recorded.prefix else "pattern.0"
    _, acts = activations(family, recorded, name)
    visit.click(f'[data-part="{name.replace("pattern", "attn")}"] .head')
    visit.page.locator('[aria-label*="nput and output"] button >> nth=1').hover()
    visit.settle()
    keys = "Encoder input" if recorded.prefix else "Input and output"
    shown = visit.page.locator(f'[aria-label="{keys}"] button').evaluate_all(
        '(nodes) => nodes.map((node) => Number(node.style.getPropertyValue("--weight")))'
    )
    expected = acts[name][0, 0, 1].sqrt()
    for key, level in enumerate(expected.tolist()):
        assert abs(shown[key] - level) < 0.004


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_the_strongest_mark_of_cross_attention_is_the_largest_weight(visit, family, recorded):
    """The current token of the encoder is underlined only: it is not a query of this head."""
    _, acts = activations(family, recorded, "cross.pattern.0")
    weights = acts["cross.pattern.0"][0, 0, 1]  # (S,)
    weakest = weights.argmin().item()
    visit.click('[data-part="cross.attn.0"] .head')
    visit.click(f'[aria-label="Encoder input"] button >> nth={weakest}')
    visit.click('[aria-label="Decoder input and output"] button >> nth=1')
    visit.page.mouse.move(0, 0)
    visit.settle()
    marks = """(nodes) => nodes.map((node) => {
      const style = getComputedStyle(node);
      const shade = Number(style.backgroundColor.match(/([\\d.]+)\\)$/)[1]);
      return [shade, style.outlineStyle, style.fontWeight];
    })"""
    source = visit.page.locator('[aria-label="Encoder input"] button').evaluate_all(marks)
    shades = [shade for shade, _, _ in source]
    assert shades.index(max(shades)) == weights.argmax() and shades.index(min(shades)) == weakest
    assert {(outline, weight) for _, outline, weight in source} == {("none", "400")}
    target = visit.page.locator('[aria-label="Decoder input and output"] button').evaluate_all(marks)
    assert [outline for _, outline, _ in target].index("solid") == 1
    visit.click('[data-part="encoder.attn.0"] .head')  # now it is the query
    source = visit.page.locator('[aria-label="Encoder input"] button').evaluate_all(marks)
    assert [outline for _, outline, _ in source].index("solid") == weakest


def test_a_character_is_shown_on_each_of_its_tokens(browser, family, tmp_path):
    content = record_page(family.model, family.tokenizer, "tiny", "I 😀", None, SEARCH, live=False)
    path = tmp_path / "page.html"
    path.write_text(as_html(content), encoding="utf-8")
    part = "encoder.attn.0" if family.name == "t5" else "attn.0"
    tab = Visit(browser, f"{path.as_uri()}#part={part}&src=4&at=4")
    tokens = tab.page.locator(".stream-of-tokens").first.locator("button").all_inner_texts()
    assert tokens[:6] == ["I", "␣", "😀 1/4", "😀 2/4", "😀 3/4", "😀 4/4"]
    assert "from ‘\u2068😀 3/4\u2069’ (4)" in tab.text("#reading")
    assert "😀 3/4" in tab.text(".weights caption")
    tab.context.close()
    assert tab.errors == []


def test_the_heatmap_reads_out_a_weight(visit, family, recorded):
    name = f"{recorded.prefix}pattern.0"
    _, acts = activations(family, recorded, name)
    visit.click(f'[data-part="{name.replace("pattern", "attn")}"] .head')
    visit.page.locator(".map canvas").first.focus()
    visit.press(*["ArrowUp"] * recorded.ids.shape[0], "ArrowDown", "ArrowRight")
    expected = acts[name][0, 0, 1, 1].item()
    readout = visit.text(".map p")
    assert (
        "(1) to" in readout
        and abs(float(readout.rpartition(": ")[2]) - expected) < expected**0.5 / 250 + 0.005
    )
    assert visit.state()["at"] == "1"


def test_all_heads_and_feed_forward_layers_can_be_shown(visit, recorded):
    part = f'[data-part="{recorded.prefix}attn.0"]'
    visit.click(f"{part} .name")
    assert visit.page.locator(".small-maps button").count() == 2
    visit.click(".small-maps button >> nth=1")
    assert visit.text("#panel h3").endswith("head 1")
    visit.click(f'[data-part="{recorded.prefix}mlp.1"] .name')
    assert visit.text("#panel h3").endswith("feed-forward")
    norms = unpack(recorded.content["recording"]["runs"][0]["output_norms"][f"{recorded.prefix}mlp.1"])
    shown = [float(row["cells"][3]) for row in visit.rows("#panel table")]
    assert shown == pytest.approx(norms.tolist(), rel=0.06)


@pytest.mark.parametrize(("temperature", "k"), [(1.0, 0), (0.3, 0), (1.7, 5)])
def test_next_token_probabilities_follow_the_sliders(visit, family, recorded, temperature, k):
    logits, _ = activations(family, recorded, f"{recorded.prefix}pattern.0")
    at = len(recorded.ids) - 3
    visit.click("#tab-next")
    visit.set("#position", at)
    visit.set("#temperature", round(temperature * 10) - 1)
    visit.set("#top-k", {0: 17, 5: 4}[k])
    scores = logits[at] / temperature
    if k:
        scores = scores.masked_fill(scores < scores.topk(k).values[-1], -torch.inf)
    expected = scores.softmax(-1)
    shown = [row for row in visit.rows("#panel table") if row["cells"][0]]
    assert len(shown) >= (k or 20)
    for row in shown:
        assert abs(row["bar"] - expected[row["token"]].item()) < 1e-4
    assert shown[0]["token"] == expected.argmax()
    assert visit.state()["temperature"] == str(temperature).removesuffix(".0")


def test_the_lens_equals_logit_lens(visit, family, recorded):
    read = recorded.ids[None, :-1]
    inputs = (recorded.source, None, read) if recorded.prefix else (read,)
    lens = logit_lens(family.model, *inputs)[:, 0].softmax(-1)  # (L, T, V)
    visit.click("#tab-lens")
    cells = visit.page.locator("#lens-grid td button").evaluate_all(
        '(nodes) => nodes.map((node) => [node.dataset.key, Number(node.style.getPropertyValue("--weight"))])'
    )
    assert len(cells) == lens.shape[0] * lens.shape[1]
    for key, share in cells:
        block, position = map(int, key.split())
        assert abs(share - lens[block, position].max().item()) < 1e-3
    visit.click('#lens-grid [data-key="0 1"]')
    shown = visit.rows("#panel > table")
    top = lens[0, 1].topk(5)
    assert [row["bar"] for row in shown] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert [row["token"] for row in shown] == top.indices.tolist()


def test_the_buttons_step_through_generation(visit, family, recorded):
    first = visit.page.locator("#position").input_value()
    visit.click("#forward")
    assert int(visit.page.locator("#position").input_value()) == int(first) + 1
    visit.click("#back")
    assert visit.page.locator("#position").input_value() == first
    visit.set("#position", len(recorded.ids) - 2)
    assert visit.page.locator("#forward").is_disabled()
    visit.click('#runs input[value="2"]')
    beams = generate(family.model, recorded.source, max_new_tokens=4, num_beams=3)[0]
    assert visit.page.locator('[aria-label*="nput and output"] button').count() == len(beams)


def test_playing_stops_at_the_end(visit, recorded):
    visit.page.clock.install()
    visit.click("#play")
    assert visit.page.locator("#play").get_attribute("aria-label") == "Stop"
    visit.page.clock.run_for(700 * 8)
    visit.page.wait_for_function(
        '() => document.getElementById("play").getAttribute("aria-label") === "Play"'
    )
    assert visit.page.locator("#position").input_value() == str(len(recorded.ids) - 2)


def test_the_beam_tree_has_every_candidate(visit, family, recorded):
    visit.click("#tab-beams")
    steps = recorded.content["recording"]["beams"]
    assert visit.page.locator(".beams button").count() == sum(map(len, steps))
    for status in ("running", "finished", "pruned", "displaced"):
        expected = sum(candidate["status"] == status for step in steps for candidate in step)
        assert visit.page.locator(f".beams button.{status}").count() == expected
    answer = generate(family.model, recorded.source, max_new_tokens=4, num_beams=3)[0]
    length = 1 if recorded.prefix else recorded.source.shape[1]
    assert visit.page.locator(".beams button.best").count() == len(answer) - length
    visit.click(".beams button >> nth=1")
    assert f"Score {steps[0][1]['score']:.2f}" in visit.text("#panel")
    visit.click("#panel summary")
    assert len(visit.rows("#panel details table")) == sum(map(len, steps))


def test_beams_that_run_in_the_last_step_are_unfinished(browser, recorded, tmp_path):
    content = json.loads(to_json(recorded.content))
    steps = content["recording"]["beams"]
    steps.pop()  # as in a search that ends before the maximum length
    path = tmp_path / "page.html"
    path.write_text(as_html(content), encoding="utf-8")
    tab = Visit(browser, f"{path.as_uri()}#tab=beams")
    counts = [sum(candidate["status"] == "running" for candidate in step) for step in steps]
    assert tab.page.locator(".beams button.unfinished").count() == counts[-1] > 0
    assert tab.page.locator(".beams button.running").count() == sum(counts[:-1])
    tab.click(".beams button.unfinished")
    assert "unfinished when the search ended" in tab.text("#panel")
    tab.context.close()
    assert tab.errors == []


def test_ablating_a_head_changes_the_answer(visit, family, recorded):
    baseline = Baseline(recorded.source, recorded.ids, max_new_tokens=4)
    name = f"{recorded.prefix}z.1"
    logits, _ = activations(family, recorded, f"{recorded.prefix}pattern.0")
    first = 0 if recorded.prefix else recorded.source.shape[1] - 1
    answer = recorded.ids[first + 1 :]
    before = logits[first:].log_softmax(-1).gather(1, answer[:, None])[:, 0]
    visit.click("#tab-interventions")
    for head in range(2):
        expected = outcome(family.model, baseline, [HeadAblation(name, head)])
        after = expected["log_probs"]
        visit.click(f'[data-key="{name}:{head}"]')
        shown = visit.text(f'[data-key="{name}:{head}"]')
        assert float(shown.replace("·", "0")) == pytest.approx(
            (before - after).sum().item(), abs=0.051, rel=0.06
        )
        bars = [row["bar"] for row in visit.rows(".result table")]
        assert bars == pytest.approx(after.exp().tolist(), abs=1e-4)
        assert visit.page.locator("#answer-is .token").count() == len(expected["ids"])
        assert "ablated" in visit.text(".result")
    visit.click("#undo")
    assert "No intervention" in visit.text(".result")


def test_patching_from_the_second_text_changes_the_answer(visit, family, recorded):
    other = torch.tensor(recorded.content["other"]["source"])
    baseline = Baseline(recorded.source, recorded.ids, other, max_new_tokens=4)
    name = "encoder.resid_post.0" if recorded.prefix else "resid_post.0"
    expected = outcome(family.model, baseline, [ActivationPatch(name, 0, 0)])
    visit.click("#tab-interventions")
    visit.click(f'[data-key="{name}@0<0"]')
    bars = [row["bar"] for row in visit.rows(".result table")]
    assert bars == pytest.approx(expected["log_probs"].exp().tolist(), abs=1e-4)
    step = [row["bar"] for row in visit.rows("#next-now")]
    at = int(visit.page.locator("#position").input_value()) - (
        0 if recorded.prefix else recorded.source.shape[1] - 1
    )
    assert step == pytest.approx(expected["next_log_probs"][at].exp().tolist(), abs=1e-4)


def test_the_url_restores_the_state(visit, browser, recorded):
    visit.click(f'[data-part="{recorded.prefix}attn.1"] .head')
    visit.click("#forward")
    visit.click("#tab-lens")
    visit.click("#theme")
    saved = visit.state()
    assert saved["part"] == f"{recorded.prefix}attn.1" and saved["tab"] == "lens" and saved["theme"] == "dark"
    restored = Visit(browser, visit.page.url)
    assert restored.state() == saved
    assert restored.page.locator("#tab-lens").get_attribute("aria-selected") == "true"
    assert restored.page.evaluate("document.documentElement.dataset.theme") == "dark"
    # Invalid values are clamped.
    restored.go(
        recorded.address
        + "?#run=99&at=-5&src=x&part=__proto__&head=1e9&tab=constructor&temperature=NaN&k=-1"
        + "&interventions=a:b;z@"
    )
    assert restored.page.locator("#tab-attention").get_attribute("aria-selected") == "true"
    assert restored.errors == []
    restored.context.close()


def test_the_keyboard_reaches_everything(visit, recorded):
    stops = []
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        stops.append(visit.page.evaluate("document.activeElement.closest('[id]')?.id ?? ''"))
        if stops[-1] == "panel":
            break
    assert [
        name for name in ("skip", "theme", "runs", "position", "tokens", "stacks") if name not in stops
    ] == []
    assert len(stops) < 30  # tokens and heads are one stop each
    visit.page.locator('[aria-label*="nput and output"] button[tabindex="0"]').focus()
    visit.press("Home", "ArrowRight", "Enter")
    assert visit.page.locator("#position").input_value() == "1"
    ring = """(() => {
      const style = getComputedStyle(document.activeElement);
      return [style.outlineStyle, style.outlineWidth];
    })()"""
    assert visit.page.evaluate(ring) == ["solid", "3px"]  # the frame of the query is thinner
    visit.page.locator("#tab-attention").focus()
    visit.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert visit.page.evaluate("document.activeElement.id") == "tab-lens"
    assert visit.page.evaluate(ring) == ["solid", "3px"]


def test_every_control_has_an_accessible_name(visit):
    for tab in ("attention", "computation", "next", "lens", "beams", "interventions"):
        visit.click(f"#tab-{tab}")
        nameless = visit.page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, canvas, [role=img]")]
              .filter((node) => !node.closest("[aria-hidden=true]") && !node.textContent.trim() &&
                !node.getAttribute("aria-label") && !node.closest("label")).map((node) => node.outerHTML)"""
        )
        assert nameless == [], tab


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(browser, recorded, theme):
    phone = Visit(browser, recorded.address, viewport={"width": 360, "height": 740}, color_scheme=theme)
    for tab in ("attention", "computation", "next", "lens", "beams", "interventions"):
        phone.click(f"#tab-{tab}")
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360, tab
    assert phone.page.evaluate("document.documentElement.dataset.theme") == theme
    assert phone.errors == []
    phone.context.close()


def test_it_works_without_a_network(browser, recorded):
    offline = Visit(browser, recorded.address, offline=True)
    offline.click("#tab-next")
    assert offline.rows("#panel table")
    assert offline.errors == []
    offline.context.close()


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    " مرحبا بالعالم",
    "👩\u200d💻🏳️\u200d🌈",
    "x" * 10_000,
    "\u2028",
    "\u202eabc",
    "javascript:alert(1)",
]


def test_hostile_tokens_are_text(browser, family, recorded, tmp_path):
    content = json.loads(to_json(recorded.content))
    shown = dict.fromkeys(content["recording"]["pieces"])
    for place, token in enumerate(shown):
        shown[token] = HOSTILE[place % len(HOSTILE)]
    content["recording"]["pieces"] = content["pieces"] = content["other"]["pieces"] = shown
    content["recording"]["text"] = content["model"]["name"] = HOSTILE[0]
    path = tmp_path / "hostile.html"
    path.write_text(as_html(content), encoding="utf-8")
    tab = Visit(browser, path.as_uri(), viewport={"width": 800, "height": 700})
    for name in ("attention", "computation", "next", "lens", "beams", "interventions"):
        tab.click(f"#tab-{name}")
        assert (
            tab.page.evaluate("document.querySelectorAll('script, img, iframe, object, embed').length") == 1
        )
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 800
    buttons = tab.page.locator('[aria-label*="nput and output"] button')
    texts = buttons.evaluate_all("(nodes) => nodes.map((node) => node.textContent)")
    for text, token in zip(texts, recorded.ids.tolist(), strict=True):
        expected = shown[str(token)]
        assert text == (expected if len(expected) <= 60 else expected[:60] + "…").lstrip()
    assert tab.text("#model-name") == HOSTILE[0]
    assert tab.errors == []
    tab.context.close()


@pytest.fixture
def served(family):
    content = record_page(
        family.model, family.tokenizer, "tiny", family.text, family.other, SEARCH, live=True
    )
    with Server(as_html(content), Session(family.model, family.tokenizer), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()
        server.session.close()  # a request whose client has gone may still hook the shared model


def test_a_live_page_requests_what_it_lacks(browser, family, recorded, served):
    tab = Visit(browser, served)
    # Two ablations combined.
    tab.click("#tab-interventions")
    tab.click("#combine")
    changes = [HeadAblation(f"{recorded.prefix}z.1", 0), HeadAblation(f"{recorded.prefix}z.0", 1)]
    for change in changes:
        tab.click(f'[data-key="{change.z}:{change.head}"]')
    tab.page.wait_for_selector(".result table")
    baseline = Baseline(recorded.source, recorded.ids, max_new_tokens=4)
    expected = outcome(family.model, baseline, changes)["log_probs"].exp().tolist()
    assert [row["bar"] for row in tab.rows(".result table")] == pytest.approx(expected, abs=1e-4)
    # The sweeps, without being asked for.
    for grid in ("head-ablations", "activation-patches"):
        tab.page.wait_for_function(
            f'() => [...document.querySelectorAll("#{grid} button")].every((it) => it.textContent !== "?")'
        )
        assert tab.page.locator(f"#{grid} button").count() > 0
    before = outcome(family.model, baseline, [])["log_probs"].sum()
    for name, head in all_heads(family.model):
        after = outcome(family.model, baseline, [HeadAblation(name, head)])["log_probs"].sum()
        shown = tab.text(f'[data-key="{name}:{head}"]').replace("·", "0")
        assert float(shown) == pytest.approx((before - after).item(), abs=0.051, rel=0.06)
    # Another text.
    tab.click("#form summary")
    tab.page.locator('textarea[name="text"]').fill("Zoe <b>runs</b>")
    tab.click("#form button.primary")
    tab.page.wait_for_function('() => document.getElementById("tokens").textContent.includes("Z")')
    source = torch.tensor([family.tokenizer.encode("Zoe <b>runs</b>")])
    count = generate(family.model, source, max_new_tokens=4).shape[1]
    assert tab.page.locator('[aria-label*="nput and output"] button').count() == count
    assert tab.errors == []
    # A URL with a text is recorded when opened.
    address = tab.state() and tab.page.url
    assert "Zoe" in address
    restored = Visit(browser, address)
    assert restored.page.locator('[aria-label*="nput and output"] button').count() == count
    assert restored.errors == []
    # An error of the server is shown on the page.
    tab.page.locator('textarea[name="text"]').fill("x" * 10_000)
    tab.click("#form button.primary")
    tab.page.wait_for_selector("#error:not([hidden])")
    assert "tokens, expected at most" in tab.text("#error")
    assert all("400 (Bad Request)" in error for error in tab.errors)  # logged by the browser
    restored.context.close()
    tab.context.close()


def test_the_tour_of_a_live_page_is_about_its_current_text(browser, family, served):
    tab = Visit(browser, served)
    tab.click("#start")
    first = tab.text("#tour-text")
    tab.click("#form summary")
    tab.page.locator('textarea[name="text"]').fill("Zoe runs")
    tab.click("#form button.primary")
    tab.page.wait_for_selector("#tour", state="hidden")
    tab.click("#start")
    count = len(family.tokenizer.encode("Zoe runs"))
    assert f"reads {count} tokens" in tab.text("#tour-text") and f"reads {count} tokens" not in first
    assert int(tab.text("#tour-count").split()[-1]) == 8  # interventions are not measured
    address = tab.state() and tab.page.url
    opened = Visit(browser, address)
    assert f"reads {count} tokens" in opened.text("#tour-text")
    assert tab.errors == opened.errors == []
    opened.context.close()
    tab.context.close()
