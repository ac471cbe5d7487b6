"""The page: what lies in `page/`, with what was recorded, as one file that loads nothing.

Tokens can hold anything. On the page they are text, never markup: the scripts write them as text nodes, and
the JSON in the page has no `<`. Should that ever fail, the browser runs no other script and loads nothing,
since the page's policy names its script by its hash.
"""

import base64
import hashlib
import json
import re
from html import escape
from importlib.resources import files
from typing import Any

import torch

from ftcore.data.tokenizer import Tokenizer
from ftcore.explorer.interventions import Case, every_knock_out, every_transplant
from ftcore.explorer.recorder import Search, describe, greedy, record_text, source_ids
from ftcore.explorer.serialize import mentioned, pieces
from ftcore.models import Model

# Joined in this order into one script.
SCRIPTS = (
    "elements",
    "recording",
    "state",
    "text",
    "network",
    "panels",
    "attention",
    "next_token",
    "lens",
    "beams",
    "change",
    "server",
    "start",
)


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
    """Everything that a page shows of a text, as JSON.

    Args:
        name: what the page calls the model.
        other: the second text.
        live: interventions are computed when somebody asks for them; otherwise all that fit are recorded now.

    Raises:
        ValueError: one of the texts is empty or too long.
    """
    recording = record_text(model, tokenizer, text, search)
    content: dict[str, Any] = {"model": describe(model, name), "recording": recording, "live": live}
    device = next(model.parameters()).device
    case = Case(
        source=torch.tensor(recording["source"], device=device),
        ids=torch.tensor(recording["runs"][0]["ids"], device=device),
        other=None if other is None else source_ids(model, tokenizer, other, search.max_new_tokens),
        max_new_tokens=search.max_new_tokens,
    )
    if other is not None:
        content["other"] = record_other(model, tokenizer, other, search.max_new_tokens)
    if not live:
        sweeps = {
            "knock_outs": every_knock_out(model, case, progress=progress),
            "transplants": every_transplant(model, case, progress=progress),
        }
        content |= sweeps | {"pieces": pieces(tokenizer, mentioned(sweeps))}
    return content


def record_other(model: Model, tokenizer: Tokenizer, text: str, max_new_tokens: int) -> dict[str, Any]:
    """The second text's tokens: what its source holds, and what the decoder reads and writes there."""
    source = source_ids(model, tokenizer, text, max_new_tokens)
    said = {"text": text, "source": source.tolist(), "ids": greedy(model, source, max_new_tokens).tolist()}
    return said | {"pieces": pieces(tokenizer, mentioned(said))}


def as_html(content: dict[str, Any]) -> str:
    """One file."""
    style, script = _file("page.css"), "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "img-src data:",
            "connect-src 'self'" if content["live"] else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "policy": policy,
        "title": escape(f"{content['model']['name']} on the inside"),
        "style": style,
        "script": script,
        "content": as_json(content).replace("<", "\\u003c"),
    }
    # In one pass: what is put in may itself look like the name of a part.
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: parts[match[1]], _file("page.html"))


def as_json(value: Any) -> str:
    """In ASCII. A number that JSON does not have, such as infinity, is an error here and not on the page."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _file(name: str) -> str:
    return (files("ftcore.explorer") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
