"""Run directories: refused where they hold something else, pruned, and written atomically."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.training.options import TrainOptions
from ftcore.training.run_directory import RunDirectory, atomic_directory


def a_run(path: Path) -> RunDirectory:
    run = RunDirectory.create(str(path), overwrite=False)
    run.save_options(TrainOptions())
    return run


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    with pytest.raises(
        ValueError, match="already holds a run: `resume` continues it, `overwrite` replaces it"
    ):
        RunDirectory.create(str(tmp_path / "run"), overwrite=False)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for file in (run.best, run.last, run.step_checkpoint(5), run.state.parent, run.path / "notes"):
        file.mkdir(parents=True)
        (file / "file").touch()
    run.metrics_log.append({"step": 1})
    run.picture.touch()
    RunDirectory.create(str(run.path), overwrite=True)
    assert [file.name for file in run.path.iterdir()] == ["notes"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_without_a_run_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="holds no run: choose another `output`"):
            RunDirectory.create(str(path), overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_an_empty_or_new_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / ".train_config.json.part").touch()  # left by a process killed before its first save
    RunDirectory.create(str(tmp_path), overwrite=False)
    assert RunDirectory.create(str(tmp_path / "a" / "b"), overwrite=True).path.is_dir()


def test_default_directories_are_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {RunDirectory.create(None, overwrite=False).path for _ in range(5)}
    assert len(made) == 5 and {path.parent for path in made} == {Path("runs")}


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
