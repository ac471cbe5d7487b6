"""Hub names: downloads through huggingface_hub from a local server, and errors."""

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.checkpoints.hub import resolve_directory
from ftcore.models import T5Config, T5ForConditionalGeneration

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The part of the hub's API that downloads use: a model's commit, its list of files, and the files."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = repositories
        self.served: list[str] = []  # repository/file, of each download

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if question := re.fullmatch(r"api/models/(.+)/(revision|tree)/\w+", path):
            self.answer_question(*question.groups())
        else:
            self.send_file(*path.split(f"/resolve/{COMMIT}/"))

    do_HEAD = do_GET  # noqa: N815

    def answer_question(self, name: str, question: str) -> None:
        files = self.server.repositories.get(name)
        if files is None:
            unknown = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self.reply(404, b"{}", unknown)
        elif question == "revision":
            siblings = [{"rfilename": file} for file in files]
            self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        else:
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            self.reply(200, json.dumps(tree).encode())

    def send_file(self, name: str, file: str) -> None:
        content = self.server.repositories[name][file]
        if self.command == "GET":
            self.server.served.append(f"{name}/{file}")
        etag = hashlib.sha1(content).hexdigest()
        self.reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config)


@pytest.fixture
def hub(model: T5ForConditionalGeneration, tmp_path: Path) -> Iterator[Hub]:
    """Three repositories: one safetensors file among other files, shards, and a pickle only."""
    repositories = {}
    for name, size in (("google-t5/whole", 10**9), ("sharded", 1000), ("some.one/old-model", 10**9)):
        directory = tmp_path / "served" / name
        save_model(model, directory, max_shard_size=size)
        (directory / "spiece.model").write_bytes(b"a tokenizer")
        (directory / "tf_model.h5").write_bytes(b"for others")
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
        if name == "some.one/old-model":
            (directory / "model.safetensors").unlink()
        repositories[name] = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    repositories["google-t5/whole"]["onnx/model.safetensors"] = b"for others"
    with Hub(repositories) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(script: str, endpoint: str, cache: Path) -> dict:
    """Run in a new process, since huggingface_hub reads HF_ENDPOINT at import."""
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_download_once_and_pickles_only_without_safetensors(
    hub: Hub, model: T5ForConditionalGeneration, tmp_path: Path
) -> None:
    script = """
        import json
        from ftcore import load_model
        from ftcore.checkpoints.hub import resolve_directory
        found = {"tokenizer only": str(resolve_directory("some.one/old-model", weights=False))}
        before = sorted(path.name for path in resolve_directory(found["tokenizer only"]).iterdir())
        for name in ("google-t5/whole", "sharded", "some.one/old-model"):
            found[name] = str(resolve_directory(name))
            load_model(name)
        print(json.dumps({"before": before, "found": found}))
    """
    result = run(script, hub.url, tmp_path)
    assert result["before"] == ["config.json", "spiece.model"]
    assert result["found"]["tokenizer only"] == result["found"]["some.one/old-model"]

    small = ["config.json", "spiece.model"]
    shards = [file for file in hub.repositories["sharded"] if file.startswith("model")]
    assert len(shards) > 2
    expected = [f"google-t5/whole/{file}" for file in (*small, "model.safetensors")]
    expected += [f"sharded/{file}" for file in (*small, *shards)]
    expected += [f"some.one/old-model/{file}" for file in (*small, "pytorch_model.bin")]
    assert sorted(hub.served) == sorted(expected)

    for name in hub.repositories:
        loaded = load_model(result["found"][name]).state_dict()
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded[key], tensor)

    # After a download the hub is not needed.
    again = """
        import json
        from ftcore import load_model
        from ftcore.checkpoints.hub import resolve_directory
        load_model("google-t5/whole")
        try:
            resolve_directory("google-t5/never-seen")
        except FileNotFoundError as error:
            print(json.dumps({"unreachable": str(error)}))
    """
    hub.server_close()
    message = run(again, hub.url, tmp_path)["unreachable"]
    assert (
        "google-t5/never-seen: no such directory, and the download from the Hugging Face hub failed"
        in message
    )
    assert "\n" not in message


def test_an_unknown_hub_name_is_one_line(hub: Hub, tmp_path: Path) -> None:
    script = """
        import json
        from ftcore import load_model
        messages = []
        for name in ("google-t5/t6", "weights/missing..name"):
            try:
                load_model(name)
            except FileNotFoundError as error:
                messages.append(str(error))
        print(json.dumps(messages))
    """
    unknown, malformed = run(script, hub.url, tmp_path)
    assert unknown.startswith(
        "google-t5/t6: no such directory, and the download from the Hugging Face hub failed (Repo"
    )
    assert malformed.startswith("weights/missing..name: no such directory, and the download")
    for message in (unknown, malformed):
        assert "\n" not in message and "config.json, model.safetensors" in message
    assert hub.served == []


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # import fails, as where it is not installed
    with pytest.raises(
        FileNotFoundError, match=r"`pip install huggingface_hub` to download it, or put config"
    ):
        resolve_directory("google-t5/t5-small")
    with pytest.raises(FileNotFoundError, match=r"^gpt2: no such directory; if it is a name on the Hugging"):
        load_model("gpt2")
    for name in ("./gpt2", "a/b/c", "/nowhere/gpt2", "../gpt2"):
        with pytest.raises(
            FileNotFoundError, match="no such directory, and not a name on the Hugging Face hub"
        ):
            resolve_directory(name)
