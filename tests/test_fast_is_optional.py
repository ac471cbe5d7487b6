"""Without ftcore/fast everything else works, and private torch APIs occur there alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import tiny_runs

PACKAGE = Path(__file__).resolve().parent.parent / "ftcore"
PRIVATE = re.compile(r"\btorch\.(\w+\.)*_\w+|\btorch\.ops\.mkldnn\b|\bfrom torch(\.\w+)* import \(?\s*_")

RUN = """
import importlib, sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

package, data, *models = Path(sys.argv[1]), *sys.argv[2:]
import ftcore
assert Path(ftcore.__file__).parent == package
for path in package.rglob("*.py"):
    module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
    if not module.startswith(("ftcore.bench", "ftcore.__main__", "ftcore.lessons.templates")):
        importlib.import_module(module)
train, evaluate, generate = (sys.modules[f"ftcore.{name}"].main for name in ("train", "evaluate", "generate"))
sys.modules["ftcore.training.curves"].draw_curves = lambda metrics: None  # takes long
for model in models:
    training = f"--model {model} --train {data} --max-steps 2 --eval-answers 1 --max-target-length 20".split()
    assert train([*training, "--output", f"{model}-run"]) == 0
    assert evaluate(f"--model {model}-run/last --data {data} --max-target-length 20".split()) == 0
    assert generate(f"--model {model}-run/last --prompt Ada".split()) == 0
for name, main, options in (
    ("train", train, f"--train {data} --max-steps 1 --output {model}-fast"),
    ("evaluate", evaluate, f"--data {data}"),
    ("generate", generate, "--prompt Ada"),
):
    with redirect_stderr(StringIO()) as errors:
        try:
            main(f"--model {model} {options} --fast".split())
            raise AssertionError(f"{name} runs")
        except SystemExit as ending:
            assert ending.code == 2
    [line] = errors.getvalue().splitlines()
    assert line.startswith(f"ftcore.{name}: ") and "ftcore.fast" in line, line
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


def test_training_evaluation_and_generation_without_fast(tmp_path: Path) -> None:
    """With a copy of the package, in a process of its own; --fast is refused in one line."""
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / "ftcore", ignore=shutil.ignore_patterns("fast", "__pycache__"))
    # The import hook of an editable install would find the missing package in the repository.
    (copy / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [hook for hook in sys.meta_path if 'Editable' not in str(hook)]\n"
    )
    data = tiny_runs.questions(tmp_path / "qa.jsonl", 9)
    models = tiny_runs.tiny_gpt2(tmp_path / "gpt2"), tiny_runs.tiny_t5(tmp_path / "t5")
    command = [sys.executable, "-c", RUN, *map(str, (copy / "ftcore", data, *models))]
    environment = os.environ | {"PYTHONPATH": str(copy)}  # the folder is then first on its path
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
