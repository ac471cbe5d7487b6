"""Run directories: refused where they hold something else, pruned, and written atomically."""

import errno
import json
import os
import select
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.checkpoints.files import directory_lock
from ftcore.training.options import TrainOptions
from ftcore.training.run_directory import RunDirectory, atomic_directory, new_path


def a_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.open()
    run.save_options(TrainOptions())
    run.close()
    return run


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    with pytest.raises(
        ValueError, match="already holds a run: `resume` continues it, `overwrite` replaces it"
    ):
        RunDirectory(tmp_path / "run").open()


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for file in (run.best, run.last, run.step_checkpoint(5), run.state.parent, run.path / "notes"):
        file.mkdir(parents=True)
        (file / "file").touch()
    run.metrics_log.append({"step": 1})
    run.picture.touch()
    run.open(overwrite=True)
    assert {file.name for file in run.path.iterdir()} == {"notes", ".lock"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_without_a_run_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="holds no run: choose another `output`"):
            RunDirectory(path).open(overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_or_new_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / ".train_config.json.part").touch()  # left by a process killed before its first save
    RunDirectory(tmp_path).open()
    RunDirectory(tmp_path / "a" / "b").open(overwrite=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_default_directories_are_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {new_path(Path("runs")) for _ in range(5)}
    assert len(made) == 5 and {path.parent for path in made} == {Path("runs")}


# Two processes


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, how: dict[str, bool]) -> None:
    pytest.importorskip("fcntl")
    run = a_run(tmp_path / "run")
    run.open(overwrite=True)
    if how:  # else it is a new run in both processes
        run.save_options(TrainOptions())
        run.state.parent.mkdir()
        run.state.touch()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"another process is at work on {run.path}"):
        RunDirectory(run.path).open(**how)
    assert contents(tmp_path) == before
    run.close()
    RunDirectory(run.path).open(**how)


def test_a_run_that_another_process_has_made_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first check and the lock."""

    def lock_after_another(directory: Path, *others: Any) -> Any:
        monkeypatch.undo()
        a_run(directory)
        return directory_lock(directory, *others)

    monkeypatch.setattr("ftcore.training.run_directory.directory_lock", lock_after_another)
    with pytest.raises(ValueError, match="already holds a run"):
        RunDirectory(tmp_path / "run").open()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_of_many_processes_at_once_one_gets_the_directory(tmp_path: Path) -> None:
    reader, writer = os.pipe()  # closed once the others have been refused

    def make_run() -> None:
        status = 1
        try:
            os.close(writer)
            run = RunDirectory(tmp_path / "run")
            run.open(overwrite=True)
            run.save_options(TrainOptions(seed=os.getpid()))
            status = 0
            select.select([reader], [], [], 60)
        finally:
            os._exit(status)

    for _ in range(12):
        os.fork() or make_run()
    statuses = dict(os.wait() for _ in range(11))
    os.close(writer)
    statuses |= dict([os.wait()])
    assert sorted(map(os.waitstatus_to_exitcode, statuses.values())) == [0, *[1] * 11]
    seed = json.loads((tmp_path / "run" / "train_config.json").read_text())["seed"]
    assert statuses[seed] == 0


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    RunDirectory(tmp_path).open()
    line = f"warning: {tmp_path} cannot be locked (No locks available): let no other process write to it"
    assert capsys.readouterr().err.splitlines() == [line]


@settings(deadline=None, max_examples=20)
@given(steps=st.sets(st.integers(1, 2_000_000), max_size=8), keep=st.integers(1, 9) | st.none())
def test_pruning_keeps_the_newest(
    steps: set[int], keep: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = a_run(tmp_path_factory.mktemp("runs") / "run")
    for directory in (run.best, run.last, *map(run.step_checkpoint, steps)):
        directory.mkdir(parents=True)
        (directory / "model.safetensors").touch()
    run.prune_checkpoints(keep)
    kept = sorted(steps)[-keep:] if keep else sorted(steps)
    found = {path.name for path in run.checkpoints.iterdir()} if steps else set()
    assert found == {run.step_checkpoint(step).name for step in kept}
    assert run.best.exists() and run.last.exists()


def test_a_new_directory_is_created_atomically(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as place:
        place.mkdir()
        (place / "config.json").touch()
        raise KeyboardInterrupt
    assert not target.exists()
    with atomic_directory(target) as place:  # reuses the leftover files
        (place / "model.safetensors").touch()
        assert not target.exists()
    assert {file.name for file in target.iterdir()} == {"config.json", "model.safetensors"}
    with atomic_directory(target) as place:
        assert place == target
