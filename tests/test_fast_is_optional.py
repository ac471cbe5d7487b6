"""Without ftcore/fast everything else works, and private torch APIs occur there alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny_runs

PACKAGE = Path(__file__).resolve().parent.parent / "ftcore"
PRIVATE = re.compile(r"\btorch\.(\w+\.)*_\w+|\btorch\.ops\.mkldnn\b|\bfrom torch(\.\w+)* import \(?\s*_")

RUN = """
import importlib, sys
from pathlib import Path

package, model, data, output = Path(sys.argv[1]), *sys.argv[2:]
import ftcore
assert Path(ftcore.__file__).parent == package
for path in package.rglob("*.py"):
    module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
    if not module.startswith(("ftcore.bench", "ftcore.__main__", "ftcore.lessons.templates")):
        importlib.import_module(module)
train, evaluate, generate = (sys.modules[f"ftcore.{name}"].main for name in ("train", "evaluate", "generate"))
options = f"--model {model} --train {data} --max-steps 2 --eval-answers 1 --output {output}"
assert train([*options.split(), "--max-target-length", "20"]) == 0
assert evaluate(f"--model {output}/last --data {data} --max-target-length 20".split()) == 0
assert generate(["--model", f"{output}/last", "--prompt", "Ada"]) == 0
assert not any(name.startswith("ftcore.fast") for name in sys.modules)
"""


def test_private_torch_apis_occur_in_fast_alone() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "fast"
        for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))
        if match.group() != "torch.__version__"
    ]
    assert found == []


@pytest.fixture(scope="module")
def without_fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that lacks ftcore/fast."""
    folder = tmp_path_factory.mktemp("without_fast")
    shutil.copytree(PACKAGE, folder / "ftcore", ignore=shutil.ignore_patterns("fast", "__pycache__"))
    # The import hook of an editable install would find the missing package in the repository.
    (folder / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [hook for hook in sys.meta_path if 'Editable' not in str(hook)]\n"
    )
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, which is then first on its path."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_training_evaluation_and_generation_without_fast(
    without_fast: Path, tmp_path: Path, family: str
) -> None:
    build = {"gpt2": tiny_runs.tiny_gpt2, "t5": tiny_runs.tiny_t5}[family]
    model, data = build(tmp_path / "model"), tiny_runs.questions(tmp_path / "qa.jsonl", 9)
    paths = [without_fast / "ftcore", model, data, tmp_path / "run"]
    done = python(without_fast, "-c", RUN, *map(str, paths))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["generate", "evaluate", "train"])
def test_fast_without_fast_is_one_line(without_fast: Path, tmp_path: Path, command: str) -> None:
    model, data = tiny_runs.tiny_gpt2(tmp_path / "model"), tiny_runs.questions(tmp_path / "qa.jsonl", 9)
    options = {
        "generate": "--prompt Ada",
        "evaluate": f"--data {data}",
        "train": f"--train {data} --max-steps 1 --output {tmp_path / 'run'}",
    }
    words = f"-m ftcore.{command} --model {model} {options[command]} --fast".split()
    done = python(without_fast, *words)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"ftcore.{command}: ") and "ftcore.fast" in line
