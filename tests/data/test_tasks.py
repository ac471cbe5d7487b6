"""All file formats give the same records, and errors name the place and the reason."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore.data import CORPUS_TASKS, TASKS, Record, prompt, read_records, split_records

CONTEXT = "Ada Lovelace lived in London. She wrote programs; nobody had before."
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "1",
                            "question": "Where did Ada live?",
                            "answers": [
                                {"text": "London", "answer_start": 22},
                                {"text": "in London", "answer_start": 19},
                                {"text": "London", "answer_start": 22},
                            ],
                        },
                        {
                            "id": "2",
                            "question": "What did she write?",
                            "answers": [{"text": "programs", "answer_start": 40}],
                        },
                    ],
                }
            ],
        }
    ],
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- records


@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "pretty"])
def test_squad_for_t5(tmp_path: Path, indent: int | None) -> None:
    first, second = read_records(
        "qa", write(tmp_path / "a.json", json.dumps(SQUAD, indent=indent)), decoder_only=False
    )
    assert first.source == f"question: Where did Ada live? context: {CONTEXT}"
    assert first.target == "London"
    assert first.references == ("London", "in London")
    assert second.references == ("programs",)


def test_squad_for_gpt2_ends_with_question_and_cue(tmp_path: Path) -> None:
    first, _ = read_records("qa", write(tmp_path / "a.json", json.dumps(SQUAD)), decoder_only=True)
    assert first.source == f"context: {CONTEXT}\nquestion: Where did Ada live?\nanswer:"
    assert first.target == " London"
    assert first.references == ("London", "in London")


@pytest.mark.parametrize("decoder_only", [False, True])
def test_qa_is_the_same_from_json_lines_and_csv(tmp_path: Path, decoder_only: bool) -> None:
    row = {"context": CONTEXT, "question": "Where did Ada live?", "answer": "London"}
    table = write(tmp_path / "a.csv", f'question,answer,context\nWhere did Ada live?,London,"{CONTEXT}"\n')
    lines = write(tmp_path / "a.jsonl", json_lines(row))
    named_json = write(tmp_path / "a.json", json_lines(row, row))
    no_suffix = write(tmp_path / "data", "\n" + json_lines(row))
    (record,) = read_records("qa", lines, decoder_only=decoder_only)
    assert read_records("qa", table, decoder_only=decoder_only) == [record]
    assert read_records("qa", named_json, decoder_only=decoder_only) == [record, record]
    assert read_records("qa", no_suffix, decoder_only=decoder_only) == [record]


@pytest.mark.parametrize(
    ("key", "value", "references"),
    [
        ("answer", "Paris", ("Paris",)),
        ("answers", "Paris", ("Paris",)),
        ("answers", ["Paris", " in Paris "], ("Paris", "in Paris")),
        ("answers", [{"text": "Paris", "answer_start": 3}, {"text": "in Paris"}], ("Paris", "in Paris")),
        ("answers", {"text": ["Paris", "Paris"], "answer_start": [3, 9]}, ("Paris",)),
        ("answers", {"text": "Paris"}, ("Paris",)),
        ("answers", ["", "Paris"], ("Paris",)),
    ],
)
def test_answers_in_every_published_layout(
    tmp_path: Path, key: str, value: object, references: tuple
) -> None:
    row = {"context": "c", "question": "q", key: value}
    (record,) = read_records("qa", write(tmp_path / "a.jsonl", json_lines(row)), decoder_only=False)
    assert record.references == references
    assert record.target == references[0]


def test_emotion_is_the_same_from_all_formats(tmp_path: Path) -> None:
    lines = "\ni felt low; then better;joy\n  \ni am cross;anger\n"
    table = 'text,label\n"i felt low; then better",joy\n\ni am cross,anger\n'
    objects = [{"text": "i felt low; then better", "label": "joy"}, {"text": "i am cross", "label": "anger"}]
    files = [
        write(tmp_path / "a.txt", lines),
        write(tmp_path / "windows.txt", lines.replace("\n", "\r\n")),
        write(tmp_path / "a.csv", table),
        write(tmp_path / "excel.csv", b"\xef\xbb\xbf" + table.encode()),
        write(tmp_path / "a.jsonl", json_lines(*objects)),
    ]
    for file in files:
        t5 = read_records("emotion", file, decoder_only=False)
        assert [(r.source, r.target, r.references) for r in t5] == [
            ("Emotion: i felt low; then better", "joy", ("joy",)),
            ("Emotion: i am cross", "anger", ("anger",)),
        ]
        gpt2 = read_records("emotion", file, decoder_only=True)
        assert [(r.source, r.target) for r in gpt2] == [
            ("", "Emotion: i felt low; then better"),
            ("", "Emotion: i am cross"),
        ]


def test_an_emotion_that_begins_with_a_brace_is_a_line(tmp_path: Path) -> None:
    (record,) = read_records(
        "emotion", write(tmp_path / "a.txt", "{sigh} i am late;sadness\n"), decoder_only=False
    )
    assert record.source == "Emotion: {sigh} i am late"


def test_text2text_is_unchanged(tmp_path: Path) -> None:
    row = {"source": " def f(x):\n", "target": "  return x\n"}
    file = write(tmp_path / "a.jsonl", json_lines(row))
    (t5,) = read_records("text2text", file, decoder_only=False)
    (gpt2,) = read_records("text2text", file, decoder_only=True)
    assert (t5.source, t5.target) == (row["source"], row["target"])
    assert (gpt2.source, gpt2.target) == (row["source"] + "\n", row["target"])
    assert t5.references == gpt2.references == (row["target"],)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1).filter(
    str.strip
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_any_text_can_be_read_from_json_lines_and_csv(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    lines = write(tmp_path / "a.jsonl", json_lines(*({"source": s, "target": t} for s, t in pairs)))
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *pairs])
    for path in (lines, tmp_path / "a.csv"):
        records = read_records("text2text", path, decoder_only=False)
        assert [(record.source, record.target) for record in records] == pairs


def test_limit_stops_reading(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one;joy\ntwo;joy\nthis line is broken\n")
    assert len(read_records("emotion", file, decoder_only=False, limit=2)) == 2


# --- prompts


@pytest.mark.parametrize("decoder_only", [False, True])
def test_the_prompt_equals_the_source_in_training(tmp_path: Path, decoder_only: bool) -> None:
    qa = {"context": CONTEXT, "question": " Where did Ada live? ", "answer": "London"}
    (record,) = read_records("qa", write(tmp_path / "a.jsonl", json_lines(qa)), decoder_only=decoder_only)
    assert (
        prompt("qa", decoder_only=decoder_only, context=CONTEXT, question="Where did Ada live?")
        == record.source
    )

    pair = {"source": "sort: b a", "target": "a b"}
    (record,) = read_records(
        "text2text", write(tmp_path / "b.jsonl", json_lines(pair)), decoder_only=decoder_only
    )
    assert prompt("text2text", decoder_only=decoder_only, source="sort: b a") == record.source

    (record,) = read_records(
        "emotion", write(tmp_path / "a.txt", "i am late;fear"), decoder_only=decoder_only
    )
    assert prompt("emotion", decoder_only=decoder_only, text="i am late") == (
        record.target if decoder_only else record.source
    )


def test_a_prompt_names_the_fields_it_takes() -> None:
    assert prompt("lm", decoder_only=True, text="Once ") == "Once "
    with pytest.raises(ValueError, match="a prompt of task 'qa' takes question, context; got question"):
        prompt("qa", decoder_only=False, question="Who?")
    with pytest.raises(ValueError, match="a prompt of task 'emotion' takes text; got nothing"):
        prompt("emotion", decoder_only=True)


# --- errors

QA_LINE = json_lines({"context": "c", "question": "q", "answer": "a"})


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("qa", "a.jsonl", "", "a.jsonl: the file is empty"),
        ("qa", "a.jsonl", "\n \n", "a.jsonl: no records; expected SQuAD JSON, or JSON lines or CSV"),
        ("emotion", "a.csv", "text,label\n", "a.csv: no records; expected lines of text;label, or CSV"),
        ("qa", "a.jsonl", QA_LINE + "\n{broken\n", "a.jsonl, line 3: broken JSON: Expecting property name"),
        ("qa", "a.json", QA_LINE + '{"context": \n', "a.json, line 2: broken JSON: Expecting value"),
        (
            "qa",
            "a.json",
            '{"data": [\n{"paragraphs": oops}]}',
            "a.json, item 1, line 2: broken JSON: Expecting value (column 16)",
        ),
        (
            "qa",
            "a.jsonl",
            QA_LINE + "[1, 2]\n",
            "line 2: [1, 2] is not a record; expected an object {...}",
        ),
        ("qa", "a.txt", "What is this?\n", "a.txt: neither JSON nor CSV; expected SQuAD JSON"),
        (
            "qa",
            "a.jsonl",
            QA_LINE + json_lines({"context": "c", "question": "q"}),
            "a.jsonl, line 2: no key 'answer' or 'answers' (found: context, question)",
        ),
        (
            "qa",
            "a.jsonl",
            json_lines({"title": "t", "question": "q", "answer": "a"}),
            "a.jsonl, line 1: no key 'context' (found: title, question, answer)",
        ),
        (
            "qa",
            "a.jsonl",
            json_lines({"context": "c", "question": "q", "answer": " "}),
            "line 1: key 'answer' is empty; expected the answer's text",
        ),
        (
            "qa",
            "a.jsonl",
            json_lines({"context": "c", "question": "q", "answers": [None]}),
            "line 1: key 'answers' is [None]; expected a string, a list of strings, or",
        ),
        (
            "qa",
            "a.jsonl",
            json_lines({"context": "c", "question": None, "answer": "a"}),
            "line 1: key 'question' is None; expected a string or a number",
        ),
        (
            "qa",
            "a.jsonl",
            '{"context": "c \\ud83d", "question": "q", "answer": "a"}',
            "line 1: broken JSON: a \\u escape of a lone surrogate",
        ),
        (
            "qa",
            "a.json",
            '{"data": [{"paragraphs": [{"context": "c"}]}]}',
            "a.json, article 1, paragraph 1: no list of objects under 'qas' (found keys: context)",
        ),
        ("text2text", "a.json", json.dumps(SQUAD), "a.json: a SQuAD document, which is for task 'qa'"),
        ("emotion", "a.txt", "i am late;fear\nno label here\n", "line 2: no ';' between text and label"),
        ("emotion", "a.txt", "i am late;\n", "a.txt, line 1: key 'label' is empty"),
        ("emotion", "a.txt", ";fear\n", "a.txt, line 1: key 'text' is empty"),
        (
            "emotion",
            "a.jsonl",
            json_lines({"text": "i am late", "label": [4]}),
            "line 1: key 'label' is [4]; expected a string or a number",
        ),
        ("emotion", "a.csv", "sentence,label\nfine,joy\n", "line 2: no key 'text' (found: sentence, label)"),
        (
            "emotion",
            "a.csv",
            "text,label\nfine,joy\nwell, well,joy\n",
            "a.csv, line 3: 3 fields, but the header has 2 (text, label); quote fields that contain commas",
        ),
        ("emotion", "a.csv", 'text,label\n"fine,joy\n', "broken CSV: unexpected end of data"),
        (
            "emotion",
            "a.txt",
            "fine;joy\ncaf\u00e9;joy\n".encode("latin-1"),
            "a.txt, line 2: not UTF-8 (byte 0xe9)",
        ),
        (
            "emotion",
            "a.txt",
            "text".encode("utf-16"),
            "a.txt: text in UTF-16: save it as UTF-8",
        ),
    ],
)
def test_errors_name_file_line_and_reason(
    tmp_path: Path, task: str, name: str, content: str | bytes, message: str
) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(ValueError) as error:
        read_records(task, file, decoder_only=True)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_directories_and_tasks_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.jsonl"):
        read_records("qa", tmp_path / "nowhere.jsonl", decoder_only=False)
    with pytest.raises(ValueError, match="is a directory; expected a file"):
        read_records("qa", tmp_path, decoder_only=False)
    known = "unknown task 'summary'; known tasks: qa, emotion, lm, text2text, span-corruption, chat"
    with pytest.raises(ValueError, match=known):
        read_records("summary", tmp_path / "a.txt", decoder_only=False)
    with pytest.raises(ValueError, match=known):
        prompt("summary", decoder_only=False, text="")
    assert TASKS == ("qa", "emotion", "lm", "text2text", "span-corruption", "chat")
    for task in CORPUS_TASKS:
        with pytest.raises(ValueError, match=rf"'{task}' has no records, .*: use read_corpus"):
            read_records(task, write(tmp_path / "a.txt", "text"), decoder_only=task == "lm")


# --- a train/validation split


@settings(deadline=None)
@given(
    passages=st.lists(st.integers(0, 6), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_split_keeps_passages_together_and_all_records(
    passages: list[int], fraction: float, seed: int
) -> None:
    records = [Record(f"question {i}", "a", group=f"passage {p}") for i, p in enumerate(passages)]
    train, valid = split_records(records, fraction, seed)
    assert train and valid
    assert sorted(train + valid, key=records.index) == records
    assert [r for r in records if r in train] == train  # the file's order
    assert not {r.group for r in train} & {r.group for r in valid}
    assert split_records(records, fraction, seed) == (train, valid)


@settings(deadline=None)
@given(count=st.integers(2, 200), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_a_split_of_single_records_takes_the_fraction(count: int, fraction: float, seed: int) -> None:
    records = [Record("", f"text {i}") for i in range(count)]
    _, valid = split_records(records, fraction, seed)
    assert abs(len(valid) - fraction * count) <= 1


def test_a_split_depends_on_the_seed_and_keeps_equal_texts_together() -> None:
    records = [Record("", f"text {i // 2}") for i in range(200)]
    validations = []
    for seed in range(2):
        train, valid = split_records(records, 0.2, seed)
        assert not set(train) & set(valid)
        validations.append(valid)
    assert validations[0] != validations[1]


def test_splits_that_are_refused() -> None:
    together = [Record("q1", "a", group="passage"), Record("q2", "a", group="passage")]
    with pytest.raises(ValueError, match=r"cannot split 2 .* share one passage .* pass a separate"):
        split_records(together, 0.5)
    with pytest.raises(ValueError, match=r"fraction is 1.0; expected a number between 0 and 1"):
        split_records(together, 1.0)


# --- real files


def test_real_squad(real_data: Path) -> None:
    records = read_records("qa", real_data / "squad" / "train.json", decoder_only=False)
    assert len(records) == 4000
    assert len({record.group for record in records}) <= 800
    assert all(record.references[0] == record.target for record in records)
    train, valid = split_records(records, 0.1, seed=0)
    assert not {record.group for record in train} & {record.group for record in valid}
    assert 400 <= len(valid) < 410


def test_real_emotions(real_data: Path) -> None:
    counts = {name: 16000 if name == "train" else 2000 for name in ("train", "val", "test")}
    for name, count in counts.items():
        records = read_records("emotion", real_data / "emotion" / f"{name}.txt", decoder_only=False)
        assert len(records) == count
        assert len(Counter(record.target for record in records)) == 6
