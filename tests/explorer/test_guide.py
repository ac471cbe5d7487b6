"""The tour and the "?" of the page: each stop opens what its sentence says, and the sentence is true.

What the sentences claim is computed here from the model, for the default pages and a tiny random model.
"""

import re
from types import SimpleNamespace

import pytest
import torch

from ftcore import explore
from ftcore.analysis.inputs import num_heads
from ftcore.decoding import generate
from ftcore.explorer.interventions import Baseline, every_activation_patch, every_head_ablation
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import (
    Search,
    all_heads,
    decoder_logits,
    greedy_search,
    prompt_length,
    source_ids,
    stacks,
)
from ftcore.study import logit_lens, record
from ftcore.training.inputs import load_checkpoint
from tests.helpers import tiny_checkpoints as tiny
from tests.helpers.browser import Visit

QUOTED = re.compile("‘\u2068(.*?)\u2069’", re.DOTALL)
PERCENT = re.compile(r"(< )?([\d.]+) %")
NAMES = ["The text", "The next token", "The residual stream", "The logit lens"]
GPT2_PROMPT, GPT2_OTHER = "Emotion: i feel", "Emotion: i want"


@pytest.fixture(scope="module", params=["t5-mini-qa", "gpt2-mini", "tiny gpt2"])
def shown(request, tmp_path_factory):
    """A page's address, its model, and what the page records of it: source, greedy ids, second source."""
    directory, text, other, search = {
        "t5-mini-qa": ("weights/t5-mini-qa", explore.DEFAULT_PROMPT, explore.DEFAULT_OTHER, Search()),
        "gpt2-mini": ("weights/gpt2-mini", GPT2_PROMPT, GPT2_OTHER, Search()),
        "tiny gpt2": (
            "gpt2_directory",
            tiny.GPT2_TEXT,
            tiny.GPT2_OTHER,
            Search(max_new_tokens=4, num_beams=3),
        ),
    }[request.param]
    if request.param.startswith("tiny"):
        directory = request.getfixturevalue(directory)
    else:
        directory = str(explore.CLONE / directory)
    model, tokenizer = load_checkpoint(directory)
    path = tmp_path_factory.mktemp("tour") / "page.html"
    content = record_page(model, tokenizer, directory, text, other, search, live=False)
    path.write_text(as_html(content), encoding="utf-8")
    pieces = content["pieces"] | content["other"]["pieces"] | content["recording"]["pieces"]
    source = source_ids(model, tokenizer, text, search.max_new_tokens)
    is_t5 = model.config.is_encoder_decoder
    ids = greedy_search(model, source, search.max_new_tokens)
    decoder = stacks(model)[-1]
    names = [
        name for part in decoder.sublayers for name in (part.output, part.residual, part.pattern) if name
    ]
    names += [part.pattern for part in stacks(model)[0].sublayers if part.pattern]
    names += [name.replace("pattern", kind) for name in names if "pattern" in name for kind in ("q", "k")]
    with torch.no_grad(), record(model, *names) as acts:
        logits = decoder_logits(model, source, ids[:-1])
        acts = dict(acts)
    return SimpleNamespace(
        address=path.as_uri(),
        model=model,
        is_t5=is_t5,
        search=search,
        label=lambda token: re.sub("^ ", "␣", pieces[str(int(token))]),
        source=source,
        ids=ids,
        baseline=Baseline(
            source, ids, source_ids(model, tokenizer, other, search.max_new_tokens), search.max_new_tokens
        ),
        start=prompt_length(model, source),
        logits=logits,
        acts=acts,
    )


@pytest.fixture(scope="module")
def tour(browser, shown):
    """Every stop by its name: its text, the URL's state, and what the page shows at it."""
    tab = Visit(browser, shown.address)
    tab.click("#start")
    stops = {}
    count = int(tab.text("#tour-count").split()[-1])
    for number in range(1, count + 1):
        assert tab.text("#tour-count") == f"{number} of {count}"
        state = tab.state()
        stops[tab.text("#tour-name")] = SimpleNamespace(
            number=number,
            address=tab.page.url,
            text=tab.text("#tour-text"),
            quoted=QUOTED.findall(tab.text("#tour-text")),
            state=state,
            at=int(tab.page.locator("#position").input_value()),
            tab=tab.text('[role="tab"][aria-selected="true"]'),
            heading=tab.text("#panel h3"),
            panel=tab.text("#panel"),
            part=tab.page.locator(".part:has(.box.selected)").get_attribute("data-part"),
            section=tab.page.locator(".toured").get_attribute("id"),
            widths={
                row: float(width)
                for row, width in tab.page.locator(".part").evaluate_all(
                    "(rows) => rows.map((row) => [row.dataset.part, "
                    'row.querySelector(".adds").getAttribute("stroke-width")])'
                )
            },
            ranks=tab.page.locator(".beams .best[aria-label]").evaluate_all(
                "(nodes) => nodes.map((node) => Number(node.ariaLabel.match(/rank (\\d+)/)[1]))"
            ),
            pressed=tab.page.locator('#panel [aria-pressed="true"]').evaluate_all(
                "(nodes) => nodes.map((node) => node.dataset.key)"
            ),
        )
        tab.click("#tour-next")
    assert tab.page.locator("#tour").is_hidden()
    assert tab.errors == []
    tab.context.close()
    return stops


def numbers(text):
    return [float(value) for value in re.findall(r"(?<![\w.])-?\d+\.?\d*(?![\w.]*\d)", QUOTED.sub("", text))]


def share(text):
    """The percentages of a sentence, and 0 for those below the smallest that is shown."""
    return [0.0 if below else float(value) / 100 for below, value in PERCENT.findall(text)]


def words(shown, ids):
    texts = [shown.label(token).replace("␣", " ") for token in ids]
    text = "".join(text for text in texts if not re.fullmatch("<.*>", text)).strip()
    return text if len(text) <= 60 else text[:60] + "…"


def test_the_tour_has_eight_to_ten_stops(tour):
    assert 8 <= len(tour) <= 10
    assert list(tour)[:4] == NAMES


def test_the_stop_of_the_text(shown, tour):
    stop = tour["The text"]
    answer, current, written = stop.quoted
    assert answer == words(shown, shown.ids[shown.start :])
    assert [current, written] == [shown.label(token) for token in shown.ids[stop.at : stop.at + 2]]
    assert numbers(stop.text)[0] == shown.source.shape[1]
    assert stop.section == "text"


def test_the_stop_of_the_next_token(shown, tour):
    stop = tour["The next token"]
    assert stop.tab == "Next token"
    top = shown.logits[stop.at].softmax(-1).topk(2)
    assert stop.quoted == [shown.label(token) for token in (shown.ids[stop.at], *top.indices)]
    assert share(stop.text) == pytest.approx(top.values.tolist(), rel=0.06, abs=1e-5)


def test_the_stop_of_the_residual_stream(shown, tour):
    stop = tour["The residual stream"]
    norms = {
        part.output: [shown.acts[name][0, stop.at].norm().item() for name in (part.output, part.residual)]
        for part in stacks(shown.model)[-1].sublayers
    }
    largest = max(norms, key=lambda name: norms[name][0] / norms[name][1])
    assert stop.part == largest
    assert stop.widths[largest] == max(stop.widths[name] for name in norms)
    assert numbers(stop.text)[-2:] == pytest.approx(norms[largest], rel=0.06)
    assert f"block {largest.rpartition('.')[2]}’s" in stop.text


def test_the_stop_of_the_logit_lens(shown, tour):
    stop = tour["The logit lens"]
    inputs = (shown.source, None, shown.ids[None, :-1]) if shown.is_t5 else (shown.ids[None, :-1],)
    tops = logit_lens(shown.model, *inputs)[:, 0, stop.at].argmax(-1).tolist()  # a token of each block
    settled = next(block for block in range(len(tops)) if len(set(tops[block:])) == 1)
    assert stop.pressed == [f"{settled} {stop.at}"]
    expected = tops[:1] if settled == 0 else [tops[0], tops[-1]]
    assert stop.quoted == [shown.label(token) for token in expected]
    assert settled == 0 or f"from block {settled} on" in stop.text


def test_the_stop_of_the_head_that_looks_at_the_answer(shown, tour):
    (stop,) = [stop for name, stop in tour.items() if "looks at the answer" in name or "hardest" in name]
    written = shown.ids[stop.at + 1]
    read = shown.source[0] if shown.is_t5 else shown.ids[: stop.at]
    found = read == written
    assert (" is not " in stop.text) == (not found.any())
    names = [
        part.pattern
        for part in stacks(shown.model)[-1].sublayers
        if part.kind == ("cross-attention" if shown.is_t5 else "self-attention")
    ]
    weights = torch.stack([shown.acts[name][0, :, stop.at, : len(read)] for name in names])  # (L, H, S)
    weights = weights * (found if found.any() else 1)
    block, head = int(stop.part.rpartition(".")[2]), int(stop.state["head"])
    assert f"head {head} of block {block}" in stop.text.replace("block " + stop.part, "")
    key = int(numbers(stop.text)[-1])
    weight = weights[block, head, key].item()
    assert weight >= weights.max().item() - 0.004  # the page's weights have 256 levels
    assert numbers(stop.text.replace(f"head {head} of block {block}", ""))[0] == pytest.approx(
        weight, abs=0.01
    )
    assert stop.quoted[-1] == shown.label(read[key])
    assert stop.tab == "Attention" and stop.heading.endswith(f"head {head}")


def test_the_stop_of_the_computation(shown, tour):
    stop = tour["How a weight is computed"]
    (looked,) = [each for each in tour.values() if each.number == stop.number - 1]
    assert (stop.part, stop.state["head"]) == (looked.part, looked.state["head"])
    key, head = int(stop.state["key"]), int(stop.state["head"])
    q, k = (
        shown.acts[stop.part.replace("attn", kind)][0, at].unflatten(0, (num_heads(shown.model), -1))[head]
        for kind, at in (("q", stop.at), ("k", key))
    )
    product = (q @ k).item()
    weight = shown.acts[stop.part.replace("attn", "pattern")][0, head, stop.at, key].item()
    scaled = [] if shown.is_t5 else [product * len(q) ** -0.5]
    text = stop.text.replace("−", "-")
    assert numbers(text) == pytest.approx([product, *scaled, weight], rel=0.01, abs=0.001)
    assert stop.quoted == [shown.label(shown.ids[stop.at]), looked.quoted[-1]]
    assert stop.tab == "Computation" and f"weight {weight:.3f}" in stop.panel


def test_the_stop_of_the_head_that_looks_one_token_back(shown, tour):
    stop = tour["Looking one token back"]
    patterns = [part.pattern for part in stacks(shown.model)[0].sublayers if part.kind == "self-attention"]
    weights = torch.stack([shown.acts[name][0] for name in patterns])  # (L, H, T, T)
    previous = weights.diagonal(-1, -2, -1)  # (L, H, T - 1)
    means = previous.mean(-1)
    even = (weights > 0).sum(-1)[0, 0, 1:].reciprocal().mean().item()
    block, head = int(stop.part.rpartition(".")[2]), int(stop.state["head"])
    assert means[block, head] >= means.max() - 0.004
    assert numbers(stop.text)[-2:] == pytest.approx([means[block, head].item(), even], rel=0.06, abs=0.004)
    assert f"Head {head} of block {block}" in stop.text
    query = int(stop.state["src" if shown.is_t5 else "at"])
    assert previous[block, head, query - 1] >= means[block, head] - 0.004
    assert stop.heading.endswith(f"head {head}") and f"block {block}, self-attention" in stop.heading


def test_the_stop_of_beams(shown, tour):
    stop = tour["Beams"]
    assert stop.tab == "Beams"
    worst = max(stop.ranks)
    expected = (
        "in front at every step" if worst == 1 else f"number {worst} at step {stop.ranks.index(worst) + 1} "
    )
    assert expected in stop.text
    sizes = {"max_new_tokens": shown.search.max_new_tokens, "num_beams": shown.search.num_beams}
    same = generate(shown.model, shown.source, **sizes)[0].tolist() == shown.ids.tolist()
    assert ("the same as" in stop.text) == same


def check_strongest(shown, stop, sweep):
    """The stop's change has the largest effect of the sweep, with the consequence that its text names."""
    answer = shown.ids[shown.start :]
    before = shown.logits[shown.start - 1 :].log_softmax(-1).gather(1, answer[:, None]).sum()
    effects = before - sweep["log_probs"].sum(-1)  # (N,)
    index = effects.argmax().item()
    assert share(stop.text) == pytest.approx([effects[index].neg().exp().item()], rel=0.06, abs=1.1e-5)
    now = sweep["answers"][sweep["answer"][index]]
    stays = now == answer.tolist()
    assert ("stays the same" in stop.text) == stays
    assert stays or stop.quoted[-1] == words(shown, now)
    assert stop.tab == "Interventions"
    return index


def test_the_stop_of_the_ablated_head(shown, tour):
    stop = tour["Without a head"]
    index = check_strongest(shown, stop, every_head_ablation(shown.model, shown.baseline))
    z, head = all_heads(shown.model)[index]
    assert stop.pressed == [f"{z}:{head}"]
    assert f"head {head} of block {z.rpartition('.')[2]}’s" in stop.text
    assert f"head {head} ablated" in stop.panel


def test_the_stop_of_the_patched_vector(shown, tour):
    stop = tour["A vector from another text"]
    sweep = every_activation_patch(shown.model, shown.baseline)
    block, at = divmod(check_strongest(shown, stop, sweep), shown.source.shape[1])
    assert stop.pressed == [f"{sweep['names'][block]}@{at}<{at}"]
    assert stop.quoted[:2] == [shown.label(text[0, at]) for text in (shown.source, shown.baseline.other)]
    assert f"(position {at}), after block {block}" in stop.text


def test_the_url_opens_a_stop(browser, shown, tour):
    stop = tour["Without a head"]
    for address in (f"{shown.address}#tour={stop.number}", stop.address):
        opened = Visit(browser, address)
        assert opened.text("#tour-name") == "Without a head"
        assert opened.state() == stop.state
        opened.context.close()
    opened = Visit(browser, f"{shown.address}#tour=x")
    assert opened.text("#tour-count").startswith("1 of")
    assert opened.errors == []
    opened.context.close()


@pytest.fixture(scope="module")
def page(family, tmp_path_factory):
    """The URL of a tiny model's page."""
    search = Search(max_new_tokens=4, num_beams=3)
    content = record_page(
        family.model, family.tokenizer, "tiny", family.text, family.other, search, live=False
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(as_html(content), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, page):
    tab = Visit(browser, page)
    yield tab
    tab.context.close()
    assert tab.errors == []


def test_the_keyboard_leads_through_the_tour(visit):
    visit.page.locator("#start").focus()
    visit.press("Enter")
    focused = "document.activeElement.id"
    assert visit.page.evaluate(focused) == "tour-next"
    visit.press("Enter")
    assert visit.text("#tour-count").startswith("2 of")
    visit.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert visit.text("#tour-count").startswith("3 of")
    visit.press("Escape")
    assert visit.page.locator("#tour").is_hidden() and visit.page.locator(".toured").count() == 0
    assert visit.page.evaluate(focused) == "start"
    assert "tour" not in visit.state()


def test_a_stop_does_not_depend_on_what_was_open_before(visit):
    visit.click("#start")
    visit.click("#tour-next")
    before = visit.text("#tour-text"), visit.state()
    visit.set("#temperature", 3)
    visit.set("#position", 0)
    visit.click("#tour-back")
    visit.click("#tour-next")
    assert (visit.text("#tour-text"), visit.state()) == before


def test_the_tour_stays_open_while_the_page_is_used(visit):
    visit.click("#start")
    visit.click("#tab-beams")
    assert visit.text("#tour-count").startswith("1 of")
    assert visit.state()["tab"] == "beams"


def test_a_bookmark_opened_in_an_open_page_restores_its_state(visit):
    visit.click("#tab-attention")
    bookmark = visit.state() and visit.page.url
    visit.click("#start")
    visit.press("ArrowLeft", *["ArrowRight"] * 8)
    assert "interventions" in visit.state()
    visit.page.evaluate("(address) => { location.href = address; }", bookmark)
    visit.settle()
    assert visit.page.locator("#tour").is_hidden()
    assert "interventions" not in visit.state()


def test_each_question_mark_opens_its_text(visit, family):
    decoder = "decoder." if family.name == "t5" else ""
    views = {
        "#tab-attention": {"text", "runs", "network", "tabs", "attention"},
        f'[data-part="{decoder}attn.0"] .name': {"heads"},
        f'[data-part="{decoder}mlp.0"] .name': {"forward"},
        "#tab-computation": {"neurons"},
        f'[data-part="{decoder}attn.0"] .head': {"computation"},
        '[data-key="open norm"]': {"norm"},
        '[data-key="open input"]': {"embedding"},
        "#tab-next": {"next"},
        "#tab-lens": {"lens"},
        "#tab-beams": {"beams"},
        "#tab-interventions": {"interventions", "ablation", "patching"},
    }
    opened = set()
    for view, expected in views.items():
        visit.click(view)
        keys = visit.page.locator("button.help").evaluate_all(
            "(nodes) => nodes.map((node) => node.dataset.key)"
        )
        assert len(keys) == len(set(keys))
        for key in keys:
            visit.click(f'[data-key="{key}"]')
            assert visit.page.locator('button.help[aria-expanded="true"]').count() == 1
            assert visit.page.locator(".help-text:visible").count() == 1
            text = visit.text(f"#{key}")
            assert len(re.findall(r"[.?](?= |$)", text)) == 2, text
            opened.add(key.removeprefix("help-"))
        assert expected <= opened
        visit.press("Escape")
        assert visit.page.locator(".help-text:visible").count() == 0
        assert visit.page.evaluate("document.activeElement.dataset.key") == keys[-1]
    assert opened == set().union(*views.values())


def test_a_page_without_computations_has_a_tour_without_them(browser, family, tmp_path):
    search = Search(max_new_tokens=4, num_beams=3)
    content = record_page(family.model, family.tokenizer, "tiny", family.text, None, search, live=False)
    content["recording"]["computations"] = None  # as for a large model
    path = tmp_path / "page.html"
    path.write_text(as_html(content), encoding="utf-8")
    tab = Visit(browser, path.as_uri())
    tab.click("#start")
    names = []
    for _ in range(int(tab.text("#tour-count").split()[-1])):
        names.append(tab.text("#tour-name"))
        tab.click("#tour-next")
    assert len(names) == 8 and "How a weight is computed" not in names
    assert tab.errors == []
    tab.context.close()


def test_an_open_explanation_stays_open_at_the_next_head(visit):
    visit.click('[data-key="help-attention"]')
    visit.click('[data-key="following"]')
    visit.click('[data-part$="attn.0"] .head')
    assert visit.page.locator("#help-attention").is_visible()


def test_the_selected_sublayer_is_in_view_on_a_phone(browser, page):
    phone = Visit(browser, page, viewport={"width": 390, "height": 740})
    phone.click("#start")
    phone.press("ArrowRight", "ArrowRight")
    assert phone.text("#tour-name") == "The residual stream"
    selected, network, tour = (
        phone.page.locator(name).bounding_box() for name in (".box.selected", "#network", "#tour")
    )
    assert network["y"] <= selected["y"] and selected["y"] + selected["height"] <= tour["y"]
    phone.context.close()


def test_help_and_tour_fit_a_phone_and_are_not_printed(browser, page):
    phone = Visit(browser, page, viewport={"width": 390, "height": 740})
    phone.click('[data-key="help-attention"]')
    phone.click("#start")
    for _ in range(int(phone.text("#tour-count").split()[-1])):
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
        box = phone.page.locator("#tour").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] < 740 / 2
        phone.page.emulate_media(media="print")
        assert (
            phone.page.locator(".help:visible, .help-text:visible, #tour:visible, #start:visible").count()
            == 0
        )
        phone.page.emulate_media(media="screen")
        phone.click("#tour-next")
    assert phone.errors == []
    phone.context.close()
