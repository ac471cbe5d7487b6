"""The server answers its own page, and nobody else; what is wrong with a question is one line."""

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
from ftcore.explorer.server import MOST_BYTES, Server, Session

SEARCH = {"max_new_tokens": 3, "num_beams": 2}


@pytest.fixture(scope="module")
def server(family):
    with Server("<p>page</p>", Session(family.model, family.tokenizer), 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def send(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found


def ask(server, path, question, **headers):
    origin = {"Origin": f"http://127.0.0.1:{server.server_port}"}
    status, said = send(server, "POST", path, json.dumps(question), **(origin | headers))
    return status, json.loads(said)


def test_the_page_is_at_the_root_and_nowhere_else(server):
    assert send(server, "GET", "/") == (200, "<p>page</p>")
    assert send(server, "GET", "/?from=bookmark")[0] == 200
    for path in ("/page.js", "/../setup.cfg", "/%2e%2e/setup.cfg", "//etc/passwd", "/etc/passwd", "*"):
        assert send(server, "GET", path)[0] == 404, path


def test_it_listens_to_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:80", "127.0.0.1", "127.0.0.1.example.org", "", "[::1]"]
)
def test_other_names_of_this_machine_are_refused(server, host):
    for method in ("GET", "POST"):
        status, said = send(server, method, "/", Host=host)
        assert status == 403 and "page" not in said.partition("error")[0]
    assert send(server, "GET", "/", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", None, "http://127.0.0.1", "https://localhost"]
)
def test_other_pages_cannot_ask(server, origin):
    status, said = ask(server, "/record", {"text": "Ada", "search": SEARCH}, Origin=origin)
    assert (status, said) == (403, {"error": "only the page itself may ask"})


def test_other_methods_are_refused(server):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert send(server, method, "/")[0] == 501


def test_a_text_is_recorded(server, family):
    status, said = ask(server, "/record", {"text": family.text, "search": SEARCH})
    source = torch.tensor(said["source"])
    assert status == 200
    assert said["runs"][0]["ids"] == generate(family.model, source, max_new_tokens=3)[0].tolist()


def question(server, family, **more):
    _, said = ask(server, "/record", {"text": family.text, "search": SEARCH})
    ids = said["runs"][0]["ids"]
    return {"text": family.text, "ids": ids, "other": family.other, "max_new_tokens": 3} | more


def test_interventions_are_computed(server, family):
    prefix = "" if family.name == "gpt2" else "decoder."
    changes = [
        {"z": f"{prefix}z.0", "head": 1},
        {"name": f"{prefix}attn.0", "position": 0, "other_position": 0},
    ]
    status, said = ask(server, "/outcome", question(server, family, interventions=changes))
    assert status == 200 and set(said["pieces"]) >= {str(one) for one in said["ids"]}
    for path in ("/knock-outs", "/transplants"):
        status, said = ask(server, path, question(server, family))
        assert status == 200 and said["answers"]
    status, said = ask(server, "/other", {"text": family.other, "max_new_tokens": 3})
    assert said["source"] == [family.tokenizer.encode(family.other)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 3}, "text is 3, expected str"),
        ({"ids": [1]}, "ids are not those of an answer"),
        ({"ids": [1, 10**9]}, "ids are not those of an answer"),
        ({"ids": [1, True]}, "ids are not those of an answer"),
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
def test_a_wrong_question_is_one_line(server, family, change, message):
    prefix = "" if family.name == "gpt2" else "decoder."
    asked = question(server, family, interventions=[{"z": f"{prefix}z.0", "head": 0}]) | change
    asked = json.loads(json.dumps(asked).replace("{}", prefix))
    status, said = ask(server, "/outcome", asked)
    assert status == 400 and message in said["error"] and "\n" not in said["error"]


def test_what_is_no_question_is_refused(server):
    origin = f"http://127.0.0.1:{server.server_port}"
    assert ask(server, "/record", [1])[0] == 400
    assert ask(server, "/record", {"text": "Ada", "search": {"beams": 2}})[1]["error"].startswith(
        "search has no setting"
    )
    assert send(server, "POST", "/record", "{", Origin=origin)[0] == 400
    assert send(server, "POST", "/etc/passwd", "{}", Origin=origin)[0] == 404
    assert send(server, "POST", "/record", "[" * 100_000, Origin=origin)[0] == 400
    assert send(server, "POST", "/record", "", Origin=origin, Content_Length=str(MOST_BYTES + 1))[0] == 413
    assert send(server, "POST", "/record", "", Origin=origin, Content_Length="-1")[0] == 411


def test_questions_at_the_same_time_do_not_see_each_other(server, family):
    """Each patches the one model: without the lock they would meet each other's hooks."""
    prefix = "" if family.name == "gpt2" else "decoder."
    asked = [
        question(server, family, interventions=[{"z": f"{prefix}z.{block}", "head": head}])
        for block in range(2)
        for head in range(2)
    ]
    alone = [ask(server, "/outcome", one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: ask(server, "/outcome", one), asked * 4))
    assert together == alone * 4


def test_a_browser_that_goes_away_is_no_error(server, family, capfd):
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
def test_ctrl_c_ends_it(busy, gpt2_directory):
    """In a process of its own, as from a terminal."""
    command = [sys.executable, "-m", "ftcore.explore", "--model", gpt2_directory, "--prompt", "Ada"]
    command += ["--serve", "--port", "0", "--max-new-tokens", "2", "--device", "cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What a shell runs in the background ignores Ctrl-C, and so would this process of the tests'.
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options) as process, ExitStack() as at_last:
        at_last.callback(process.kill)  # whatever happens: nobody waits for a server
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
