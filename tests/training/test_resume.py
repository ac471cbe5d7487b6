"""A run that is stopped or killed, then resumed, is bitwise equal to the uninterrupted run.

Dropout is on, so a random state that is not restored changes the results. An epoch has three steps, the last
one shorter.
"""

import json
import multiprocessing
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftcore.checkpoints.checkpoint import load_model
from ftcore.data import DataLoader, load_tokenizer
from ftcore.training import validation
from ftcore.training.state import saved_step
from tests.helpers import tiny_runs
from tests.helpers.resumed_runs import STEPS, Bench, assert_same, at_step, main, outcome, refusal, stop_at


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("t5", tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("gpt2", tmp_path_factory.mktemp("gpt2"))


# --- stopped on request


@settings(deadline=None, max_examples=4)
@given(step=st.integers(1, STEPS - 1))
def test_t5_stopped_at_any_step(t5: Bench, step: int) -> None:
    run = t5.new_directory()
    stop_at(t5, run, step)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= step
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


@pytest.mark.parametrize("step", [1, 3, 4])  # the second ends an epoch
def test_gpt2_stopped(gpt2: Bench, step: int) -> None:
    run = gpt2.new_directory()
    stop_at(gpt2, run, step)
    assert gpt2.resume(run) == 0
    assert_same(outcome(run), gpt2.wanted)


@pytest.mark.parametrize("step", [1, 4])
def test_lora_stopped(t5: Bench, step: int) -> None:
    options = "--lora-rank 2 --lora-dropout 0.2"
    whole, run = t5.new_directory(), t5.new_directory()
    assert t5.train(whole, options) == 0
    stop_at(t5, run, step, options)
    assert t5.resume(run) == 0
    assert_same(outcome(run), outcome(whole))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_pretraining_stopped(
    t5: Bench, gpt2: Bench, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{place} is number {n}. " for n, place in enumerate(tiny_runs.PLACES * 9)))
    bench, task = (t5, "span-corruption") if family == "t5" else (gpt2, "lm")
    data = bench.folder / "train.jsonl"
    monkeypatch.setattr(bench, "command", bench.command.replace(str(data), str(text)))
    options = f"--task {task} --max-source-length 40"
    whole, run = bench.new_directory(), bench.new_directory()
    assert bench.train(whole, options) == 0
    stop_at(bench, run, 3, options)
    assert bench.resume(run) == 0
    assert_same(outcome(run), outcome(whole))


@pytest.mark.parametrize("step", [1, 4])
def test_adafactor_stopped(gpt2: Bench, step: int) -> None:
    whole, run = gpt2.new_directory(), gpt2.new_directory()
    assert gpt2.train(whole, "--optimizer adafactor") == 0
    stop_at(gpt2, run, step, "--optimizer adafactor")
    assert gpt2.resume(run) == 0
    assert_same(outcome(run), outcome(whole))


def test_stopped_twice_and_resumed_with_other_resumable_options(t5: Bench) -> None:
    """Workers do not change the batches, and more frequent validation does not change the weights."""
    run = t5.stopped()
    patch = at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        assert t5.resume(run, "--workers 1 --save-every 2") == 0
    finally:
        patch.undo()
    assert t5.resume(run, "--eval-every 1 --workers 0 --gradient-checkpointing") == 0
    got = outcome(run)
    assert_same(got["last"], t5.wanted["last"])
    assert_same(got["optimizer"], t5.wanted["optimizer"])


def test_intervals_of_validation_saving_and_logging_change_no_weight(t5: Bench) -> None:
    run = t5.new_directory()
    t5.train(run, "--eval-every 3 --save-every 1 --keep 1 --log-every 1 --eval-answers 2 --num-beams 2")
    assert_same(outcome(run)["last"], t5.wanted["last"])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_stops_a_run_and_it_saves(t5: Bench) -> None:
    """The kernel sends SIGHUP, and a shell sends it again."""
    run = t5.new_directory()
    patch = at_step(3, lambda: [os.kill(os.getpid(), signal.SIGHUP) for _ in range(2)])
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        assert t5.train(run) == 0
    finally:
        patch.undo()
        signal.signal(signal.SIGHUP, before)
    assert saved_step(run / "state" / "training_state.pt") == 3
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup(t5: Bench) -> None:
    run = t5.new_directory()
    patch = at_step(3, lambda: os.kill(os.getpid(), signal.SIGHUP))
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert t5.train(run) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
        patch.undo()
    assert_same(outcome(run), t5.wanted)


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize("validating", [False, True])
def test_a_lost_worker_stops_a_run_and_it_saves(
    t5: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, validating: bool
) -> None:
    """Its step and the validation are completed first: an epoch's last batches come from this process."""
    run, patch = t5.new_directory(), at_step(1, kill_workers)
    if validating:
        patch.undo()
        score_loss = validation.score_loss

        def kill_and_score(model: Any, loader: Any, *others: Any) -> Any:
            def killing() -> Iterator[Any]:
                for number, batch in enumerate(loader):
                    if number == 1:
                        kill_workers()
                    yield batch

            return score_loss(model, killing(), *others)

        monkeypatch.setattr(validation, "score_loss", kill_and_score)
    with pytest.raises(SystemExit) as ending:
        t5.train(run, "--workers 1 --valid-share 0.4 --eval-batch-size 1")
    patch.undo()
    monkeypatch.undo()
    assert ending.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    step = saved_step(run / "state" / "training_state.pt")
    assert "a worker process of the data loader was lost, perhaps for lack of memory" in line
    assert f"saved after step {step}, resume with fewer --workers: python -m ftcore.train --output" in line
    assert t5.resume(run) == 0
    whole = t5.new_directory()
    assert t5.train(whole, "--valid-share 0.4 --eval-batch-size 1") == 0
    assert_same(outcome(run), outcome(whole))


@pytest.mark.parametrize("batch", [4, 5])  # the first and the second micro-batch of a step
def test_a_batch_that_cannot_be_read_stops_a_run_and_it_saves(
    t5: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, batch: int
) -> None:
    """A corpus that was removed, for example."""
    run, batches = t5.new_directory(), DataLoader._batches

    def failing(loader: DataLoader) -> Iterator[Any]:
        for number, one in enumerate(batches(loader)):
            if loader.batch_sampler.shuffle and number == batch:
                raise ValueError("ids: no such file")
            yield one

    monkeypatch.setattr(DataLoader, "_batches", failing)
    with pytest.raises(SystemExit) as ending:
        t5.train(run)
    monkeypatch.undo()
    assert ending.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "ftcore.train: ids: no such file; saved after step 2, resume with python -m ftcore"
    )
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


def test_stopping_prints_the_resume_command(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    run = t5.new_directory()
    stop_at(t5, run, 3)
    output = capsys.readouterr().out
    assert f"stopped after step 3 of {STEPS} and saved" in output
    assert f"python -m ftcore.train --output {run} --resume" in output


def test_resuming_a_finished_run_changes_nothing(t5: Bench) -> None:
    run = t5.new_directory()
    t5.train(run)
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


def test_a_run_started_with_overwrite_resumes(t5: Bench) -> None:
    run = t5.new_directory()
    stop_at(t5, run, 1)
    stop_at(t5, run, 2, "--overwrite")
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


def test_the_saved_options_of_a_resumed_run_start_a_new_run(t5: Bench) -> None:
    run, other = t5.stopped(), t5.new_directory()
    t5.resume(run)
    assert main(["--config", str(run / "train_config.json"), "--output", str(other)]) == 0
    assert_same(outcome(other), t5.wanted)


# --- killed


def killed(act: Callable[[], Any], operation: int) -> bool:
    """Run `act` in a child process that is killed before its n-th change on disk; False if it finished."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        count = 0

        def counting(change: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments, **options)

            return counted

        for owner, name in (
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
            (Path, "replace"),
            (Path, "rename"),
        ):
            setattr(owner, name, counting(getattr(owner, name)))
        act()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_killed_and_resumed_while_its_workers_still_run(t5: Bench) -> None:
    """They have inherited the file that is locked."""
    run = t5.new_directory()
    reader, writer = os.pipe()  # ends when no process has it open any more
    if not (child := os.fork()):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            at_step(4, lambda: os.kill(os.getpid(), signal.SIGKILL))
            t5.train(run, "--workers 2 --save-every 1")
        finally:
            os._exit(1)
    os.close(writer)
    os.waitpid(child, 0)
    assert not select.select([reader], [], [], 0)[0], "the workers have ended already"
    os.close(reader)
    assert t5.resume(run) == 0
    assert_same(outcome(run)["last"], t5.wanted["last"])


def assert_everything_loads(run: Path) -> None:
    """All checkpoints load; unfinished ones have hidden names."""
    for directory in (run / "best", run / "last", *run.glob("checkpoints/step-*")):
        if directory.exists():
            load_model(directory)
            load_tokenizer(directory)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@settings(deadline=None, max_examples=4)
@given(operation=st.integers(1, 400))
@example(operation=2)
@example(operation=264)  # the last save, between its files
def test_killed_before_any_change_on_disk(gpt2: Bench, operation: int) -> None:
    run = gpt2.new_directory()
    was_killed = killed(lambda: gpt2.train(run, "--save-every 2 --keep 1"), operation)
    assert_everything_loads(run)
    if was_killed and not (run / "state" / "training_state.pt").exists():
        assert gpt2.train(run, "--overwrite" if (run / "train_config.json").exists() else "") == 0
    else:
        assert gpt2.resume(run) == 0
    assert_same(outcome(run), gpt2.wanted)
    assert_everything_loads(run)


def test_an_incomplete_last_line_of_the_log_is_dropped(t5: Bench) -> None:
    run = t5.new_directory()
    stop_at(t5, run, 4)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "train_loss": 1.0}\n{"step": 6, "tra')
    t5.resume(run)
    assert_same(outcome(run), t5.wanted)


JUNK = [b"", b"\xff", b'{"step": 1, "tr', b"7", b"[" * 100_000, b"{}", b'{"step": "1"}', b'{"step": null}']
JUNK += [b'{"step": 1, "train_loss": "1"}', b'{"step": 1, "train_loss": [1]}', b'{"step": true}']
JUNK += [b'{"step": 1, "f1": NaN}', b'{"step": 1.5}', b'{"step": 4, "source": 1, "references": null}']


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions.jsonl"])
def test_broken_lines_of_logs_are_skipped(t5: Bench, capsys: pytest.CaptureFixture, name: str) -> None:
    """They stop neither a resumed run nor its report."""
    run = t5.new_directory()
    stop_at(t5, run, 5)
    log = run / name
    first, *others = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + b"".join(junk + b"\n" for junk in JUNK) + b"".join(others))
    capsys.readouterr()
    patch = pytest.MonkeyPatch()
    patch.setattr("ftcore.training.run_directory.RunDirectory.save_predictions", lambda *_: None)
    try:
        assert t5.resume(run) == 0
    finally:
        patch.undo()
    assert_same(outcome(run), t5.wanted)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(JUNK)
    for number, line in enumerate(warnings, 2):
        assert line.startswith(f"warning: {log}, line {number}: ") and line.endswith("; skipped")
    assert (run / "report.html").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files in a forked child")
@pytest.mark.parametrize("limit", [0, 300, 1500, 12_000, 50_000, 100_000])
def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_old_state(t5: Bench, limit: int) -> None:
    """The limit on the size of files stops one write or another: log, weights, state, report."""
    run = t5.stopped()
    state = run / "state" / "training_state.pt"
    before = state.read_bytes()

    def resume_with_limit() -> int:
        import resource  # not on Windows

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return t5.resume(run)

    status, line = in_child(resume_with_limit)
    assert (status, line.count("\n")) in ((0, 0), (1, 1), (2, 1)), line
    if status:
        assert line.startswith(f"ftcore.train: {run}"), line
    if status and f"{state}: " in line:
        assert state.read_bytes() == before
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)
    assert not [*run.rglob("*.part")]


def in_child(act: Callable[[], int]) -> tuple[int, str]:
    """Exit status and standard error of `act` in a forked child."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with open(reader, encoding="utf-8") as errors:
            text = errors.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
    status: Any = 70
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = open(writer, "w", encoding="utf-8")  # noqa: SIM115
        status = act()
    except SystemExit as ending:
        status = ending.code
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def test_a_run_of_a_version_with_fewer_options_resumes(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    """Options that it lacked had their present defaults, and must keep them."""
    run = t5.stopped()
    config, state = run / "train_config.json", run / "state" / "training_state.pt"
    known = json.loads(config.read_text())
    del known["label_smoothing"]
    config.write_text(json.dumps(known))
    saved = torch.load(state, weights_only=True)
    del saved["options"]["label_smoothing"]
    torch.save(saved, state)
    line = refusal(lambda: t5.resume(run, "--label-smoothing 0.1"), capsys)
    assert "started with --label-smoothing 0.0, it cannot continue with --label-smoothing 0.1" in line
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


# --- refused


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--lr 0.5", "the run was started with --lr 0.01, it cannot continue with --lr 0.5"),
        ("--batch-size 2", "--batch-size 3, it cannot continue with --batch-size 2"),
        ("--optimizer adafactor --relative-steps", "it cannot continue with --optimizer adafactor"),
        ("--seed 4", "--seed 0, it cannot continue with --seed 4"),
        ("--eval-answers 7", "--eval-answers 1, it cannot continue with --eval-answers 7"),
        (
            "--freeze encoder.block.0",
            "without --freeze, it cannot continue with --freeze encoder.block.0",
        ),
        ("--pad-to-max-length", "without --pad-to-max-length, it cannot continue with --pad-to-max-length"),
        ("--precision bf16", "; start a new run from its weights: --model {run}/last"),
        ("--overwrite", "choose one"),
    ],
)
def test_other_options_are_refused(
    t5: Bench, capsys: pytest.CaptureFixture, options: str, complaint: str
) -> None:
    run = t5.stopped()
    before = (run / "train_config.json").read_bytes()
    assert complaint.format(run=run) in refusal(lambda: t5.resume(run, options), capsys)
    assert (run / "train_config.json").read_bytes() == before


def test_a_changed_training_file_is_refused(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    run = t5.new_directory()
    data = tiny_runs.questions(run.with_suffix(".jsonl"), 18)
    stop_at(t5, run, 1, f"--train {data}")
    data.write_text(data.read_text().replace("Arlo", "Oslo"))
    assert f"{data}: the training file has changed" in refusal(lambda: t5.resume(run), capsys)


def test_a_changed_validation_file_is_refused(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    """Scores on different files are not comparable, so best/ could not be selected."""
    run = t5.new_directory()
    data = tiny_runs.questions(run.with_suffix(".jsonl"), 4)
    stop_at(t5, run, 1, f"--valid {data}")
    data.write_text(data.read_text().replace("Arlo", "Oslo"))
    line = refusal(lambda: t5.resume(run), capsys)
    assert f"{data}: the validation file, which selected {run / 'best'}, has changed since" in line


@pytest.mark.parametrize("package", ["ftcore", "torch"])
def test_another_version_causes_a_warning(t5: Bench, capsys: pytest.CaptureFixture, package: str) -> None:
    """An upgrade during a long run should not lose it."""
    run = t5.stopped()
    state = run / "state" / "training_state.pt"
    saved = torch.load(state, weights_only=True)
    saved["versions"][package] = "0.0"
    torch.save(saved, state)
    capsys.readouterr()
    assert t5.resume(run) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run} was saved by {package} 0.0, this is ")
    assert_same(outcome(run), t5.wanted)


def test_a_state_with_the_fingerprint_of_the_training_file_alone(t5: Bench) -> None:
    run = t5.stopped()
    state = run / "state" / "training_state.pt"
    saved = torch.load(state, weights_only=True)
    saved["train_sha256"] = saved.pop("fingerprints")["train"]
    for name in ("versions", "config", "random_of_others"):
        del saved[name]
    torch.save(saved, state)
    assert t5.resume(run) == 0
    assert_same(outcome(run), t5.wanted)


def test_a_changed_model_is_refused(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    run = t5.new_directory()
    model = tiny_runs.tiny_t5(run.with_suffix(".model"))
    stop_at(t5, run, 1, f"--model {model}")
    tiny_runs.tiny_t5(model, d_ff=32)
    line = refusal(lambda: t5.resume(run), capsys)
    assert f"{model} is no longer the model of the run in {run}: d_ff was 24 in its config.json" in line
    tiny_runs.tiny_t5(model, feed_forward_proj="gelu")  # the shapes are the same
    line = refusal(lambda: t5.resume(run), capsys)
    assert "feed_forward_proj was 'relu' in its config.json and is 'gelu'" in line


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_state_is_refused(t5: Bench, capsys: pytest.CaptureFixture, damage: bytes | None) -> None:
    run = t5.stopped()
    state = run / "state" / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1000] if damage is None else damage)
    line = refusal(lambda: t5.resume(run), capsys)
    assert f"{state}: damaged, the run cannot be resumed" in line


def places(state: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a state."""
    keys = state if isinstance(state, dict) else range(len(state)) if isinstance(state, list) else ()
    found = [(state, key) for key in keys]
    return found + [place for key in keys for place in places(state[key])]


OTHER_KINDS: list[Any] = [None, True, -1, 2**70, 0.5, "x", [], {}, [1], {"x": 1}, (1, 2), [None] * 3]
OTHER_KINDS += [
    torch.zeros(()),
    torch.zeros(3, 3),
    torch.zeros(16).to_sparse(),
    torch.zeros(5, dtype=torch.int8),
]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_state_with_parts_of_other_kinds(t5: Bench, data: st.DataObject) -> None:
    """It is refused or fails in one line, or the run ends well."""
    run = t5.stopped()
    state = run / "state" / "training_state.pt"
    saved = torch.load(state, weights_only=True)
    depth = data.draw(st.sampled_from([1, 2, 9]))  # else nearly all places are options and moments
    container, key = data.draw(st.sampled_from([(c, k) for c, k in places(saved) if depth > 1 or c is saved]))
    if isinstance(container, dict) and data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = data.draw(st.sampled_from(OTHER_KINDS))
    torch.save(saved, state)
    status, errors = 0, StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(StringIO()):
            t5.resume(run)
    except SystemExit as ending:
        status = int(ending.code or 0)
    *_, line = errors.getvalue().splitlines() or [""]
    assert status in (0, 1, 2) and (status == 0 or line.startswith("ftcore.train: ")), line
    shutil.rmtree(run)


@pytest.mark.parametrize("flipped", [0.2, 0.5, 0.8])
def test_a_flipped_bit_of_a_state_is_refused(
    t5: Bench, capsys: pytest.CaptureFixture, flipped: float
) -> None:
    """In a weight or a moment, which torch would load."""
    run = t5.stopped()
    state = run / "state" / "training_state.pt"
    content = bytearray(state.read_bytes())
    content[int(flipped * len(content))] ^= 1
    state.write_bytes(content)
    assert f"{state}: damaged, the run cannot be resumed" in refusal(lambda: t5.resume(run), capsys)


def test_a_pickle_is_not_loaded(t5: Bench, capsys: pytest.CaptureFixture) -> None:
    run = t5.stopped()
    torch.save({"model": time.sleep}, run / "state" / "training_state.pt")
    assert "damaged" in refusal(lambda: t5.resume(run), capsys)


def test_nothing_to_resume_is_refused(t5: Bench, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "holds no run to resume" in refusal(lambda: t5.resume(tmp_path), capsys)
    (tmp_path / "train_config.json").write_text("{}")
    assert "stopped before its first save" in refusal(lambda: t5.resume(tmp_path), capsys)
    assert "--resume needs --output" in refusal(lambda: main(["--resume"]), capsys)


@pytest.mark.skipif(find_spec("ftcore.fast") is None, reason="needs ftcore.fast")
def test_a_state_from_before_fast_was_an_option_resumes_with_it(
    t5: Bench, capsys: pytest.CaptureFixture
) -> None:
    """Such runs were always trained with the fast layers."""
    whole, run = t5.new_directory(), t5.new_directory()
    assert t5.train(whole, "--fast") == 0
    stop_at(t5, run, 2, "--fast")
    state, config = run / "state" / "training_state.pt", run / "train_config.json"
    saved, options = torch.load(state, weights_only=True), json.loads(config.read_text())
    del saved["options"]["fast"], options["fast"]
    torch.save(saved, state)
    config.write_text(json.dumps(options))
    line = refusal(lambda: t5.resume(run), capsys)
    assert "the run was started with --fast, it cannot continue without --fast" in line
    assert t5.resume(run, "--fast") == 0
    assert_same(outcome(run), outcome(whole))
