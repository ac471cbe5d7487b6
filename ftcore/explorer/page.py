"""The page as one HTML file: the files in page/ with the recorded data, loading nothing else.

Tokens can hold any text. The scripts insert it as text nodes, and the embedded JSON has no `<`. As a second
line of defence, the Content-Security-Policy allows only this page's script, by its hash, and no loading.
"""

import base64
import hashlib
import re
from html import escape
from importlib.resources import files
from typing import Any

import torch

from ftcore.data.tokenizer import Tokenizer
from ftcore.explorer.computation import record_computations
from ftcore.explorer.interventions import Baseline, every_activation_patch, every_head_ablation
from ftcore.explorer.recorder import Search, describe, greedy_search, record_text, source_ids
from ftcore.explorer.serialize import find_token_ids, to_json, token_texts
from ftcore.explorer.source import source_lines
from ftcore.models import Model

# Joined in this order into one script.
SCRIPTS = ["elements", "recording", "help", "state", "text", "network", "panels", "attention", "vectors"]
SCRIPTS += ["source", "computation", "sublayers", "next_token", "lens", "beams", "interventions", "server"]
SCRIPTS += ["tour", "start"]


def record_page(
    model: Model,
    tokenizer: Tokenizer,
    name: str,
    text: str,
    other: str | None,
    search: Search,
    *,
    live: bool,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything that a page shows of `text` and of `other`, the second text; input of `as_html`.

    The sweeps of interventions are recorded unless the page is `live`: a server computes them on request.
    `progress` shows progress bars on standard error.

    Raises:
        ValueError: one of the texts is empty or too long.
    """
    recording = record_text(model, tokenizer, text, search, progress=progress)
    content: dict[str, Any] = {"model": describe(model, name), "recording": recording, "live": live}
    content["source"] = source_lines(model)
    device = next(model.parameters()).device
    baseline = Baseline(
        source=torch.tensor(recording["source"], device=device),
        ids=torch.tensor(recording["runs"][0]["ids"], device=device),
        other=None if other is None else source_ids(model, tokenizer, other, search.max_new_tokens),
        max_new_tokens=search.max_new_tokens,
    )
    if other is not None:
        content["other"] = record_other(model, tokenizer, other, search.max_new_tokens)
    if not live:
        # A live page requests these when they are opened, and the sweeps.
        recording["computations"] = record_computations(model, baseline.source, recording["runs"])
        sweeps = {
            "head_ablations": every_head_ablation(model, baseline, progress=progress),
            "activation_patches": every_activation_patch(model, baseline, progress=progress),
        }
        content |= sweeps | {"pieces": token_texts(tokenizer, find_token_ids(sweeps))}
    return content


def record_other(model: Model, tokenizer: Tokenizer, text: str, max_new_tokens: int) -> dict[str, Any]:
    """The tokens of the second text: its source, and the decoder ids of its greedy answer."""
    source = source_ids(model, tokenizer, text, max_new_tokens)
    ids = greedy_search(model, source, max_new_tokens)
    recorded = {"text": text, "source": source.tolist(), "ids": ids.tolist()}
    return recorded | {"pieces": token_texts(tokenizer, find_token_ids(recorded))}


def as_html(content: dict[str, Any]) -> str:
    """One HTML file."""
    style, script = _file("page.css"), "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    policy = [
        "default-src 'none'",
        f"style-src '{_hash(style)}'",
        f"script-src '{_hash(script)}'",
        "img-src data:",
        "connect-src 'self'" if content["live"] else "connect-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    parts = {
        "policy": "; ".join(policy),
        "title": escape(f"Inside {content['model']['name']}"),
        "style": style,
        "script": script,
        "content": to_json(content).replace("<", "\\u003c"),
    }
    # A single pass, since inserted text may itself contain a placeholder.
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: parts[match[1]], _file("page.html"))


def _file(name: str) -> str:
    return (files("ftcore.explorer") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
