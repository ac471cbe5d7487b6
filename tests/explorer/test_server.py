"""The server answers only its own page, and reports an invalid request in one line."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import quote, urlsplit

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore import load_model
from ftcore.decoding import generate
from ftcore.explorer.recorder import Search, record_text
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
        server.session.close()  # a request whose client has gone may still hook the shared model


def send(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    connection.request(method, server.root + path, body, named)
    response = connection.getresponse()
    result = response.status, response.read().decode()
    connection.close()
    return result


def post(server, path, request, **headers):
    origin = {"Origin": f"http://127.0.0.1:{server.server_port}"}
    status, response = send(server, "POST", path, json.dumps(request), **(origin | headers))
    return status, json.loads(response)


def test_only_the_root_serves_the_page(server):
    assert send(server, "GET", "") == (200, "<p>page</p>")
    assert send(server, "GET", "?from=bookmark")[0] == 200
    for path in ("page.js", "../setup.cfg", "%2e%2e/setup.cfg", "/etc/passwd", "*", "é"):
        assert send(server, "GET", quote(path, safe="/%*"))[0] == 404, path


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_without_the_token_is_rejected(server, method):
    root = server.root
    assert len(root) > 20 and server.address.endswith(root)
    with Server("", server.session, 0) as other:
        assert other.root != root
    body = json.dumps({"text": "Ada", "search": SEARCH})
    origin = {"Origin": f"http://127.0.0.1:{server.server_port}"}
    for path in ("/", "/record", root[:-1], root[:-2] + "/record", root.upper(), "*"):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, path, body if method == "POST" else None, origin)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status == 403 and "it has a token" in text and root.strip("/") not in text, path


def test_it_listens_on_localhost_only(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:80", "127.0.0.1", "127.0.0.1.example.org", "", "[::1]"]
)
def test_other_host_headers_are_rejected(server, host):
    for method in ("GET", "POST"):
        status, response = send(server, method, "", Host=host)
        assert status == 403 and "page" not in response.partition("error")[0]
        assert server.root.strip("/") not in response
    assert send(server, "GET", "", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", None, "http://127.0.0.1", "https://localhost"]
)
def test_other_origins_are_rejected(server, origin):
    status, response = post(server, "record", {"text": "Ada", "search": SEARCH}, Origin=origin)
    assert (status, response) == (403, {"error": "only requests of the page itself are accepted"})


def test_other_methods_are_rejected(server):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert send(server, method, "")[0] == 501


def test_a_text_is_recorded(server, family):
    status, response = post(server, "record", {"text": family.text, "search": SEARCH})
    source = torch.tensor(response["source"])
    assert status == 200
    assert response["runs"][0]["ids"] == generate(family.model, source, max_new_tokens=3)[0].tolist()


def outcome_request(server, family, **more):
    _, response = post(server, "record", {"text": family.text, "search": SEARCH})
    ids = response["runs"][0]["ids"]
    return {"text": family.text, "ids": ids, "other": family.other, "max_new_tokens": 3} | more


def test_interventions_are_computed(server, family):
    prefix = "" if family.name == "gpt2" else "decoder."
    changes = [
        {"z": f"{prefix}z.0", "head": 1},
        {"name": f"{prefix}attn.0", "position": 0, "other_position": 0},
    ]
    status, response = post(server, "outcome", outcome_request(server, family, interventions=changes))
    assert status == 200 and set(response["pieces"]) >= {str(token) for token in response["ids"]}
    for path in ("head-ablations", "activation-patches"):
        status, response = post(server, path, outcome_request(server, family))
        assert status == 200 and response["answers"]
    status, response = post(server, "other", {"text": family.other, "max_new_tokens": 3})
    assert response["source"] == [family.tokenizer.encode(family.other)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 3}, "text is 3, expected str"),
        ({"ids": [1]}, "ids are not an answer"),
        ({"ids": [1, 10**9]}, "ids are not an answer"),
        ({"ids": [1, True]}, "ids are not an answer"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected int"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"interventions": ["x"]}, "expected an object"),
        ({"interventions": [{"z": "z.99", "head": 0}]}, "there is no head 0 of 'z.99'"),
        ({"interventions": [{"name": "lm_head", "position": 0, "other_position": 0}]}, "cannot be patched"),
        (
            {"interventions": [{"name": "{}attn.0", "position": -1, "other_position": 0}]},
            "position is -1, expected a whole number from 0",
        ),
        ({"interventions": [{"name": "{}attn.0", "position": 0, "other_position": 999}]}, "does not exist"),
    ],
)
def test_an_invalid_field_is_one_line(server, family, change, message):
    prefix = "" if family.name == "gpt2" else "decoder."
    request = outcome_request(server, family, interventions=[{"z": f"{prefix}z.0", "head": 0}]) | change
    request = json.loads(json.dumps(request).replace("{}", prefix))
    status, response = post(server, "outcome", request)
    assert status == 400 and message in response["error"] and "\n" not in response["error"]


def test_invalid_requests_are_rejected(server):
    origin = f"http://127.0.0.1:{server.server_port}"
    assert post(server, "record", [1])[0] == 400
    assert post(server, "record", {"text": "Ada", "search": {"beams": 2}})[1]["error"].startswith(
        "search has no setting"
    )
    assert send(server, "POST", "record", "{", Origin=origin)[0] == 400
    assert send(server, "POST", "etc/passwd", "{}", Origin=origin)[0] == 404
    assert send(server, "POST", "record", "[" * 100_000, Origin=origin)[0] == 400
    assert (
        send(server, "POST", "record", "", Origin=origin, Content_Length=str(MAX_REQUEST_BYTES + 1))[0] == 413
    )
    assert send(server, "POST", "record", "", Origin=origin, Content_Length="-1")[0] == 400


INTEGERS = st.integers(-3, 6) | st.integers(10**4, 10**30) | st.integers(-(10**30), -10)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=5), each),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_wrong_value_anywhere_is_a_bad_request(server, family, data):
    """Every value of a valid request replaced by any other, or left out: an answer, or one line and 400."""
    prefix = "" if family.name == "gpt2" else "decoder."
    ids = generate(family.model, torch.tensor([family.tokenizer.encode(family.text)]), max_new_tokens=3)
    patch = {"name": f"{prefix}attn.0", "position": 0, "other_position": 0}
    answer = {"text": family.text, "ids": ids[0].tolist(), "other": family.other, "max_new_tokens": 3}
    requests = {
        "record": {"text": family.text, "search": SEARCH | {"temperature": 1.0, "top_k": 5, "seed": 0}},
        "other": {"text": family.text, "max_new_tokens": 3},
        "outcome": answer | {"interventions": [{"z": f"{prefix}z.0", "head": 1}, patch]},
        "head-ablations": answer,
        "activation-patches": answer,
    }
    name = data.draw(st.sampled_from(sorted(requests)))
    request = json.loads(json.dumps(requests[name]))
    place = request
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.integers(0, 4)):
        place[key] = data.draw(VALUES)
    else:
        del place[key]
    status, response = post(server, name, request)
    assert status in (200, 400), response
    assert status == 200 or ("\n" not in response["error"] and len(response["error"]) < 500)
    assert not any(module._forward_hooks for module in family.model.modules())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "broken JSON"),
        (b"\xff{}", "UTF-8|utf-8"),
        (b"[" * 1000, "levels of nesting"),
        (b'{"text": NaN}', "not a finite number"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b"null", "expected a JSON object, got NoneType"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_bad_request(server, body, message):
    origin = f"http://127.0.0.1:{server.server_port}"
    status, response = send(server, "POST", "record", body, Origin=origin)
    assert status == 400 and re.search(message, json.loads(response)["error"])


@pytest.mark.parametrize("length", ["", "-1", "1e3", "0x10", "\u0663", "9" * 5000, str(10**12), None])
def test_a_wrong_length_is_refused_without_reading(server, length):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest("POST", f"{server.root}record")
    connection.putheader("Origin", f"http://127.0.0.1:{server.server_port}")
    if length is not None:
        connection.putheader("Content-Length", length.encode("utf-8"))
    connection.endheaders()
    assert connection.getresponse().status == {None: 411, str(10**12): 413}.get(length, 400)
    connection.close()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"num_beams": 10**6}, "num_beams is 1000000, expected a whole number from 2 to 64"),
        ({"num_beams": "4"}, "num_beams is '4'"),
        ({"num_beams": True}, "num_beams is True"),
        ({"max_new_tokens": 10**6}, "max_new_tokens is 1000000"),
        ({"temperature": 1e-45}, "temperature is 1e-45, expected"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"seed": 2**64}, "seed is"),
        ({"num_beam": 4}, "search has no setting 'num_beam', did you mean 'num_beams'?"),
    ],
)
def test_the_search_of_a_request_has_limits(server, family, search, message):
    status, response = post(server, "record", {"text": family.text, "search": SEARCH | search})
    assert status == 400 and message in response["error"]


def test_an_answer_to_another_text_is_refused(server, family):
    request = outcome_request(server, family, interventions=[])
    for ids in ([*request["ids"], *request["ids"][:4]], request["ids"][:1]):
        status, response = post(server, "outcome", request | {"ids": ids})
        assert status == 400 and "ids are not an answer" in response["error"]
    if family.name == "gpt2":
        changed = [request["ids"][0] + 1, *request["ids"][1:]]
        assert post(server, "outcome", request | {"ids": changed})[0] == 400


def test_many_connections_wait_to_be_accepted(family):
    """More than the default backlog, while nothing accepts."""
    with Server("", Session(family.model, family.tokenizer), 0) as server, ExitStack() as clients:
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", server.server_port), timeout=5)
            clients.enter_context(client)


def test_nan_weights_are_an_error_of_the_server(family):
    model = load_model(family.directory)
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(FloatingPointError, match="holds NaN"):
        record_text(model, family.tokenizer, family.text, Search(**SEARCH))


def test_concurrent_requests_are_independent(server, family):
    """All patch one model; without the lock, a request would run with the hooks of another."""
    prefix = "" if family.name == "gpt2" else "decoder."
    requests = [
        outcome_request(server, family, interventions=[{"z": f"{prefix}z.{block}", "head": head}])
        for block in range(2)
        for head in range(2)
    ]
    alone = [post(server, "outcome", request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: post(server, "outcome", request), requests * 4))
    assert together == alone * 4


def test_a_closed_connection_is_no_error(server, family, capfd):
    body = json.dumps({"text": family.text, "search": SEARCH}).encode()
    host = f"127.0.0.1:{server.server_port}"
    head = f"POST {server.root}record HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for sent in (head.encode() + body, head.encode() + body[:5], b"GET / HT", b""):
        with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
            browser.sendall(sent)
    assert send(server, "GET", "")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_stops_the_server(busy, gpt2_directory):
    """In a subprocess, as from a terminal."""
    command = [sys.executable, "-m", "ftcore.explore", "--model", gpt2_directory, "--prompt", "Ada"]
    command += ["--serve", "--port", "0", "--max-new-tokens", "2", "--device", "cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as process, ExitStack() as cleanup:
        cleanup.callback(process.kill)
        address = process.stdout.readline().split()[1]
        port, token = urlsplit(address).port, urlsplit(address).path
        with socket.create_connection(("127.0.0.1", port)) as browser:
            if busy:
                body = json.dumps({"text": "x" * 100, "search": {"max_new_tokens": 20}})
                host = f"127.0.0.1:{port}"
                head = f"POST {token}record HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
                browser.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\nended\n", "")
