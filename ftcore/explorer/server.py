"""Local HTTP server: the page at /TOKEN/, and JSON requests that run the model. Listens on 127.0.0.1 only.

The token is random, and every path begins with it: it keeps out other users of the machine. Other sites open
in the same browser are rejected by two headers that a browser does not let them forge: `Host`, against DNS
rebinding, and `Origin`, against cross-site requests.
"""

import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from reprlib import repr as shown
from typing import Any

import torch
from torch import Tensor

from ftcore.checkpoints.files import parse_json
from ftcore.data.tokenizer import Tokenizer
from ftcore.explorer.computation import record_computation
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
from ftcore.explorer.recorder import Search, record_text, source_ids
from ftcore.explorer.serialize import find_token_ids, to_json, token_texts
from ftcore.models import Model
from ftcore.output import did_you_mean

ADDRESS = "127.0.0.1"
MAX_REQUEST_BYTES = 4_000_000
MAX_INTERVENTIONS = 1000  # of one request
CONNECTION_TIMEOUT = 60.0  # seconds


class Session:
    """A model and the requests of its page, by name. An invalid request raises ValueError."""

    def __init__(self, model: Model, tokenizer: Tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.lock = threading.Lock()  # hooks are on the shared model, so requests run one at a time
        self.handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "record": self.record,
            "other": self.other,
            "outcome": self.outcome,
            "computation": self.computation,
            "head-ablations": lambda request: every_head_ablation(model, self._baseline(request)),
            "activation-patches": lambda request: every_activation_patch(model, self._baseline(request)),
        }

    def answer(self, name: str, request: dict[str, Any]) -> str:
        """The JSON response to one request, with the texts of all token ids in it."""
        with self.lock:
            return self._answer(name, request)

    def close(self) -> None:
        """Wait for the current request and block later ones: exiting while torch runs in a thread aborts."""
        self.lock.acquire()

    def _answer(self, name: str, request: dict[str, Any]) -> str:
        # A separate method, so that the tensors are freed before the lock is released; see `close`.
        response = self.handlers[name](request)
        return to_json({"pieces": token_texts(self.tokenizer, find_token_ids(response))} | response)

    def record(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record a text, see `record_text`.

        Raises:
            ValueError: a setting of the search that does not exist.
        """
        search, known = _field(request, "search", dict), {field.name for field in fields(Search)}
        if unknown := sorted(set(search) - known):
            raise ValueError(f"search has no setting {shown(unknown[0])}{did_you_mean(unknown[0], known)}")
        return record_text(self.model, self.tokenizer, _field(request, "text", str), Search(**search))

    def other(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record a second text, to patch from, see `record_other`."""
        text, max_new_tokens = _field(request, "text", str), _field(request, "max_new_tokens", int)
        return record_other(self.model, self.tokenizer, text, max_new_tokens)

    def outcome(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the model with interventions, see `ftcore.explorer.interventions.outcome`.

        Raises:
            ValueError: too many of them, or one without a field.
        """
        changes = _field(request, "interventions", list)
        if len(changes) > MAX_INTERVENTIONS:
            raise ValueError(f"there are {len(changes)} interventions, expected at most {MAX_INTERVENTIONS}")
        return outcome(self.model, self._baseline(request), [_intervention(change) for change in changes])

    def computation(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record the computation of one part, see `record_computation`."""
        baseline, part = self._baseline(request), _field(request, "part", str)
        ids = None if part.startswith("encoder.") else baseline.ids
        return record_computation(self.model, baseline.source, ids, only=part)

    def _baseline(self, request: dict[str, Any]) -> Baseline:
        max_new_tokens, ids = _field(request, "max_new_tokens", int), _field(request, "ids", list)

        def source(key: str) -> Tensor:
            return source_ids(self.model, self.tokenizer, _field(request, key, str), max_new_tokens)

        text = source("text")
        other = None if request.get("other") is None else source("other")
        vocab_size = self.model.config.vocab_size
        prompt = ids[:1] if self.model.config.is_encoder_decoder else text[0].tolist()
        are_ids = all(type(token) is int and 0 <= token < vocab_size for token in ids)
        if not are_ids or ids[: len(prompt)] != prompt or not 1 <= len(ids) - len(prompt) <= max_new_tokens:
            raise ValueError(
                f"ids are not an answer to the text: expected its {len(prompt)} first tokens and up to "
                f"{max_new_tokens} new ones, from 0 to {vocab_size - 1}"
            )
        return Baseline(text, torch.tensor(ids, device=text.device), other, max_new_tokens)


def _intervention(change: Any) -> Intervention:
    if not isinstance(change, dict):
        raise ValueError(f"an intervention is {shown(change)}, expected an object")
    if "z" in change:
        return HeadAblation(_field(change, "z", str), _field(change, "head", int))
    positions = _field(change, "position", int), _field(change, "other_position", int)
    return ActivationPatch(_field(change, "name", str), *positions)


def _field(request: dict[str, Any], key: str, kind: type) -> Any:
    value = request.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {shown(value)}, expected {kind.__name__}")
    return value


class Server(ThreadingHTTPServer):
    """Serves one page and the requests of its session."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted

    def __init__(self, page: str, session: Session, port: int):
        self.page = page.encode()
        self.session = session
        super().__init__((ADDRESS, port), Handler)
        self.root = f"/{secrets.token_urlsafe(16)}/"
        self.address = f"http://{ADDRESS}:{self.server_port}{self.root}"
        self.hosts = {f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"}  # accepted headers

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections; print any other error as one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)


class RequestError(Exception):
    """A request that is answered with an HTTP status and one line."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """Answers requests: GET for the page, POST for what the page asks of the model."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ftcore", ""
    timeout = CONNECTION_TIMEOUT

    def do_GET(self) -> None:
        """Send the page."""
        self._respond(self._page)

    def do_POST(self) -> None:
        """Run the model and send the answer, as JSON."""
        self._respond(self._answer)

    def _respond(self, handler: Callable[[str], tuple[str, bytes]]) -> None:
        """Send what `handler` returns for the path behind the token: content type and body, or an error."""
        try:
            if self.headers.get("Host") not in self.server.hosts:
                message = f"this server is {ADDRESS}:{self.server.server_port}; other host names are rejected"
                raise RequestError(HTTPStatus.FORBIDDEN, message)
            root, path = self.server.root, self.path.partition("?")[0]
            if not secrets.compare_digest(path[: len(root)].encode(), root.encode()):
                message = "open the address that ftcore.explore printed: it has a token, new at every start"
                raise RequestError(HTTPStatus.FORBIDDEN, message)
            content_type, body = handler(path[len(root) :])
        except RequestError as error:
            self._fail(error.status, str(error))
        except ValueError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except OSError:  # the client has closed the connection, or sends nothing
            raise
        except Exception as error:  # such as running out of memory: report it and keep serving
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._send(HTTPStatus.OK, content_type, body)

    def _page(self, path: str) -> tuple[str, bytes]:
        if path:
            raise RequestError(HTTPStatus.NOT_FOUND, "there is nothing here but the page")
        return "text/html; charset=utf-8", self.server.page

    def _answer(self, path: str) -> tuple[str, bytes]:
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            raise RequestError(HTTPStatus.FORBIDDEN, "only requests of the page itself are accepted")
        if path not in self.server.session.handlers:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no request {shown(path)}")
        length = self.headers.get("Content-Length")
        if length is None:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "a request needs its Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise ValueError(f"Content-Length is {shown(length)}, expected a number of bytes")
        if int(length) > MAX_REQUEST_BYTES:
            message = f"a request has at most {MAX_REQUEST_BYTES:,} bytes"
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        request = parse_json(self.rfile.read(int(length)).decode(), "the request")
        if not isinstance(request, dict):
            raise ValueError(f"expected a JSON object, got {type(request).__name__}")
        return "application/json", self.server.session.answer(path, request).encode()

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
        """Keep requests out of the terminal."""
