"""The page with a model behind it, for one person at one machine: it listens on 127.0.0.1 and nowhere else.

A page of another site that is open in the same browser can send requests here. It is refused by what browsers
do not let it forge: `Host` names the site that the browser believes to talk to (DNS rebinding), and `Origin`
the page that asks.
"""

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer
from ftcore.explorer.interventions import (
    Case,
    Intervention,
    KnockOut,
    Transplant,
    every_knock_out,
    every_transplant,
    outcome,
)
from ftcore.explorer.page import as_json, record_other
from ftcore.explorer.recorder import Search, heads, record_text, source_ids, stacks
from ftcore.explorer.serialize import mentioned, pieces
from ftcore.models import Model

ADDRESS = "127.0.0.1"
MOST_BYTES = 4_000_000  # of a request
PATIENCE = 60.0  # seconds that a connection may say nothing


class Session:
    """A model and what the page may ask of it. Everything that is wrong with a question is a ValueError."""

    def __init__(self, model: Model, tokenizer: Tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        # Threads that share a model would see each other's hooks.
        self.lock = threading.Lock()
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/record": self.record,
            "/other": self.other,
            "/outcome": self.outcome,
            "/knock-outs": lambda asked: every_knock_out(self.model, self._case(asked)),
            "/transplants": lambda asked: every_transplant(self.model, self._case(asked)),
        }

    def answer(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the page asks for, with the text of all tokens in it."""
        with self.lock:
            said = self.answers[path](asked)
        return {"pieces": pieces(self.tokenizer, mentioned(said))} | said

    def finish(self) -> None:
        """Wait for the question that is being answered, and answer no other: Python cannot end before."""
        self.lock.acquire()

    def record(self, asked: dict[str, Any]) -> dict[str, Any]:
        chosen = _get(asked, "search", dict)
        if unknown := set(chosen) - {field.name for field in fields(Search)}:
            raise ValueError(f"search has no setting {sorted(unknown)[0]!r}")
        return record_text(self.model, self.tokenizer, _get(asked, "text", str), Search(**chosen))

    def other(self, asked: dict[str, Any]) -> dict[str, Any]:
        return record_other(
            self.model, self.tokenizer, _get(asked, "text", str), _get(asked, "max_new_tokens", int)
        )

    def outcome(self, asked: dict[str, Any]) -> dict[str, Any]:
        changes = [self._intervention(change) for change in _get(asked, "interventions", list)]
        return outcome(self.model, self._case(asked), changes)

    def _case(self, asked: dict[str, Any]) -> Case:
        limit = _get(asked, "max_new_tokens", int)
        ids = _get(asked, "ids", list)
        rows = self.model.config.vocab_size
        if len(ids) < 2 or not all(type(one) is int and 0 <= one < rows for one in ids):
            raise ValueError(f"ids are not those of an answer: expected two or more from 0 to {rows - 1}")
        source = self._source(_get(asked, "text", str), limit)
        other = asked.get("other")
        return Case(
            source=source,
            ids=torch.tensor(ids, device=source.device),
            other=None if other is None else self._source(_get(asked, "other", str), limit),
            max_new_tokens=limit,
        )

    def _source(self, text: str, max_new_tokens: int) -> Tensor:
        return source_ids(self.model, self.tokenizer, text, max_new_tokens)

    def _intervention(self, change: Any) -> Intervention:
        if not isinstance(change, dict):
            raise ValueError(f"an intervention is {change!r}, expected an object")
        if "z" in change:
            known = {str(sublayer.z): head for sublayer, head in heads(self.model)}  # the last head of each
            z, head = _get(change, "z", str), _get(change, "head", int)
            if z not in known or not 0 <= head <= known[z]:
                raise ValueError(f"there is no head {head} of {z}")
            return KnockOut(z, head)
        name = _get(change, "name", str)
        if name not in transplantable(self.model):
            raise ValueError(f"{name} cannot be patched from here")
        position, other_position = _get(change, "position", int), _get(change, "other_position", int)
        if position < 0 or other_position < 0:
            raise ValueError("positions begin at 0")
        return Transplant(name, position, other_position)


def transplantable(model: Model) -> set[str]:
    """The activations that the page may patch: the stream after every part, and what each part adds."""
    parts = [part for stack in stacks(model) for part in stack.sublayers]
    return {name for part in parts for name in (part.writes, part.after)}


def _get(asked: dict[str, Any], key: str, kind: type) -> Any:
    value = asked.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected {kind.__name__}")
    return value


class Server(ThreadingHTTPServer):
    """Hands out one page and answers its questions."""

    daemon_threads = True

    def __init__(self, page: str, session: Session, port: int):
        self.page = page.encode()
        self.session = session
        super().__init__((ADDRESS, port), Handler)

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """What a browser on this machine calls this server."""
        return {f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was closed, by browser or Ctrl-C, is nobody's error; any other is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ftcore", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path.split("?")[0] != "/":
            self._fail(HTTPStatus.NOT_FOUND, "there is nothing here but the page at /")
            return
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        if self._refused():
            return
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            self._fail(HTTPStatus.FORBIDDEN, "only the page itself may ask")
            return
        if self.path not in self.server.session.answers:
            self._fail(HTTPStatus.NOT_FOUND, f"the page cannot ask for {self.path}")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._fail(HTTPStatus.LENGTH_REQUIRED, "a request needs its Content-Length")
            return
        if int(length) > MOST_BYTES:
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MOST_BYTES:,} bytes")
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
            if not isinstance(asked, dict):
                raise ValueError(f"expected a JSON object, got {type(asked).__name__}")
            said = as_json(self.server.session.answer(self.path, asked))
        except (ValueError, TypeError, RecursionError) as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error) or type(error).__name__)
            return
        except ConnectionError:
            raise
        except Exception as error:  # memory, say: the page shows it and the server goes on
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
            return
        self._send(HTTPStatus.OK, "application/json", said.encode())

    def _refused(self) -> bool:
        if self.headers.get("Host") in self.server.hosts:
            return False
        self._fail(HTTPStatus.FORBIDDEN, f"this server is {self.server.address} and answers to no other name")
        return True

    def _fail(self, status: HTTPStatus, message: str) -> None:
        """One line, and the end of the connection: what else was sent on it has not been read."""
        self.close_connection = True
        said = as_json({"error": " ".join(message.split())[:2000]}).encode()
        self._send(status, "application/json", said)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")  # nobody else's page may put this one in a frame
        self.send_header("Referrer-Policy", "no-referrer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the terminal belongs to whoever started the server."""
