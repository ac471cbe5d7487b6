"""The server answers only its own page, and reports an invalid request in one line."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
import torch

from ftcore.decoding import generate
from ftcore.explorer.server import MAX_REQUEST_BYTES, Server, Session

SEARCH = {"max_new_tokens": 3, "num_beams": 2}


@pytest.fixture(scope="module")
def server(family):
    with Server("<p>page</p>", Session(family.model, family.tokenizer), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def send(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    result = response.status, response.read().decode()
    connection.close()
    return result


def post(server, path, request, **headers):
    origin = {"Origin": f"http://127.0.0.1:{server.server_port}"}
    status, response = send(server, "POST", path, json.dumps(request), **(origin | headers))
    return status, json.loads(response)


def test_only_the_root_serves_the_page(server):
    assert send(server, "GET", "/") == (200, "<p>page</p>")
    assert send(server, "GET", "/?from=bookmark")[0] == 200
    for path in ("/page.js", "/../setup.cfg", "/%2e%2e/setup.cfg", "//etc/passwd", "/etc/passwd", "*"):
        assert send(server, "GET", path)[0] == 404, path


def test_it_listens_on_localhost_only(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:80", "127.0.0.1", "127.0.0.1.example.org", "", "[::1]"]
)
def test_other_host_headers_are_rejected(server, host):
    for method in ("GET", "POST"):
        status, response = send(server, method, "/", Host=host)
        assert status == 403 and "page" not in response.partition("error")[0]
    assert send(server, "GET", "/", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", None, "http://127.0.0.1", "https://localhost"]
)
def test_other_origins_are_rejected(server, origin):
    status, response = post(server, "/record", {"text": "Ada", "search": SEARCH}, Origin=origin)
    assert (status, response) == (403, {"error": "only requests of the page itself are accepted"})


def test_other_methods_are_rejected(server):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert send(server, method, "/")[0] == 501


def test_a_text_is_recorded(server, family):
    status, response = post(server, "/record", {"text": family.text, "search": SEARCH})
    source = torch.tensor(response["source"])
    assert status == 200
    assert response["runs"][0]["ids"] == generate(family.model, source, max_new_tokens=3)[0].tolist()


def outcome_request(server, family, **more):
    _, response = post(server, "/record", {"text": family.text, "search": SEARCH})
    ids = response["runs"][0]["ids"]
    return {"text": family.text, "ids": ids, "other": family.other, "max_new_tokens": 3} | more


def test_interventions_are_computed(server, family):
    prefix = "" if family.name == "gpt2" else "decoder."
    changes = [
        {"z": f"{prefix}z.0", "head": 1},
        {"name": f"{prefix}attn.0", "position": 0, "other_position": 0},
    ]
    status, response = post(server, "/outcome", outcome_request(server, family, interventions=changes))
    assert status == 200 and set(response["pieces"]) >= {str(token) for token in response["ids"]}
    for path in ("/head-ablations", "/activation-patches"):
        status, response = post(server, path, outcome_request(server, family))
        assert status == 200 and response["answers"]
    status, response = post(server, "/other", {"text": family.other, "max_new_tokens": 3})
    assert response["source"] == [family.tokenizer.encode(family.other)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 3}, "text is 3, expected str"),
        ({"ids": [1]}, "ids are not an answer"),
        ({"ids": [1, 10**9]}, "ids are not an answer"),
        ({"ids": [1, True]}, "ids are not an answer"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected int"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"interventions": ["x"]}, "expected an object"),
        ({"interventions": [{"z": "z.99", "head": 0}]}, "there is no head 0 of z.99"),
        ({"interventions": [{"name": "lm_head", "position": 0, "other_position": 0}]}, "cannot be patched"),
        (
            {"interventions": [{"name": "{}attn.0", "position": -1, "other_position": 0}]},
            "positions begin at 0",
        ),
        ({"interventions": [{"name": "{}attn.0", "position": 0, "other_position": 999}]}, "does not exist"),
    ],
)
def test_an_invalid_field_is_one_line(server, family, change, message):
    prefix = "" if family.name == "gpt2" else "decoder."
    request = outcome_request(server, family, interventions=[{"z": f"{prefix}z.0", "head": 0}]) | change
    request = json.loads(json.dumps(request).replace("{}", prefix))
    status, response = post(server, "/outcome", request)
    assert status == 400 and message in response["error"] and "\n" not in response["error"]


def test_invalid_requests_are_rejected(server):
    origin = f"http://127.0.0.1:{server.server_port}"
    assert post(server, "/record", [1])[0] == 400
    assert post(server, "/record", {"text": "Ada", "search": {"beams": 2}})[1]["error"].startswith(
        "search has no setting"
    )
    assert send(server, "POST", "/record", "{", Origin=origin)[0] == 400
    assert send(server, "POST", "/etc/passwd", "{}", Origin=origin)[0] == 404
    assert send(server, "POST", "/record", "[" * 100_000, Origin=origin)[0] == 400
    assert (
        send(server, "POST", "/record", "", Origin=origin, Content_Length=str(MAX_REQUEST_BYTES + 1))[0]
        == 413
    )
    assert send(server, "POST", "/record", "", Origin=origin, Content_Length="-1")[0] == 411


def test_concurrent_requests_are_independent(server, family):
    """All patch one model; without the lock, a request would run with the hooks of another."""
    prefix = "" if family.name == "gpt2" else "decoder."
    requests = [
        outcome_request(server, family, interventions=[{"z": f"{prefix}z.{block}", "head": head}])
        for block in range(2)
        for head in range(2)
    ]
    alone = [post(server, "/outcome", request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: post(server, "/outcome", request), requests * 4))
    assert together == alone * 4


def test_a_closed_connection_is_no_error(server, family, capfd):
    body = json.dumps({"text": family.text, "search": SEARCH}).encode()
    host = f"127.0.0.1:{server.server_port}"
    head = f"POST /record HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for sent in (head.encode() + body, head.encode() + body[:5], b"GET / HT", b""):
        with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
            browser.sendall(sent)
    assert send(server, "GET", "/")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_stops_the_server(busy, gpt2_directory):
    """In a subprocess, as from a terminal."""
    command = [sys.executable, "-m", "ftcore.explore", "--model", gpt2_directory, "--prompt", "Ada"]
    command += ["--serve", "--port", "0", "--max-new-tokens", "2", "--device", "cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Restore the default, in case the tests run in the background, where SIGINT is ignored.
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options) as process, ExitStack() as cleanup:
        cleanup.callback(process.kill)
        port = int(process.stdout.readline().partition("http://127.0.0.1:")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as browser:
            if busy:
                body = json.dumps({"text": "x" * 100, "search": {"max_new_tokens": 20}})
                host = f"127.0.0.1:{port}"
                head = f"POST /record HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
                browser.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\nended\n", "")
