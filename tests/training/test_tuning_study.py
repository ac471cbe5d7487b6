"""The journal across kills and damage, the order of trials, and the score."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.training.tuning import (
    best_trial,
    default_metric,
    draw_settings,
    draw_trials,
    finished_trials,
    of_first_set,
    open_journal,
    parse_search,
    ranked,
    score,
    study_in_memory,
    table,
    write_csv,
)

optuna = pytest.importorskip("optuna")

SPACE = parse_search(["lr=1e-4..1e-2", "batch_size=8,16,32", "relative_steps=true,false"])
STATES = ["COMPLETE", "PRUNED", "FAIL"]
ATTRIBUTES = {"metrics": {"valid_loss": 1.5}, "best_step": 4, "steps": 4, "seconds": 0.5, "error": ""}


def frozen(number: int, state: str, value: float | None = -1.5, **attributes: Any) -> Any:
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        params=draw_settings(SPACE, number + 1, 0)[number],
        distributions=SPACE,
        value=value if state == "COMPLETE" else None,
        intermediate_values={} if value is None else {1: value},
        user_attrs=ATTRIBUTES | attributes,
        system_attrs={} if value is None else {"completed_rung_0": value},
    )


def journal_of(path: Path, count: int) -> Any:
    """A journal with trials of all states."""
    journal = open_journal(path)
    journal.add_trials([frozen(number, STATES[number % 3]) for number in range(count)])
    return journal


# Journal


def test_a_journal_is_read_back_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    trials = finished_trials(journal_of(path, 4))
    before = path.read_bytes()
    journal = open_journal(path)
    assert finished_trials(journal) == trials and path.read_bytes() == before
    journal.add_trial(frozen(4, "COMPLETE"))
    assert path.read_bytes().startswith(before)
    assert [trial.number for trial in finished_trials(open_journal(path))] == [0, 1, 2, 3, 4]


def test_optuna_reads_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal_of(path, 3)
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    assert study.best_trial.number == 0 and study.best_value == -1.5
    assert [trial.state.name for trial in study.trials] == STATES
    assert study.trials[0].params == draw_settings(SPACE, 1, 0)[0]


def test_unfinished_trials_are_ignored(tmp_path: Path) -> None:
    """Other tools, and older versions, write a trial to the journal when it begins."""
    path = tmp_path / "journal.log"
    journal = journal_of(path, 2)
    journal.ask(SPACE).report(-0.1, 1)
    journal.add_trial(frozen(2, "COMPLETE"))
    study = study_in_memory(open_journal(path), 2)
    assert [(trial.number, trial.params) for trial in study.trials] == [
        (number, settings) for number, settings in enumerate(draw_settings(SPACE, 3, 0))
    ]


def test_an_incomplete_line_and_a_lock_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    trials = finished_trials(journal_of(path, 3))
    before = path.read_bytes()
    with path.open("a") as file:
        file.write('{"op_code": 4, "wor')
    (tmp_path / "journal.log.lock").symlink_to(path)
    journal = open_journal(path)
    assert finished_trials(journal) == trials and path.read_bytes() == before
    journal.add_trial(frozen(3, "COMPLETE"))  # would wait for the lock
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("content", [b"", b'{"op_co'])
def test_a_process_killed_while_it_made_the_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(content)
    assert finished_trials(open_journal(path)) == []
    assert finished_trials(open_journal(path)) == []


@pytest.mark.parametrize("line", [0, 1, 2])  # the study, a trial in the middle, and the last one
@pytest.mark.parametrize("damage", [b'{"op_co', b"\xff", b"", b"7", b"[" * 100_000])
def test_a_broken_line_is_refused_and_nothing_is_written(tmp_path: Path, line: int, damage: bytes) -> None:
    path = tmp_path / "journal.log"
    journal_of(path, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = damage + b"\n"
    path.write_bytes(b"".join(lines) + b'{"op_code":4')
    with pytest.raises(ValueError, match=f"^{path}, line {line + 1}: .*; the search cannot be resumed"):
        open_journal(path)
    assert path.read_bytes() == b"".join(lines) + b'{"op_code":4'


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_values_of_other_types_are_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """A journal is refused, or everything that reads its trials works."""
    path = tmp_path_factory.mktemp("journal") / "journal.log"
    journal_of(path, 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    row = data.draw(st.sampled_from(rows))
    places: list[tuple[Any, Any]] = [(row, key) for key in row]
    for holder, key in places:
        if isinstance(holder[key], dict):
            places += [(holder[key], inner) for inner in holder[key]]
    holder, key = data.draw(st.sampled_from(places))
    if (how := data.draw(st.sampled_from(["change", "rename", "remove"]))) == "rename":
        holder["other"] = holder.pop(key)
    elif how == "change":
        holder[key] = data.draw(st.sampled_from([None, True, -1, 10**30, 0.5, "x", [], {}, [1], {"x": 1}]))
    else:
        del holder[key]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = path.read_bytes()
    try:
        trials = finished_trials(study_in_memory(open_journal(path), 2))
    except ValueError as error:
        assert str(error).startswith(str(path)) and str(error).endswith("the search cannot be resumed")
        assert path.read_bytes() == before
    else:
        best_trial(trials)
        if trials:
            table(trials)
            write_csv(trials, path.with_suffix(".csv"))


# Results


scores = st.fixed_dictionaries(
    {"exact_match": st.integers(0, 200).map(lambda count: count / 200), "valid_loss": st.floats(0, 1e6)}
)


@settings(deadline=None)
@given(a=scores, b=scores)
def test_trials_are_ranked_like_the_validations_of_a_run(a: dict[str, float], b: dict[str, float]) -> None:
    def key(metrics: dict[str, float]) -> list[float]:  # as in ftcore.train
        return [metrics["exact_match"], -metrics["valid_loss"]]

    assert default_metric(a) == "exact_match" and default_metric({"valid_loss": 2.0}) == "valid_loss"
    if score(a, "exact_match") > score(b, "exact_match"):
        assert key(a) > key(b)
    assert score(a, "valid_loss") == -a["valid_loss"]


def test_the_best_come_first_then_pruned_then_failed_trials(tmp_path: Path) -> None:
    ends = [
        ("FAIL", None, 3),
        ("PRUNED", 1.0, 10),
        ("COMPLETE", 3.0, 90),
        ("PRUNED", 5.0, 30),
        ("COMPLETE", 2.0, 90),
    ]
    journal = open_journal(tmp_path / "journal.log")
    for number, (state, loss, steps) in enumerate(ends):
        metrics = {} if loss is None else {"valid_loss": loss}
        error = "" if loss else "the loss is nan"
        value = None if loss is None else -loss
        attributes = {"metrics": metrics, "best_step": loss and steps, "steps": steps, "error": error}
        journal.add_trial(frozen(number, state, value, **attributes))
    trials = finished_trials(journal)
    assert [trial.number for trial in ranked(trials)] == [4, 2, 3, 1, 0]
    assert best_trial(trials) is trials[4] and best_trial(trials[:2]) is None and best_trial([]) is None

    head, *lines = (line.split() for line in table(trials))
    assert head == ["trial", "state", *SPACE, "valid_loss", "steps"]
    assert [line[:2] for line in lines] == [
        ["5", "complete"],
        ["3", "complete"],
        ["4", "pruned"],
        ["2", "pruned"],
        ["1", "failed"],
    ]
    write_csv(trials, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*head[:-1], "best_step", "steps", "seconds", "error"]
    assert [row["trial"] for row in rows] == ["5", "3", "4", "2", "1"]
    assert (rows[4]["valid_loss"], rows[4]["best_step"], rows[4]["error"]) == ("", "", "the loss is nan")


def test_trials_are_ranked_by_the_first_validation_set() -> None:
    line = {"step": 3, "epoch": 1.0, "valid_loss": 2.0, "f1": 0.5}
    assert of_first_set(line) == {"valid_loss": 2.0, "f1": 0.5}
    sets = {"dev/valid_loss": 2.0, "dev/f1": 0.5, "test/valid_loss": 1.0, "test/f1": 0.9}
    assert of_first_set({"step": 3, "epoch": 1.0} | sets) == {"valid_loss": 2.0, "f1": 0.5}


def scored(number: int, state: str, exact_match: float, loss: float = 1.5) -> Any:
    metrics = {"valid_loss": loss, "exact_match": exact_match}
    return frozen(number, state, score(metrics, "exact_match"), metrics=metrics)


def test_the_table_fits_into_80_columns() -> None:
    metrics = {"valid_loss": 1.464, "exact_match": 0.26, "f1": 0.3172}
    distributions = parse_search(["lr=1e-3..1e-1", "batch_size=16,32,64", "dropout=0..0.2"])
    settings = {"lr": 0.00376, "batch_size": 64, "dropout": 0.00847}
    trial = optuna.trial.create_trial(
        params=settings, distributions=distributions, value=0.26, user_attrs=ATTRIBUTES | {"metrics": metrics}
    )
    assert max(map(len, table([trial]))) <= 80


def test_of_tied_trials_the_figure_stars_the_best_alone() -> None:
    pytest.importorskip("matplotlib")
    trials = [scored(0, "COMPLETE", 0.5, loss=2.0), scored(1, "COMPLETE", 0.5), scored(2, "PRUNED", 0.5)]
    figure = draw_trials(trials, "exact_match")
    assert [axes.get_xlabel() for axes in figure.axes] == list(SPACE)
    assert [text.get_text() for text in figure.legends[0].texts] == ["pruned (1)", "complete (1)", "best (1)"]
    for axes, name in zip(figure.axes, SPACE, strict=True):
        _, _, best = axes.collections
        choices = getattr(SPACE[name], "choices", None)
        value = trials[1].params[name]
        assert best.get_offsets().tolist() == [[choices.index(value) if choices else value, 0.5]]
    assert draw_trials([scored(0, "PRUNED", 0.5)], "exact_match").axes
