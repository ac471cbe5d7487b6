"""A task's settings: columns, templates, label maps, questions without an answer, chat, task.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data import (
    Dataset,
    Record,
    Task,
    load_task,
    load_tokenizer,
    prompt,
    read_corpus,
    read_records,
    split_records,
)
from tests.helpers import tiny_runs


def records(
    folder: Path, task: str | Task, *rows: dict[str, Any], decoder_only: bool = False
) -> list[Record]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(task, file, decoder_only=decoder_only)


def error(folder: Path, task: Task, *rows: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as raised:
        records(folder, task, *rows)
    assert "\n" not in str(raised.value)
    return str(raised.value).partition("rows.jsonl, ")[2]


# --- columns and templates


def test_fields_may_be_other_columns(tmp_path: Path) -> None:
    row = {"document": "a long text", "summary": "short", "source": "the web"}
    [record] = records(tmp_path, Task("text2text", {"source": "document", "target": "summary"}), row)
    assert (record.source, record.target, record.references) == ("a long text", "short", ("short",))
    row = {"passage": "Ada sews.", "q": "Who?", "gold": "['Ada', 'she']"}
    columns = {"context": "passage", "question": "q", "answers": "gold"}
    [record] = records(tmp_path, Task("qa", columns), row)
    assert (record.source, record.references) == ("question: Who? context: Ada sews.", ("Ada", "she"))
    assert record.group == "Ada sews."
    [record] = records(tmp_path, Task("qa", columns), row | {"answers": "not this one"})
    assert record.target == "Ada"
    with pytest.raises(ValueError, match=r"no key 'gold' .* which `columns` answers=gold names"):
        records(tmp_path, Task("qa", columns), {"passage": "c", "q": "q", "answers": "a"})


@pytest.mark.parametrize(
    ("task", "decoder_only", "source", "target"),
    [
        (Task("text2text", template="sum: {a} {{{b}}}", target_template="{c}!"), False, "sum: x {1}", "y!"),
        (Task("text2text", template="sum: {a}", columns={"target": "c"}), True, "sum: x\n", "y"),
        (Task("text2text", template="{a}\n", columns={"target": "c"}), True, "x\n", "y"),
        (Task("text2text", template="{source}:", columns={"source": "a", "target": "c"}), False, "x:", "y"),
        (
            Task("qa", template="{question} ({b})", columns={"question": "a", "answer": "c"}),
            True,
            "x (1)",
            " y",
        ),
        (Task("emotion", template="{a}?", columns={"label": "c"}), False, "x?", "y"),
        (Task("emotion", template="{a}?", columns={"label": "c"}), True, "", "x?"),
        (Task("emotion", columns={"text": "a"}, target_template="{c}"), True, "Emotion: x\n", "y"),
        (Task("text2text", template="{a}{empty}", columns={"target": "c"}), False, "x", "y"),
    ],
)
def test_templates_make_the_source_and_the_target(
    tmp_path: Path, task: Task, decoder_only: bool, source: str, target: str
) -> None:
    row = {"a": "x", "b": 1, "c": "y", "empty": ""}
    [record] = records(tmp_path, task, row, decoder_only=decoder_only)
    assert (record.source, record.target) == (source, target)


@given(text=st.text(min_size=1), decoder_only=st.booleans())
def test_a_template_makes_the_prompt_of_generation(text: str, decoder_only: bool) -> None:
    task = Task("text2text", template="a: {task}")
    assert prompt(task, decoder_only=decoder_only, task=text) == f"a: {text}" + "\n" * decoder_only


def test_columns_the_wrong_way_round_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"names 'document', but .* did you mean '`columns` source=document'"
    ):
        Task("text2text", {"document": "source"})


def test_a_missing_column_names_the_option_and_a_similar_column(tmp_path: Path) -> None:
    row = {"Source": "a", "summary": "b"}
    assert error(tmp_path, Task("text2text"), row) == (
        "line 1: no key 'source' (found: Source, summary), did you mean '`columns` source=Source'?"
    )
    assert error(tmp_path, Task("text2text", {"source": "summary"}), row).endswith(
        "target=COLUMN names another one"
    )
    assert error(tmp_path, Task("text2text", {"source": "sumary"}), row) == (
        "line 1: no key 'sumary' (found: Source, summary), which `columns` source=sumary names, "
        "did you mean 'summary'?"
    )
    assert "no key 'x'" in error(
        tmp_path, Task("text2text", template="{x}", columns={"target": "summary"}), row
    )
    assert "`columns` answer=COLUMN" in error(tmp_path, Task("qa"), {"context": "c", "question": "q"})
    empty = error(
        tmp_path,
        Task("text2text", template="{a} {b}", columns={"target": "c"}),
        {"a": "", "b": " ", "c": "y"},
    )
    assert empty == "line 1: a, b: empty; expected text"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "summary"}, "unknown task 'summary'; known tasks: qa"),
        ({"name": ["qa"]}, r"unknown task \['qa'\]"),
        (
            {"name": "text2text", "columns": {"sorce": "a"}},
            "names 'sorce', but task .* did you mean 'source'?",
        ),
        ({"name": "text2text", "columns": ["a"]}, "`columns` is .*expected a map"),
        ({"name": "text2text", "columns": {"source": 1}}, "`columns` has 1 for 'source'; expected text"),
        ({"name": "text2text", "template": 3}, "`template` is 3; expected text"),
        ({"name": "text2text", "template": "{a!r}"}, "`template` is"),
        ({"name": "text2text", "target_template": ""}, "`target_template` is ''"),
        (
            {"name": "lm", "template": "{text}"},
            "`template` is for task qa or emotion or text2text, not for lm",
        ),
        ({"name": "chat", "labels": {0: "a"}}, "`labels` is for task emotion or text2text, not for chat"),
        ({"name": "emotion", "labels": {0: 1}}, "`labels` has 1 for 0; expected text"),
        ({"name": "emotion", "labels": {0: " "}}, "`labels` has ' ' for 0"),
        ({"name": "emotion", "no_answer": "x"}, "`no_answer` is for task qa"),
        ({"name": "qa", "no_answer": None}, "`no_answer` is None"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task(**settings)


# --- labels


@pytest.mark.parametrize(
    "labels", [{0: "sad", 1: "glad"}, {"0": "sad", "1": "glad"}, {False: "sad", True: "glad"}]
)
@pytest.mark.parametrize("label", [1, "1", 1.0, "1.0", True, "true", "True", " TRUE "])
def test_labels_become_words(tmp_path: Path, labels: dict[Any, str], label: Any) -> None:
    is_boolean = str(label).strip().lower() == "true"
    if is_boolean != (True in labels and isinstance(next(iter(labels)), bool)):
        labels = dict(zip((False, True) if is_boolean else (0, 1), labels.values(), strict=True))
    [record] = records(tmp_path, Task("emotion", labels=labels), {"text": "a", "label": label})
    assert (record.target, record.references) == ("glad", ("glad",))
    columns = {"source": "text", "target": "label"}
    [record] = records(tmp_path, Task("text2text", columns, labels=labels), {"text": "1", "label": label})
    assert (record.source, record.target) == ("1", "glad")
    ends = Task("text2text", template="{text}", target_template="{label}.", labels=labels)
    [record] = records(tmp_path, ends, {"text": "1", "label": label})
    assert record.target == "glad."


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    task = Task("emotion", labels={0: "sad", 1: "glad"})
    assert (
        error(tmp_path, task, {"text": "a", "label": 2}) == "line 1: label '2' is not among `labels` (0, 1)"
    )


def test_labels_of_gpt2_emotion_are_not_learned(tmp_path: Path) -> None:
    row = {"text": "a", "label": 0}
    for task in (Task("emotion"), Task("emotion", labels={0: "sad"})):
        [record] = records(tmp_path, task, row, decoder_only=True)
        assert (record.source, record.target) == ("", "Emotion: a")


# --- questions without an answer, as in SQuAD 2.0

UNANSWERABLE = [
    {"answers": []},
    {"answers": {"text": [], "answer_start": []}},
    {"answers": "[]"},
    {"answers": [], "is_impossible": True, "plausible_answers": [{"text": "Bea"}]},
    {"answer": "", "is_impossible": "true"},
]


@pytest.mark.parametrize("row", UNANSWERABLE)
@pytest.mark.parametrize("no_answer", ["", "unanswerable"])
def test_a_question_without_an_answer_learns_that(
    tmp_path: Path, row: dict[str, Any], no_answer: str
) -> None:
    row = {"context": "Ada sews.", "question": "Who reads?"} | row
    for decoder_only in (False, True):
        [record] = records(tmp_path, Task("qa", no_answer=no_answer), row, decoder_only=decoder_only)
        assert record.references == (no_answer,)
        assert record.target == (" " * decoder_only + no_answer if no_answer else "")


def test_squad_2_has_questions_with_and_without_answers(tmp_path: Path) -> None:
    questions = [
        {"question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False},
        {"question": "Why?", "answers": [], "is_impossible": True},
    ]
    (tmp_path / "dev.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": "Ada sews.", "qas": questions}]}]})
    )
    found = read_records("qa", tmp_path / "dev.json", decoder_only=False)
    assert [record.references for record in found] == [("Ada",), ("",)]


def test_an_empty_answer_learns_the_end_token_alone(tmp_path: Path) -> None:
    lengths = {"max_source_length": 40, "max_target_length": 8}
    t5 = load_tokenizer(tiny_runs.tiny_t5(tmp_path / "t5"))
    gpt2 = load_tokenizer(tiny_runs.tiny_gpt2(tmp_path / "gpt2"))
    [example] = Dataset([Record("q", "", ("",))], t5, decoder_only=False, **lengths)
    assert example["labels"] == [t5.eos_id]
    [example] = Dataset([Record("q", "", ("",))], gpt2, decoder_only=True, **lengths)
    assert example["input_ids"] == [*gpt2.encode("q"), gpt2.eos_id]
    assert example["labels"] == [-100, gpt2.eos_id]
    with pytest.raises(ValueError, match="the tokenizer finds nothing in the target ''"):
        Dataset([Record("", "")], gpt2, decoder_only=True, **lengths)


def test_a_blank_answer_is_no_question_without_one(tmp_path: Path) -> None:
    row = {"context": "c", "question": "q", "answer": " "}
    assert "key 'answer' is empty" in error(tmp_path, Task("qa"), row)


# --- chat

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": " Who are you?\n"},
    {"role": "assistant", "content": "Ada"},
]


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_conversation_has_a_record_for_each_reply(tmp_path: Path, decoder_only: bool) -> None:
    first, second = records(tmp_path, "chat", {"messages": CHAT}, decoder_only=decoder_only)
    assert first.source == "system: Be brief.\nuser: Hello\nassistant:"
    assert second.source == f"{first.source} Hi\nuser: Who are you?\nassistant:"
    assert [first.target, second.target] == ([" Hi", " Ada"] if decoder_only else ["Hi", "Ada"])
    assert [first.references, second.references] == [("Hi",), ("Ada",)]
    [record] = records(tmp_path, "chat", {"messages": CHAT[1:3]}, decoder_only=decoder_only)
    assert prompt("chat", decoder_only=decoder_only, message="Hello") == record.source


def test_a_split_keeps_a_conversation_together(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(number)}, *CHAT[2:]]} for number in range(6)]
    train, valid = split_records(records(tmp_path, "chat", *rows), 0.3)
    assert len(train) + len(valid) == 12 and valid
    assert not {record.where for record in train} & {record.where for record in valid}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", "line 1: key 'messages' is 'Hello'; expected JSON lines with messages"),
        ([], "line 1: key 'messages' is []"),
        (["Hello"], 'line 1, message 1: \'Hello\'; expected {"role": ..., "content": ...}'),
        ([{"role": "user"}], "line 1, message 1: no key 'content' (found: role)"),
        ([{"role": "bot", "content": "a"}], "message 1: role 'bot'; expected one of system, user, assistant"),
        ([{"role": "user", "content": ["a"]}], "message 1: key 'content' is ['a']; expected a string"),
        ([{"role": "user", "content": "a"}], "line 1: no message of role 'assistant'"),
        ([{"role": "user", "content": "a"}] * 1001, "line 1: 1001 messages; expected at most 1000"),
    ],
)
def test_wrong_conversations_are_named(tmp_path: Path, messages: object, message: str) -> None:
    assert message in "rows.jsonl, " + error(tmp_path, Task("chat"), {"messages": messages})


# --- task.json

TASKS = [
    Task("qa"),
    Task("qa", no_answer="none"),
    Task("emotion", labels={0: "sad", True: "glad"}),
    Task("text2text", {"target": "ziel"}, "ü: {quelle}", "{target}"),
    Task("chat", {"messages": "conversation"}),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_saved_task_is_loaded(tmp_path: Path, task: Task) -> None:
    task.save(tmp_path)
    saved = load_task(tmp_path)
    assert saved == task
    assert load_task(tmp_path / "..") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("[]", "expected a JSON object, found list"),
        ('{"task": ', "broken JSON"),
        ('{"task": "qa", "id": 3}', "unknown key 'id'"),
        ('{"task": "qa", "column": {}}', "unknown key 'column', did you mean 'columns'?"),
        ('{"pipeline": "text-generation"}', "unknown key 'pipeline'"),
        ("{}", "unknown task None"),
        ('{"task": {"a": 1}}', "unknown task {'a': 1}"),
        ('{"task": "qa", "template": "{question.__class__}"}', "template is"),
        ('{"task": "emotion", "labels": {"0": null}}', "labels has None for '0'"),
        ('{"task": "qa"}' + " " * 2**22, "bytes are too many"),
    ],
)
def test_a_task_file_that_is_none_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(ValueError) as raised:
        load_task(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'task.json'}: ") and message in str(raised.value)
    assert "\n" not in str(raised.value)


# --- running text


def test_a_corpus_may_be_another_column(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = load_tokenizer(tiny_runs.tiny_gpt2(tmp_path / "gpt2"))
    file = tiny_runs.write_lines(tmp_path / "rows.jsonl", [{"text": "ab", "body": "cde"}] * 2)
    for column in ("text", "body", "text"):
        corpus = read_corpus(Task("lm", {"text": column}), file, tokenizer, decoder_only=True)
        document = [*tokenizer.encode({"text": "ab", "body": "cde"}[column]), tokenizer.eos_id]
        assert corpus.read(0, 99) == document * 2
    assert capsys.readouterr().err.count("tokenized ") == 2  # each column once
    with pytest.raises(
        ValueError, match=r"line 1: no key 'Body' .* which `columns` text=Body names, .* 'body'\?"
    ):
        read_corpus(Task("lm", {"text": "Body"}), file, tokenizer, decoder_only=True)
