"""Local HTTP server: the page at /, and JSON requests that run the model. Listens on 127.0.0.1 only.

Other sites open in the same browser could send requests here. They are rejected by two headers that a browser
does not let them forge: `Host`, against DNS rebinding, and `Origin`, against cross-site requests.
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
    ActivationPatch,
    Baseline,
    HeadAblation,
    Intervention,
    every_activation_patch,
    every_head_ablation,
    outcome,
)
from ftcore.explorer.page import record_other
from ftcore.explorer.recorder import Search, all_heads, record_text, source_ids, stacks
from ftcore.explorer.serialize import find_token_ids, to_json, token_texts
from ftcore.models import Model

ADDRESS = "127.0.0.1"
MAX_REQUEST_BYTES = 4_000_000
CONNECTION_TIMEOUT = 60.0  # seconds


class Session:
    """A model and the requests of its page, by path. An invalid request raises ValueError."""

    def __init__(self, model: Model, tokenizer: Tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.lock = threading.Lock()  # hooks are on the shared model, so requests run one at a time
        self.handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/record": self.record,
            "/other": self.other,
            "/outcome": self.outcome,
            "/head-ablations": lambda request: every_head_ablation(model, self._baseline(request)),
            "/activation-patches": lambda request: every_activation_patch(model, self._baseline(request)),
        }

    def answer(self, path: str, request: dict[str, Any]) -> str:
        """The JSON response to one request, with the texts of all token ids in it."""
        with self.lock:
            return self._answer(path, request)

    def close(self) -> None:
        """Wait for the current request and block later ones: exiting while torch runs in a thread aborts."""
        self.lock.acquire()

    def _answer(self, path: str, request: dict[str, Any]) -> str:
        # A separate method, so that the tensors are freed before the lock is released; see `close`.
        response = self.handlers[path](request)
        return to_json({"pieces": token_texts(self.tokenizer, find_token_ids(response))} | response)

    def record(self, request: dict[str, Any]) -> dict[str, Any]:
        search = _field(request, "search", dict)
        if unknown := set(search) - {field.name for field in fields(Search)}:
            raise ValueError(f"search has no setting {sorted(unknown)[0]!r}")
        return record_text(self.model, self.tokenizer, _field(request, "text", str), Search(**search))

    def other(self, request: dict[str, Any]) -> dict[str, Any]:
        text, max_new_tokens = _field(request, "text", str), _field(request, "max_new_tokens", int)
        return record_other(self.model, self.tokenizer, text, max_new_tokens)

    def outcome(self, request: dict[str, Any]) -> dict[str, Any]:
        changes = [self._intervention(change) for change in _field(request, "interventions", list)]
        return outcome(self.model, self._baseline(request), changes)

    def _baseline(self, request: dict[str, Any]) -> Baseline:
        max_new_tokens, ids = _field(request, "max_new_tokens", int), _field(request, "ids", list)
        vocab_size = self.model.config.vocab_size
        if len(ids) < 2 or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
            raise ValueError(f"ids are not an answer: expected two or more from 0 to {vocab_size - 1}")

        def source(key: str) -> Tensor:
            return source_ids(self.model, self.tokenizer, _field(request, key, str), max_new_tokens)

        text = source("text")
        other = None if request.get("other") is None else source("other")
        return Baseline(text, torch.tensor(ids, device=text.device), other, max_new_tokens)

    def _intervention(self, change: Any) -> Intervention:
        if not isinstance(change, dict):
            raise ValueError(f"an intervention is {change!r}, expected an object")
        if "z" in change:
            z, head = _field(change, "z", str), _field(change, "head", int)
            if (z, head) not in all_heads(self.model):
                raise ValueError(f"there is no head {head} of {z}")
            return HeadAblation(z, head)
        name = _field(change, "name", str)
        parts = [part for stack in stacks(self.model) for part in stack.sublayers]
        if not any(name in (part.output, part.residual) for part in parts):
            raise ValueError(f"{name} cannot be patched from here")
        position, other_position = _field(change, "position", int), _field(change, "other_position", int)
        if position < 0 or other_position < 0:
            raise ValueError("positions begin at 0")
        return ActivationPatch(name, position, other_position)


def _field(request: dict[str, Any], key: str, kind: type) -> Any:
    value = request.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected {kind.__name__}")
    return value


class Server(ThreadingHTTPServer):
    """Serves one page and the requests of its session."""

    daemon_threads = True

    def __init__(self, page: str, session: Session, port: int):
        self.page = page.encode()
        self.session = session
        super().__init__((ADDRESS, port), Handler)
        self.address = f"http://{ADDRESS}:{self.server_port}/"
        self.hosts = {f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"}  # accepted headers

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections; print any other error as one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)


class RequestError(Exception):
    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ftcore", ""
    timeout = CONNECTION_TIMEOUT

    def do_GET(self) -> None:
        self._respond(self._page)

    def do_POST(self) -> None:
        self._respond(self._answer)

    def _respond(self, handler: Callable[[], tuple[str, bytes]]) -> None:
        """Send the content type and body that `handler` returns, or the error that it raises."""
        try:
            if self.headers.get("Host") not in self.server.hosts:
                message = f"this server is {self.server.address}; other host names are rejected"
                raise RequestError(HTTPStatus.FORBIDDEN, message)
            content_type, body = handler()
        except RequestError as error:
            self._fail(error.status, str(error))
        except (ValueError, TypeError, RecursionError) as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error) or type(error).__name__)
        except ConnectionError:
            raise
        except Exception as error:  # such as running out of memory: report it and keep serving
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._send(HTTPStatus.OK, content_type, body)

    def _page(self) -> tuple[str, bytes]:
        if self.path.split("?")[0] != "/":
            raise RequestError(HTTPStatus.NOT_FOUND, "there is nothing here but the page at /")
        return "text/html; charset=utf-8", self.server.page

    def _answer(self) -> tuple[str, bytes]:
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            raise RequestError(HTTPStatus.FORBIDDEN, "only requests of the page itself are accepted")
        if self.path not in self.server.session.handlers:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no request {self.path}")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "a request needs its Content-Length")
        if int(length) > MAX_REQUEST_BYTES:
            message = f"a request has at most {MAX_REQUEST_BYTES:,} bytes"
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        request = json.loads(self.rfile.read(int(length)))
        if not isinstance(request, dict):
            raise ValueError(f"expected a JSON object, got {type(request).__name__}")
        return "application/json", self.server.session.answer(self.path, request).encode()

    def _fail(self, status: HTTPStatus, message: str) -> None:
        """Send a one-line error and close the connection, since the request body may be unread."""
        self.close_connection = True
        response = to_json({"error": " ".join(message.split())[:2000]})
        self._send(status, "application/json", response.encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No request log in the terminal."""
