"""Sharded states on disk, as FSDP writes them: consistent after a kill at any moment.

Here a single process writes and reads plain tensors; test_distributed.py tests sharded ones.
"""

import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftcore.training.sharded import load_sharded, save_sharded


@pytest.fixture(autouse=True)
def ignore_single_process_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(path: Path, step: int) -> None:
    save_sharded(path, {"progress": {"step": step}}, *trained(step))


def load(path: Path) -> tuple[int, nn.Module, torch.optim.Optimizer]:
    state = torch.load(path, weights_only=True)
    model, optimizer = trained(0)
    load_sharded(path, state, model, optimizer)
    return state["progress"]["step"], model, optimizer


def assert_consistent(path: Path, steps: tuple[int, ...]) -> None:
    step, model, optimizer = load(path)
    assert step in steps
    wanted, wanted_optimizer = trained(step)
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    moments, wanted_moments = (one.state_dict()["state"] for one in (optimizer, wanted_optimizer))
    torch.testing.assert_close(moments, wanted_moments, rtol=0, atol=0)


def test_saving_does_not_change_the_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained(2)
    save_sharded(tmp_path / "state.pt", {"progress": {"step": 2}}, model, optimizer)
    torch.testing.assert_close(optimizer.state_dict(), trained(2)[1].state_dict(), rtol=0, atol=0)
    assert_consistent(tmp_path / "state.pt", (2,))


def test_saving_a_step_twice_uses_two_directories(tmp_path: Path) -> None:
    save(tmp_path / "state.pt", 3)
    first = torch.load(tmp_path / "state.pt", weights_only=True)["shards"]
    save(tmp_path / "state.pt", 3)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["shards"] != first
    assert_consistent(tmp_path / "state.pt", (3,))


def killed(act: Callable[[], Any], operation: int) -> bool:
    """Run `act` in a child process that is killed before its n-th change on disk; False if it finished."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    try:
        left = operation

        def counting(change: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments, **options)

            return counted

        for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "replace"), (torch, "save")):
            setattr(owner, name, counting(getattr(owner, name)))
        act()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_killed_before_any_change_on_disk(tmp_path: Path) -> None:
    old = tmp_path / "old" / "state.pt"
    old.parent.mkdir()
    save(old, 2)
    seen = set()
    for operation in range(1, 100):
        path = tmp_path / str(operation) / "state.pt"
        shutil.copytree(old.parent, path.parent)
        was_killed = killed(lambda path=path: save(path, 4), operation)
        assert_consistent(path, (2, 4))
        seen.add(load(path)[0])
        save(path, 5)  # over the files that the kill has left
        assert_consistent(path, (5,))
        if not was_killed:
            break
    assert seen == {2, 4}
    assert operation > 5
