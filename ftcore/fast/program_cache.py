"""Compiled programs kept on disk: the first process compiles, later ones load them in milliseconds.

A program is machine code, which runs with the rights of the process that loads it. It is therefore kept in,
and loaded from, a folder that only its owner can write to.
"""

import hashlib
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ftcore.decoding import state
from ftcore.models import Model, attention, cache
from ftcore.output import is_main_process, warn

Program = Callable[[list[Tensor]], list[Tensor]]


class ProgramCache:
    """The programs of one model on this machine, files `NAME.pt2` of a folder.

    The folder's name is a hash of all that a program depends on: PyTorch, the processor, the number of
    threads, and of the model the code, the configuration, and the shapes, but not the values, of its weights.

    Args:
        model: prepared for decoding.
    """

    def __init__(self, model: Model) -> None:
        described = "\n".join(map(str, describe(model)))
        self.directory = cache_root() / hashlib.sha256(described.encode()).hexdigest()[:32]

    def has_programs(self) -> bool:
        """Whether any program is kept."""
        return any(self.directory.glob("*.pt2"))

    def get(self, name: str, compile: Callable[[Path], Any]) -> Program:
        """Load a program; where none is kept, or a damaged one, compile it first.

        Args:
            name: of the program, a file name.
            compile: writes the program to the path that it is given.
        """
        path = self.directory / f"{name}.pt2"
        if not self._make_private():
            warn(f"{self.directory}: not a folder that only you can write to; compiled programs are not kept")
            with tempfile.TemporaryDirectory(prefix="ftcore-") as directory:
                return _compile(Path(directory) / path.name, compile)
        if is_private(path):
            with suppress(RuntimeError):  # damaged
                program = load(path)
                report(f"the compiled decoding step is loaded from {path}")
                return program
        return _compile(path, compile)

    def _make_private(self) -> bool:
        """Make the folder, for its owner only. Returns whether it is writable by this user alone."""
        folders = (self.directory.parent, self.directory)
        with suppress(OSError):
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.directory.is_dir() and all(map(is_private, folders))


def _compile(path: Path, compile: Callable[[Path], Any]) -> Program:
    report(f"compiling the decoding step, for about a minute, to {path}")
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as directory:
        temporary = Path(directory) / path.name
        # Not the compiler's own cache, a folder in /tmp that others may have made.
        with patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": directory}):
            compile(temporary)
        temporary.chmod(0o600)
        os.replace(temporary, path)
    return load(path)


def load(path: Path) -> Program:
    """Load a program. Raises RuntimeError where the file is damaged."""
    return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).run


def report(line: str) -> None:
    """Print a line to standard error."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def cache_root() -> Path:
    """$XDG_CACHE_HOME/ftcore/programs, by default ~/.cache/ftcore/programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftcore" / "programs"


def is_private(path: Path) -> bool:
    """Whether a file or folder exists, is no link, and is owned and writable by this user only."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    is_ours = not hasattr(os, "geteuid") or (
        status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
    return is_ours and not stat.S_ISLNK(status.st_mode)


def step_weights(model: Model) -> dict[str, Tensor]:
    """The parameters and buffers that a decoding step reads: all but those of T5's encoder."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}


# What a program depends on


def describe(model: Model) -> Iterator[object]:
    """Everything that a program depends on, in a form whose text is the same in every process."""
    yield torch.__version__, torch.version.git_version, torch.get_num_threads()
    yield platform.platform(), processor()
    yield model.config
    from ftcore.fast import compiled_step  # which imports this module

    yield compiled_step.SETTINGS
    modules: set[ModuleType] = {attention, cache, state, compiled_step}
    for name, part in model.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, SETTINGS)}
        yield name, type(part).__qualname__, settings
        modules.add(sys.modules[type(part).__module__])
    for name, tensor in step_weights(model).items():
        yield name, tuple(tensor.shape), tensor.dtype, None if tensor.is_mkldnn else tensor.stride()
    for module in sorted(modules, key=lambda module: module.__name__):
        if not module.__name__.startswith("torch."):
            yield module.__name__, [describe_code(code) for code in codes(module)]


SETTINGS = (bool, int, float, str, type(None), torch.dtype)


def processor() -> str:
    """The processor's instruction sets, where Linux lists them; else its name."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), text)
    return platform.processor()


def codes(module: ModuleType) -> Iterator[CodeType]:
    """The code of a module's functions and methods as they are now, also where they have been replaced."""
    for value in vars(module).values():
        members = vars(value).values() if isinstance(value, type) else [value]
        for member in members:
            code = getattr(getattr(member, "__func__", member), "__code__", None)
            if isinstance(code, CodeType):
                yield code


def describe_code(code: CodeType) -> object:
    """Instructions, names and constants, without file names and line numbers."""
    constants = [describe_code(const) if isinstance(const, CodeType) else const for const in code.co_consts]
    constants = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in constants]
    return code.co_code, code.co_names, constants
