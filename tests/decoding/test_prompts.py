"""Prompts of the command line: as in training, from options, files, standard input and questions."""

import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftcore.data import Task, read_records
from ftcore.decoding.prompts import as_arguments, build_prompt, interact, read_prompts, warn_of_other_form
from ftcore.generate import GenerateOptions, main
from tests.helpers import tiny_runs

NLI = Task("text2text", template="premise: {premise} claim: {claim}", columns={"target": "verdict"})
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


@pytest.mark.parametrize(
    ("task", "given", "t5", "gpt2"),
    [
        (Task("emotion"), " fine ", "Emotion: fine", "Emotion: fine"),
        (Task("text2text"), "a b", "a b", "a b\n"),
        (Task("text2text", template="sum: {document}"), "a", "sum: a", "sum: a\n"),
        (Task("chat"), " Hi ", "user: Hi\nassistant:", "user: Hi\nassistant:"),
        (
            Task("qa"),
            {"context": "c", "question": "q"},
            "question: q context: c",
            "context: c\nquestion: q\nanswer:",
        ),
        (NLI, {"premise": "p", "claim": "c"}, "premise: p claim: c", "premise: p claim: c\n"),
    ],
)
def test_prompts_of_each_task(task: Task, given: str | dict[str, str], t5: str, gpt2: str) -> None:
    assert build_prompt(task, given, decoder_only=False) == t5
    assert build_prompt(task, given, decoder_only=True) == gpt2


def test_a_text_without_gaps_gets_one() -> None:
    task = Task("span-corruption")
    assert build_prompt(task, "Ada sews", decoder_only=False) == "Ada sews <extra_id_0>"
    assert build_prompt(task, "Ada <extra_id_0> sews", decoder_only=False) == "Ada <extra_id_0> sews"


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (
            Task("qa"),
            "Who?",
            "takes question, context, not a single text: pass --context TEXT --question TEXT",
        ),
        (NLI, "p", "takes premise, claim, not a single text: pass --field premise=TEXT claim=TEXT"),
        (Task("emotion"), {"context": "c", "question": "q"}, "'emotion' takes text; got context, question"),
        (NLI, {"premise": "p"}, "takes premise, claim; got premise"),
    ],
)
def test_other_fields_are_refused(task: Task, given: str | dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_prompt(task, given, decoder_only=False)


def test_a_raw_prompt_of_another_form_causes_a_warning(capsys: pytest.CaptureFixture) -> None:
    warn_of_other_form(Task("emotion"), "Emotion: i feel", decoder_only=True)
    warn_of_other_form(Task("text2text"), "a\n", decoder_only=True)
    assert not capsys.readouterr().err
    warn_of_other_form(Task("text2text"), "a", decoder_only=True)
    warn_of_other_form(Task("qa"), "Who?", decoder_only=False)
    text2text, qa = capsys.readouterr().err.splitlines()
    assert text2text.endswith(r"inputs had the form '{source}\n'")
    assert qa.endswith("inputs had the form 'question: {question} context: {context}'")


def test_arguments_are_the_fields() -> None:
    assert as_arguments({"text": "a b"}) == ["a b"]
    assert as_arguments({"question": "q", "context": "c"}) == ["--context", "c", "--question", "q"]
    [command] = [shlex.join(as_arguments({"premise": "it's", "claim": "a=b"}))]
    options = GenerateOptions(model="", field=shlex.split(command)[1:])
    assert options.given_fields() == {"premise": "it's", "claim": "a=b"}


# --- files


def rows(path: Path, *values: dict) -> str:
    return str(tiny_runs.write_lines(path, values))


@pytest.mark.parametrize("decoder_only", [False, True])
@pytest.mark.parametrize(
    ("task", "row"),
    [
        (Task("qa"), {"context": "Ada sews. ", "question": "Who?", "answers": []}),
        (Task("text2text"), {"source": "a ", "target": "b"}),
        (NLI, {"premise": "p", "claim": "", "verdict": "yes"}),
        (Task("text2text", {"source": "prompt", "target": "b"}), {"prompt": "a", "b": "c"}),
        (Task("chat"), {"messages": CHAT}),
        (Task("chat"), {"messages": [{"role": "system", "content": "Nod."}, *CHAT, *CHAT]}),
    ],
)
def test_rows_of_the_task_have_the_prompts_of_training(
    tmp_path: Path, task: Task, row: dict, decoder_only: bool
) -> None:
    file = rows(tmp_path / "rows.jsonl", row, row)
    last = read_records(task, file, decoder_only=decoder_only)[-1]
    assert read_prompts(task, file, decoder_only=decoder_only) == [last.source] * 2


def test_lines_are_the_only_field_of_the_task_or_prompts(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("i am; fine;joy\nso so\n")
    assert read_prompts(Task("emotion"), str(file), decoder_only=True) == [
        "Emotion: i am; fine",
        "Emotion: so so",
    ]
    assert read_prompts(Task("text2text"), str(file), decoder_only=True) == ["i am; fine;joy\n", "so so\n"]
    assert read_prompts(Task("chat"), str(file), decoder_only=True)[1] == "user: so so\nassistant:"
    for task in (Task("qa"), None):
        assert read_prompts(task, str(file), decoder_only=True) == ["i am; fine;joy", "so so"]


def test_raw_prompts_may_stand_among_rows(tmp_path: Path) -> None:
    mixed = rows(tmp_path / "mixed.jsonl", {"source": "a"}, {"prompt": "b"}, {"prompt": "c", "source": "d"})
    assert read_prompts(Task("text2text"), mixed, decoder_only=True) == ["a\n", "b", "d\n"]
    assert read_prompts(None, mixed, decoder_only=True) == ["a\n", "b", "c"]
    with pytest.raises(ValueError, match=r"line 1: no key 'context' .*`columns` context=COLUMN"):
        read_prompts(Task("qa"), mixed, decoder_only=True)


def test_a_squad_file_is_read(tmp_path: Path) -> None:
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    [prompt] = read_prompts(Task("qa"), str(tmp_path / "squad.json"), decoder_only=False)
    assert prompt == "question: q context: c"


@pytest.mark.parametrize(
    ("text", "prompts"),
    [("a\nb\n", ["a\n", "b\n"]), ('{"source": "a"}\n', ["a\n"]), ('source,id\n"a, b",1\n', ["a, b\n"])],
)
def test_standard_input_is_a_file(text: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_prompts(Task("text2text"), "-", decoder_only=True) == prompts


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "standard input: the file is empty"), ('{"a": 1}', "standard input, line 1: no key")],
)
def test_errors_name_standard_input(text: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(ValueError) as error:
        read_prompts(Task("text2text"), "-", decoder_only=True)
    assert str(error.value).startswith(complaint)


# --- questions


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Lines of standard input, and what is asked for them."""
    session = SimpleNamespace(lines=[], asked=[])

    def read(label: str) -> str:
        session.asked.append(label)
        if not session.lines:
            raise EOFError
        return session.lines.pop(0)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    yield session


def test_fields_are_asked_for_again_and_again(typed: SimpleNamespace) -> None:
    prompts: list[str] = []
    answer = lambda prompt: prompts.append(prompt) or "x"  # noqa: E731
    typed.lines = ["q1", "c1", "", "q2", "c2"]
    interact(Task("qa"), {}, answer, decoder_only=False)
    assert prompts == ["question: q1 context: c1", "question: q2 context: c2"]
    assert typed.asked == ["question: ", "context: ", "question: ", "question: ", "context: ", "question: "]
    typed.lines, prompts[:] = ["q1", "q2"], []
    interact(Task("qa"), {"context": "c"}, answer, decoder_only=False)
    assert prompts == ["question: q1 context: c", "question: q2 context: c"]
    typed.lines, prompts[:] = ["Once"], []
    interact(None, {}, answer, decoder_only=True)
    assert prompts == ["Once"] and typed.asked[-1] == "prompt: "


def test_a_conversation_is_kept_until_it_is_too_long(
    typed: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        if len(prompt) > 50:
            raise ValueError("prompt 1: too long")
        prompts.append(prompt)
        return " Yes\n"

    typed.lines = ["Hello", "Sure?", "a" * 50, "Again"]
    interact(Task("chat"), {}, answer, decoder_only=True)
    assert prompts == [
        "user: Hello\nassistant:",
        "user: Hello\nassistant: Yes\nuser: Sure?\nassistant:",
        "user: Again\nassistant:",
    ]
    assert capsys.readouterr().err == "warning: prompt 1: too long; the conversation starts again\n"


# --- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize(
    ("task", "arguments", "prompt"),
    [
        (None, ["a"], "a"),
        (None, ["--source", "a"], "a\n"),
        (None, ["--prompt", "a"], "a"),
        (None, ["--task", "emotion", "--source", "a"], "Emotion: a"),
        (None, ["--task", "text2text", "--template", "sum: {x}", "a"], "sum: a\n"),
        (None, ["--context", "c", "--question", "q"], "context: c\nquestion: q\nanswer:"),
        (Task("emotion"), ["a"], "Emotion: a"),
        (Task("emotion"), ["--prompt", "Emotion: a"], "Emotion: a"),
        (Task("emotion"), ["--task", "text2text", "a"], "a\n"),
        (Task("text2text", template="sum: {x}"), ["a"], "sum: a\n"),
        (Task("text2text", template="sum: {x}"), ["--task", "text2text", "--source", "a"], "sum: a\n"),
        (Task("chat"), ["--prompt", "a"], "user: a\nassistant:"),
        (NLI, ["--field", "claim=b", "premise=a"], "premise: a claim: b\n"),
        (Task("qa"), ["--field", "question=b", "--context", "a"], "context: a\nquestion: b\nanswer:"),
    ],
)
def test_the_command_builds_the_prompt(
    model: Path, task: Task | None, arguments: list[str], prompt: str, capsys: pytest.CaptureFixture
) -> None:
    (model / "task.json").unlink(missing_ok=True)
    if task:
        task.save(model)
    assert main(["--model", str(model), *arguments, "--json", "--max-new-tokens", "1"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["prompt"] == prompt and not captured.err


def test_the_command_keeps_asking(
    model: Path, typed: SimpleNamespace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Task("chat").save(model)
    typed.lines = ["Hello", "a" * 200, "Bye"]
    assert main(["--model", str(model), "--interactive", "--json", "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    first, second = [json.loads(line) for line in captured.out.splitlines()]
    assert (first["prompt"], second["prompt"]) == ("user: Hello\nassistant:", "user: Bye\nassistant:")
    assert "exceed the model's 128 positions" in captured.err and captured.err.count("\n") == 1
    typed.lines = ["Hello"]
    assert main(["--model", str(model), "--interactive", "--stream", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith(first["text"])
    typed.lines = ["Hello", "Bye"]
    sampling = ["--sample", "--seed", "1", "--json", "--scores", "--max-new-tokens", "3"]
    assert main(["--model", str(model), "--interactive", *sampling]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert second["prompt"] == f"{first['prompt']} {first['text'].strip()}\nuser: Bye\nassistant:"
    assert len(second["token_scores"]) == 3
