"""Compiled programs on disk: which model may use which, in a folder that only its owner can write to."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.decoding import prepare_for_decoding
from ftcore.fast import compiled_step, program_cache
from ftcore.fast.program_cache import ProgramCache, is_private
from ftcore.models import GPT2Config, T5Config, gpt2
from tests.helpers.small_models import VOCAB, random_model

GPT2 = GPT2Config(vocab_size=VOCAB, n_embd=16, n_head=2, n_layer=1, n_positions=32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProgramCache:
    """A cache whose programs are texts."""

    def load(path: Path) -> str:
        if path.read_text(encoding="utf-8") == "damaged":
            raise RuntimeError
        return path.read_text(encoding="utf-8")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(program_cache, "load", load)
    return ProgramCache(prepare_for_decoding(random_model(GPT2)))


def written(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text, encoding="utf-8")


def never(path: Path) -> None:
    raise AssertionError("compiled again")


def test_a_program_is_compiled_once(cache: ProgramCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert not cache.has_programs()
    assert cache.get("rows", written("program")) == "program"
    path = cache.directory / "rows.pt2"
    assert capsys.readouterr().err == f"compiling the decoding step, for about a minute, to {path}\n"
    assert cache.has_programs() and cache.get("rows", never) == "program"
    assert capsys.readouterr().err == f"the compiled decoding step is loaded from {path}\n"
    assert os.listdir(cache.directory) == ["rows.pt2"]


def test_a_program_is_kept_where_a_group_may_write_by_default(cache: ProgramCache) -> None:
    previous = os.umask(0o002)
    try:
        cache.get("rows", written("program"))
    finally:
        os.umask(previous)
    assert cache.get("rows", never) == "program"


def test_a_damaged_or_deleted_program_is_compiled_again(cache: ProgramCache) -> None:
    cache.get("rows", written("program"))
    (cache.directory / "rows.pt2").write_text("damaged", encoding="utf-8")
    assert cache.get("rows", written("new")) == "new"
    shutil.rmtree(cache.directory)
    assert cache.get("rows", written("newer")) == "newer"


def test_a_failed_compilation_leaves_nothing(cache: ProgramCache) -> None:
    def fail(path: Path) -> None:
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(path.parent)  # not a folder of others
        path.write_text("half", encoding="utf-8")
        raise ValueError("no compiler")

    with pytest.raises(ValueError, match="no compiler"):
        cache.get("rows", fail)
    assert os.listdir(cache.directory) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a folder has no owner here")
@pytest.mark.parametrize("folder", ["directory", "root"])
@pytest.mark.parametrize(
    "attack", ["writable by others", "writable by a group", "foreign", "a link", "a file"]
)
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: ProgramCache,
    folder: str,
    attack: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A hostile program in it is not run, and nothing is written to it."""
    cache.get("rows", written("hostile"))
    path = cache.directory if folder == "directory" else cache.directory.parent
    if attack.startswith("writable"):
        path.chmod(0o707 if "others" in attack else 0o770)
    elif attack == "foreign":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere") if attack == "a link" else path.touch()
    capsys.readouterr()
    assert cache.get("rows", written("own")) == "own"
    warning = (
        f"warning: {cache.directory}: not a folder that only you can write to; compiled programs are not kept"
    )
    assert capsys.readouterr().err.splitlines()[0] == warning


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a file has no owner here")
def test_a_program_that_others_can_write_to_is_not_run(cache: ProgramCache) -> None:
    cache.get("rows", written("hostile"))
    (cache.directory / "rows.pt2").chmod(0o666)
    assert cache.get("rows", written("own")) == "own"
    assert is_private(cache.directory / "rows.pt2")


# What a program depends on


def key(model: Any, dtype: torch.dtype = torch.float32) -> str:
    return ProgramCache(prepare_for_decoding(model, dtype)).directory.name


def test_the_key_depends_on_the_shape_and_not_on_the_values_of_weights() -> None:
    model = random_model(GPT2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.wte.weight.neg_()
    assert key(model) == key(other)
    configs = [
        GPT2Config(**vars(GPT2) | change) for change in ({"n_head": 4}, {"n_layer": 2}, {"n_embd": 32})
    ]
    models = [model, *map(random_model, configs), random_model(T5Config(d_model=16, num_layers=1, d_ff=16))]
    keys = [key(model, dtype) for model in models for dtype in (torch.float32, torch.int8)]
    assert len(set(keys)) == len(keys)


def test_the_key_depends_on_settings_of_modules() -> None:
    model = random_model(GPT2)
    before = key(model)
    model.transformer.h[0].attn.scale *= 2
    assert key(model) != before


def test_the_key_depends_on_settings_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(GPT2)
    before = key(model)
    monkeypatch.setitem(compiled_step.SETTINGS, "realize_opcount_threshold", 9)
    assert key(model) != before


def test_the_key_depends_on_code_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a function of the page was replaced in this process."""
    model = random_model(GPT2)
    keys = [key(model)]
    for owner, name in ((gpt2, "split_heads"), (gpt2.GPT2MLP, "forward"), (gpt2.GPT2Model, "_position_ids")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *arguments: None)
            keys.append(key(model))
    assert len(set(keys)) == 4 and key(model) == keys[0]


@pytest.mark.parametrize("name", ["get_num_threads", "__version__"])
def test_the_key_depends_on_the_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare_for_decoding(random_model(GPT2))
    before = ProgramCache(model).directory
    monkeypatch.setattr(torch, name, (lambda: 77) if name == "get_num_threads" else "1.0")
    assert ProgramCache(model).directory != before


def test_another_process_finds_the_same_key() -> None:
    """Hashes of texts, and so the order of sets, differ between processes."""
    program = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1]))\n"
        "from ftcore.models import GPT2Config, GPT2LMHeadModel\n"
        "from ftcore.fast import prepare_for_decoding\n"
        "from ftcore.fast.program_cache import ProgramCache\n"
        f"model = GPT2LMHeadModel({GPT2!r})\n"
        "print(ProgramCache(prepare_for_decoding(model.eval())).directory.name)"
    )
    command = [sys.executable, "-c", program, str(torch.get_num_threads())]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == key(random_model(GPT2))


def test_fast_is_imported_where_pytorch_has_no_onednn() -> None:
    """Its training layers work there; `torch.ops` has no such products."""
    program = (
        "import torch\n"
        "class Missing:\n"
        "    def __getattr__(self, name): raise AttributeError(name)\n"
        "torch.ops.mkldnn = torch.ops.onednn = Missing()\n"
        "import ftcore.fast, ftcore.fast.compiled_step"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
