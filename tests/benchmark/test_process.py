"""A process of another interpreter: its packages, its errors and its end."""

import importlib
import importlib.metadata
import json
import os
import sys
import sysconfig
import venv

import pytest

from ftcore import output
from ftcore.benchmark.process import WorkerProcess


def test_results_are_returned_and_what_is_printed_is_discarded():
    with WorkerProcess() as worker:
        assert worker.call(output.log, "printed beside the results") is None
        assert worker.call(os.system, "echo printed by a program") == 0
        assert worker.call(output.few, ["a", "b", "c"], 2) == "a, b and 1 more"


def test_errors_are_one_line_and_a_limitation_is_without_its_type(tmp_path, monkeypatch):
    (tmp_path / "limited.py").write_text("def train():\n    raise NotImplementedError('does not train')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with WorkerProcess() as worker:
        with pytest.raises(RuntimeError, match=r"^does not train$"):
            worker.call(importlib.import_module("limited").train)
        with pytest.raises(RuntimeError, match=r"^ValueError: two$"):
            worker.call(exec, "raise ValueError('two\\nlines')")
        assert worker.call(output.flag, "batch_size") == "--batch-size"


def test_a_process_that_ended_is_reported():
    with WorkerProcess() as worker:
        for function, argument in ((os._exit, 3), (output.flag, "lr")):
            with pytest.raises(RuntimeError, match=r"^its process ended with status 3$"):
                worker.call(function, argument)


def test_a_process_ends_with_its_block():
    with WorkerProcess() as worker:
        assert worker.call(json.dumps, [1]) == "[1]"
        assert worker.process.poll() is None
    assert worker.process.returncode == 0


def test_another_python_has_its_own_packages_and_this_ftcore(tmp_path, monkeypatch):
    """Neither the packages of this one nor those that PYTHONPATH names; not even an ftcore of its own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    venv.create(tmp_path, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", vars={"base": str(tmp_path), "installed_base": str(tmp_path)})
    for name, content in (
        ("ftcore/__init__.py", "no Python"),
        ("engine-1.5.dist-info/METADATA", "Version: 1.5\n"),
    ):
        file = tmp_path / paths["purelib"] / name
        file.parent.mkdir()
        file.write_text(content)
    python = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    with WorkerProcess(str(tmp_path / python)) as worker:
        assert worker.call(output.flag, "batch_size") == "--batch-size"
        assert worker.call(importlib.metadata.version, "engine") == "1.5"
        with pytest.raises(RuntimeError, match=r"^ModuleNotFoundError: No module named 'torch'$"):
            worker.call(importlib.import_module, "torch")
