"""The page's worked examples in Chromium: every number and vector equals `record`'s."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ftcore.explore import DEFAULT_PROMPT
from ftcore.explorer import computation
from ftcore.explorer.computation import record_computations
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search, decoder_logits
from ftcore.explorer.server import Server, Session
from ftcore.models import GPT2LMHeadModel
from ftcore.study import record
from ftcore.study.names import short_names
from ftcore.training.inputs import load_checkpoint
from tests.helpers.browser import Visit

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
TEXTS = {"gpt2-mini": "Emotion: i feel at home", "t5-mini-qa": DEFAULT_PROMPT}
SEARCH = Search(max_new_tokens=4, num_beams=2, temperature=20.0, seed=1)
GPT2, T5 = TEXTS

# Checkpoint, sublayer, head, query, key: self-attention, masked keys, cross-attention.
CELLS = [
    (GPT2, "attn.0", 0, 3, 1),
    (GPT2, "attn.2", 3, 5, 5),
    (GPT2, "attn.1", 2, 2, 4),
    (T5, "encoder.attn.0", 1, 5, 20),
    (T5, "encoder.attn.2", 0, 30, 29),
    (T5, "decoder.attn.1", 3, 2, 0),
    (T5, "decoder.attn.0", 0, 1, 2),
    (T5, "cross.attn.2", 2, 0, 33),
    (T5, "cross.attn.0", 1, 2, 8),
]


@pytest.fixture(scope="module", params=TEXTS)
def checkpoint(request, tmp_path_factory):
    return load(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {name: load(name, tmp_path_factory) for name in TEXTS}


def load(name, tmp_path_factory):
    """A page on disk without sweeps, and all activations of its greedy answer."""
    model, tokenizer = load_checkpoint(str(WEIGHTS / name))
    content = record_page(model, tokenizer, name, TEXTS[name], None, SEARCH, live=True) | {"live": False}
    recording = content["recording"]
    source = torch.tensor(recording["source"])
    recording["computations"] = record_computations(model, source, recording["runs"])
    path = tmp_path_factory.mktemp(name) / "page.html"
    path.write_text(as_html(content), encoding="utf-8")
    ids = torch.tensor(recording["runs"][0]["ids"])
    with torch.no_grad(), record(model, "all") as acts:
        decoder_logits(model, source, ids[:-1])
    return SimpleNamespace(
        address=path.as_uri(),
        model=model,
        tokenizer=tokenizer,
        is_gpt2=isinstance(model, GPT2LMHeadModel),
        source=source,
        ids=ids,
        runs=recording["runs"],
        acts={name: acts[name][0] for name in short_names(model)},
    )


def opened(browser, address, **state):
    tab = Visit(browser, f"{address}#{'&'.join(f'{key}={value}' for key, value in state.items())}")
    tab.page.wait_for_selector(".step")
    tab.settle()
    return tab


def end(tab):
    assert tab.errors == []
    tab.context.close()


def numbers(tab):
    """The shown numbers by name, as texts."""
    return tab.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".value")].map((node) =>
            [node.dataset.value, node.textContent]))"""
    )


def vectors(tab):
    """What is drawn, by name."""
    found = tab.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-vector]")].map((node) =>
            [node.dataset.vector, [...node.numbers]]))"""
    )
    return {name: torch.tensor(vector) for name, vector in found.items()}


def assert_shown(text, expected):
    """Within half a unit of the last digit, and float32's rounding."""
    shown = float(text.replace("−", "-").replace("∞", "inf"))
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2]) - int(exponent.replace("−", "-") or 0)
    tolerance = 0.5001 * 10**-digits + 2e-5 * abs(expected)
    is_equal = shown == expected if math.isinf(expected) else abs(shown - expected) <= tolerance
    assert is_equal, (text, expected)


def assert_vector(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4 * expected.abs().max().item())


def heads_of(states, head, count=4):
    """(T, H * K) -> (T, K) of one head."""
    return states.unflatten(-1, (count, -1))[:, head]


@pytest.mark.parametrize(("name", "part", "head", "query", "key"), CELLS)
def test_an_attention_weight_is_computed_as_recorded(browser, checkpoints, name, part, head, query, key):
    page = checkpoints[name]
    at = {"src": query} if part.startswith("encoder") else {"at": query}
    tab = opened(browser, page.address, tab="computation", part=part, head=head, key=key, run=0, **at)
    prefix, block = part.rpartition("attn.")[::2]
    states = {kind: heads_of(page.acts[f"{prefix}{kind}.{block}"], head) for kind in "qkvz"}
    scores, weights = (page.acts[f"{prefix}{kind}.{block}"][head, query] for kind in ("scores", "pattern"))
    product = states["q"][query] @ states["k"][key]
    shown = numbers(tab)
    assert_shown(shown["product"], product.item())
    assert_shown(shown["product-again"], product.item())
    assert_shown(shown["score"], scores[key].item())
    assert_shown(shown["weight"], weights[key].item())
    assert_shown(shown["softmax"], weights[key].item())
    if page.is_gpt2:
        assert_shown(shown["scaled"], product.item() / 32**0.5)
    assert ("bias" in shown) == (prefix in ("encoder.", "decoder."))
    if "bias" in shown and scores[key] > -torch.inf:
        assert_shown(shown["bias"], (scores[key] - product).item())
    rows = {
        int(row.removeprefix("weight-")): text for row, text in shown.items() if row.startswith("weight-")
    }
    assert key in rows and weights.argmax().item() in rows
    for each, text in rows.items():
        assert_shown(text, weights[each].item())
    drawn = vectors(tab)
    assert_vector(drawn["q"], states["q"][query])
    assert_vector(drawn["k"], states["k"][key])
    assert_vector(drawn["z"], states["z"][query])
    assert_vector(drawn["head_out"], page.acts[f"{prefix}head_out.{block}"][head, query])
    largest = drawn["z"].abs().max().item()
    for each in (key, weights.argmax().item()):
        torch.testing.assert_close(
            drawn[f"v-{each}"], weights[each] * states["v"][each], rtol=2e-4, atol=2e-5 * largest
        )
    assert_shown(shown["head-norm"], page.acts[f"{prefix}head_out.{block}"][head, query].norm().item())
    end(tab)


def test_the_masked_cells_are_masked(checkpoints):
    """The list above has masked keys of both families."""
    masked = [
        checkpoints[name].acts[part.replace("attn", "scores")][head, query, key] == -torch.inf
        for name, part, head, query, key in CELLS
    ]
    assert [name for (name, *_), is_masked in zip(CELLS, masked, strict=True) if is_masked] == [GPT2, T5]


def test_a_norm_is_computed_as_recorded(browser, checkpoint):
    stack = "" if checkpoint.is_gpt2 else "decoder."
    cases = {("attn.1", ""): "norm_attn.1", ("mlp.2", ""): "norm_mlp.2", ("attn.1", "final"): "norm_final"}
    inputs = {"norm_attn.1": "resid_pre.1", "norm_mlp.2": "resid_mid.2", "norm_final": "resid_post.2"}
    for (part, opens), name in cases.items():
        before = f"cross.{inputs[name]}" if stack and name == "norm_mlp.2" else f"{stack}{inputs[name]}"
        at = checkpoint.acts[before].mean(-1).abs().argmax().item()  # a mean that matters
        options = {"tab": "computation", "part": stack + part, "open": opens or "norm", "at": at}
        tab = opened(browser, checkpoint.address, **options)
        stream, drawn, shown = checkpoint.acts[before][at], vectors(tab), numbers(tab)
        assert_vector(drawn["stream"], stream)
        assert_vector(drawn["scaled"], checkpoint.acts[f"{stack}{name}"][at])
        if checkpoint.is_gpt2:
            assert_shown(shown["mean"], stream.mean().item())
            assert_shown(shown["variance"], stream.var(correction=0).item())
        else:
            assert_shown(shown["mean-square"], stream.square().mean().item())
        end(tab)


def test_the_embeddings_are_those_recorded(browser, checkpoint):
    cases = [("attn.1", "", "at")] if checkpoint.is_gpt2 else [("encoder.mlp.0", "encoder.", "src")]
    cases += [] if checkpoint.is_gpt2 else [("cross.attn.0", "decoder.", "at")]
    for part, stack, position in cases:
        tab = opened(browser, checkpoint.address, tab="computation", part=part, open="input", **{position: 2})
        drawn = vectors(tab)
        assert_vector(drawn["embed"], checkpoint.acts[f"{stack}embed"][2])
        if checkpoint.is_gpt2:
            assert_vector(drawn["pos_embed"], checkpoint.acts["pos_embed"][2])
            assert_vector(drawn["stream"], checkpoint.acts["resid_pre.0"][2])
        end(tab)


def test_the_neurons_are_those_with_the_largest_activations(browser, checkpoint):
    parts = ["mlp.1"] if checkpoint.is_gpt2 else ["encoder.mlp.2", "decoder.mlp.0"]
    for part in parts:
        tab = opened(browser, checkpoint.address, tab="computation", part=part, at=2, src=2)
        activations = checkpoint.acts[part.replace("mlp", "neurons")][2]
        top = activations.abs().topk(4).indices.tolist()
        rows = tab.rows(".softmax")
        assert [int(row["cells"][0]) for row in rows] == top
        column = 2 if checkpoint.is_gpt2 else 4
        for row, neuron in zip(rows, top, strict=True):
            assert_shown(row["cells"][column], activations[neuron].item())
        tab.click(f'[data-key="neuron {top[2]}"]')
        shown, drawn = numbers(tab), vectors(tab)
        assert_vector(drawn["x"], checkpoint.acts[part.replace("mlp", "norm_mlp")][2])
        layer = checkpoint.model.get_submodule(short_names(checkpoint.model)[part])
        into = layer.c_fc.weight[:, top[2]] if checkpoint.is_gpt2 else layer.wi_0.weight[top[2]]
        out = layer.c_proj.weight[top[2]] if checkpoint.is_gpt2 else layer.wo.weight[:, top[2]]
        assert_vector(drawn["w"], into.detach())
        assert_vector(drawn["written"], (activations[top[2]] * out).detach())
        assert_shown(shown["dot"], (checkpoint.acts[part.replace("mlp", "norm_mlp")][2] @ into).item())
        assert_shown(shown["output" if checkpoint.is_gpt2 else "activation"], activations[top[2]].item())
        end(tab)


def test_a_click_on_the_map_opens_the_cell(browser, checkpoint):
    part = "attn.1" if checkpoint.is_gpt2 else "cross.attn.1"
    tab = Visit(browser, f"{checkpoint.address}#part={part}&head=1&tab=attention")
    canvas = tab.page.locator(".map canvas").first
    box = canvas.bounding_box()
    canvas.scroll_into_view_if_needed()
    canvas.click(position={"x": box["width"] - 3, "y": box["height"] - 3})  # the last weight
    tab.settle()
    state = tab.state()
    weights = checkpoint.acts[part.replace("attn", "pattern")][1]
    query, key = (size - 1 for size in weights.shape)
    assert (state["tab"], state["at"], state["key"]) == ("computation", str(query), str(key))
    assert_shown(numbers(tab)["weight"], weights[query, key].item())
    # Another key of the row, by keyboard and by its row in the table.
    tab.page.locator('[data-key="Previous key"]').focus()
    tab.press("Enter")
    assert tab.state()["key"] == str(key - 1)
    assert tab.page.evaluate("document.activeElement.dataset.key") == "Previous key"
    strongest = weights[query].argmax().item()
    tab.click(f'[data-key="key {strongest}"]')
    assert_shown(numbers(tab)["weight"], weights[query].max().item())
    end(tab)


def test_the_same_cell_by_keyboard(browser, checkpoint):
    part = "attn.1" if checkpoint.is_gpt2 else "encoder.attn.1"
    tab = Visit(browser, f"{checkpoint.address}#part={part}&head=0&tab=attention&at=1&src=1")
    tab.page.locator(".map canvas").first.focus()
    tab.press("ArrowDown", "ArrowRight", "Enter")
    state = tab.state()
    assert (state["tab"], state["key"]) == ("computation", "1")
    assert state["at" if checkpoint.is_gpt2 else "src"] == "2"
    end(tab)


def test_code_has_the_shapes_of_this_input(browser, checkpoint):
    part = "attn.1" if checkpoint.is_gpt2 else "cross.attn.1"
    tab = opened(browser, checkpoint.address, tab="computation", part=part, at=1)
    length = len(checkpoint.ids) - 1
    keys = length if checkpoint.is_gpt2 else checkpoint.source.shape[1]
    code = tab.text('[data-step="product"] .source summary')
    assert "attention.py, line" in code and "scores = at_least_float32(query) @" in code
    assert f"# (1, 4, {length}, {keys})" in code
    # The whole function, on a click.
    tab.click('[data-step="product"] .source summary')
    whole = tab.text('[data-step="product"] .source pre')
    assert "def attend(" in whole and f"# (1, 4, {length}, 32)" in whole
    assert "scores = at_least_float32" in tab.text('[data-step="product"] .source .marked')
    end(tab)


def test_every_sublayer_can_be_opened_in_every_run(browser, checkpoint):
    """Runs after the first have only what differs."""
    names = [
        name for name in short_names(checkpoint.model) if name.rpartition(".")[0].endswith(("attn", "mlp"))
    ]
    parts = [name for name in names if "norm" not in name]
    tab = opened(browser, checkpoint.address, tab="computation")
    for run in range(3):
        for number, part in enumerate(parts):
            at = (0, len(checkpoint.ids) - 2)[number % 2]
            tab.go(f"{checkpoint.address}?{run}#tab=computation&run={run}&part={part}&at={at}")
            assert tab.page.locator(".step").count() >= 3, (run, part)
    end(tab)


def test_the_sampled_answer_has_its_own_computation(browser, checkpoint):
    """Its keys are partly those of the first run, with which it begins."""
    ids = torch.tensor(checkpoint.runs[1]["ids"])
    part, query = ("attn.1" if checkpoint.is_gpt2 else "decoder.attn.1"), len(ids) - 2
    assert not torch.equal(ids, checkpoint.ids)
    with torch.no_grad(), record(checkpoint.model, part.replace("attn", "pattern")) as acts:
        decoder_logits(checkpoint.model, checkpoint.source, ids[:-1])
    (weights,) = acts.values()
    for key in (0, query):
        state = {"run": 1, "part": part, "head": 1, "at": query, "key": key}
        tab = opened(browser, checkpoint.address, tab="computation", **state)
        assert_shown(numbers(tab)["weight"], weights[0, 1, query, key].item())
        end(tab)


def test_a_page_says_what_it_is_too_large_for(browser, checkpoint, tmp_path, monkeypatch):
    content = record_page(
        checkpoint.model, checkpoint.tokenizer, "m", TEXTS[GPT2], None, SEARCH, live=True
    ) | {"live": False}
    path = tmp_path / "page.html"

    def texts(computations):
        content["recording"]["computations"] = computations
        path.write_text(as_html(content), encoding="utf-8")
        for part in ("attn.1", "mlp.1"):
            name = part if checkpoint.is_gpt2 else f"decoder.{part}"
            tab = Visit(browser, f"{path.as_uri()}#tab=computation&part={name}")
            yield tab.text("#panel")
            end(tab)

    assert all("--serve computes them" in text for text in texts(None))
    source, runs = torch.tensor(content["recording"]["source"]), content["recording"]["runs"]
    monkeypatch.setattr(computation, "_count_numbers", lambda *arguments: arguments[-1] * 1e9)
    for text in texts(record_computations(checkpoint.model, source, runs)):
        assert "left out of this page" in text


def test_a_live_page_requests_the_computation(browser, checkpoint):
    content = record_page(checkpoint.model, checkpoint.tokenizer, "m", TEXTS[GPT2], None, SEARCH, live=True)
    server = Server(as_html(content), Session(checkpoint.model, checkpoint.tokenizer), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        part, at = ("attn.1", 3) if checkpoint.is_gpt2 else ("cross.attn.1", 1)
        tab = opened(browser, server.address, tab="computation", run=1, part=part, head=1, at=at, key=2)
        source = torch.tensor(content["recording"]["source"])
        ids = torch.tensor(content["recording"]["runs"][1]["ids"])
        with torch.no_grad(), record(checkpoint.model, part.replace("attn", "pattern")) as acts:
            decoder_logits(checkpoint.model, source, ids[:-1])
        (weights,) = acts.values()
        assert_shown(numbers(tab)["weight"], weights[0, 1, at, 2].item())
        end(tab)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        server.session.close()
