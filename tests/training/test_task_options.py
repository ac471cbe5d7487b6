"""Options of a task: --columns, --labels and templates, on the command line and in files."""

import json
from pathlib import Path

import pytest

from ftcore.cli import parse
from ftcore.data import Task
from ftcore.training.options import TrainOptions


def task_of(*argv: str) -> Task:
    return parse(TrainOptions, argv, command="ftcore.train").make_task()


@pytest.mark.parametrize(
    ("argv", "task"),
    [
        ("", Task("qa")),
        ("--task text2text --columns source=a,target=b", Task("text2text", {"source": "a", "target": "b"})),
        ("--task text2text --columns source=a target=b=", Task("text2text", {"source": "a", "target": "b="})),
        ("--task emotion --labels 0=sad,1=joy", Task("emotion", labels={0: "sad", 1: "joy"})),
        ("--task emotion --labels 0=<=5 1=so,so", Task("emotion", labels={0: "<=5", 1: "so,so"})),
        ("--task text2text --template {a} --target-template {b}", Task("text2text", {}, "{a}", "{b}")),
        ("--no-answer none", Task("qa", no_answer="none")),
    ],
)
def test_options_describe_a_task(argv: str, task: Task) -> None:
    assert task_of(*argv.split()) == task


def test_options_change_what_is_saved_only_for_the_same_task() -> None:
    saved = Task("text2text", {"target": "summary"}, "sum: {document}")
    options = TrainOptions(task="text2text", columns=["target=t"])
    assert options.make_task(saved) == Task("text2text", {"target": "t"}, "sum: {document}")
    assert TrainOptions(task="emotion").make_task(saved) == Task("emotion")


def test_labels_may_be_a_file_and_are_saved_themselves(tmp_path: Path) -> None:
    labels, config = tmp_path / "labels.json", tmp_path / "config.json"
    labels.write_text(json.dumps({"0": "so, so", "true": "a"}))
    options = TrainOptions(task="emotion", labels=[str(labels)])
    assert options.labels == ["0=so, so", "true=a"]
    config.write_text(json.dumps({"task": "emotion", "labels": options.labels}))
    assert task_of("--config", str(config)) == Task("emotion", labels={0: "so, so", True: "a"})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--columns document", "--columns document: expected FIELD=COLUMN"),
        ("--columns source=", "--columns source=: expected FIELD=COLUMN"),
        ("--labels 0=a 1", "--labels 1: expected LABEL=WORD"),
        ("--labels nowhere.json", "--labels takes LABEL=WORD, or a JSON file of them: no such file"),
        ("--labels list.json", "expected a JSON object, found list"),
        ("--labels number.json", "'0' has the word 1; expected text without '='"),
        ("--labels equal.json", "'0=1' has the word 'a'; expected text"),
    ],
)
def test_wrong_options_are_one_line(
    argv: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"list": ["a"], "number": {"0": 1}, "equal": {"0=1": "a"}}.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as ended:
        task_of(*argv.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1
