"""The notebooks run, their outputs have pictures, and their files agree with the scripts."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

for package in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra test")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """make_notebooks.py as a module."""
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook: Any) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def kinds(notebook: Any) -> set[str]:
    return {kind for output in outputs(notebook) for kind in output.get("data", {})}


def test_each_script_is_a_notebook(maker):
    assert sorted(maker.NAMES) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted([*NAMES, "make_notebooks"])


@pytest.mark.parametrize("name", NAMES)
def test_the_file_agrees_with_the_script(maker, name):
    saved = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in saved["cells"]]
    assert cells == list(maker.read_cells(script))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_small_and_has_its_outputs(name):
    path = FOLDER / f"{name}.ipynb"
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 300_000
    assert "image/png" in kinds(saved)
    assert not any(output["output_type"] == "error" for output in outputs(saved))
    assert str(ROOT) not in path.read_text(encoding="utf-8")


SHORTER = {
    "STEPS, LEARNING_RATE = 150,": "STEPS, LEARNING_RATE = 5,",
    'read("valid")[:200]': 'read("valid")[:20]',
}


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(maker, name, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # history
    script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for long, short in SHORTER.items() if name == "fine_tune" else ():
        assert long in script
        script = script.replace(long, short)
    notebook = maker.run(maker.make_notebook(script))
    saved = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert kinds(notebook) >= kinds(saved) >= {"image/png"}
    for output in outputs(notebook):
        assert "Warning" not in output.get("text", "")  # tqdm's, for example, without ipywidgets
        assert len(output.get("data", {}).get("text/plain", "")) < 2000


def test_cells_of_a_script(maker):
    script = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # %% no cell\n\n\n# %%\nx\n"
    assert list(maker.read_cells(script)) == [
        ("markdown", "# Title\n\nText."),
        ("code", "x = 1  # %% no cell"),
        ("code", "x"),
    ]


def test_times_and_large_outputs_are_left_out(maker):
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    kept = new_output("stream", name="stdout", text="a")
    outputs = [
        kept,
        new_output("stream", text="\r50%"),
        new_output("stream", text="x" * 200_000),
    ]
    cell = new_code_cell("1", outputs=outputs, metadata={"execution": {"iopub.execute_input": "now"}})
    (cleaned,) = maker.without_what_varies(new_notebook(cells=[cell])).cells
    assert (cleaned.outputs, cleaned.metadata) == ([kept], {})
