"""--fast and --compile of the commands: equal results, and a line of output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ftcore.evaluate
import ftcore.generate
import ftcore.train
from tests.helpers import tiny_runs

ON = "--fast is on: decoding with ftcore.fast\n"


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    build = {"gpt2": tiny_runs.tiny_gpt2, "t5": tiny_runs.tiny_t5}[request.param]
    return str(build(tmp_path_factory.mktemp(request.param)))


def test_generate(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", model, "--prompt", "Ada", "--num-beams", "2"]
    assert ftcore.generate.main(command) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    assert ftcore.generate.main([*command, "--fast"]) == 0
    fast = capsys.readouterr()
    assert (fast.out, fast.err) == (plain.out, ON)


def test_generate_compiled(
    compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Compiled by the first command, loaded by the second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["--model", str(tiny_runs.tiny_gpt2(tmp_path)), "--prompt", "Ada", "--min-new-tokens", "3"]
    assert ftcore.generate.main(command) == 0
    plain = capsys.readouterr()
    for said in ("compiling the decoding step", "the compiled decoding step is loaded from"):
        assert ftcore.generate.main([*command, "--compile"]) == 0
        compiled = capsys.readouterr()
        assert compiled.out == plain.out
        assert compiled.err.startswith(ON + said)


def test_train(model: str, tmp_path: Path) -> None:
    data = tiny_runs.questions(tmp_path / "train.jsonl", 12)
    options = f"--model {model} --train {data} --max-steps 3 --dropout 0 --output".split()
    for name, fast in (("plain", []), ("fast", ["--fast"])):
        assert ftcore.train.main([*options, str(tmp_path / name), *fast]) == 0
    for plain, fast in zip(
        tiny_runs.metrics(tmp_path / "plain"), tiny_runs.metrics(tmp_path / "fast"), strict=True
    ):
        assert fast == pytest.approx(plain, rel=1e-4)


def test_evaluate(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_runs.questions(tmp_path / "qa.jsonl", 5)
    command = ["--model", model, "--data", str(data), "--max-target-length", "20", "--json"]
    assert ftcore.evaluate.main(command) == 0
    plain = json.loads(capsys.readouterr().out)
    assert ftcore.evaluate.main([*command, "--fast"]) == 0
    fast = capsys.readouterr()
    assert json.loads(fast.out) == plain
    assert ON in fast.err


def test_importing_decoding_does_not_import_fast() -> None:
    code = "import sys, ftcore.decoding.search, ftcore.generate; print('ftcore.fast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    from ftcore import decoding, fast

    assert decoding.prepare_for_decoding is fast.prepare_for_decoding
