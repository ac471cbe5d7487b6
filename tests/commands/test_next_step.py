"""The line "try them" that a run prints works when it is pasted: the prompt is training's, with an answer."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import ftcore.evaluate
import ftcore.generate
import ftcore.train
from ftcore.data import CORPUS_TASKS, Dataset, Task, load_task, load_tokenizer, read_records
from tests.helpers import tiny_runs

CONVERSATION = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "yes yes"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "yes yes"},
]
ROWS: dict[str, Any] = {
    "qa": {"context": "Ada sews,\nBea reads.", "question": "Is it?", "answers": ["yes yes"]},
    "emotion": {"text": "it is so it is so", "label": "yes yes"},
    "text2text": {"source": "is it", "target": "yes yes"},
    "text2text, template": {"Premise": "it is", "Claim": "it's so", "Verdict": 1},
    "chat": {"messages": CONVERSATION},
}
OPTIONS = {
    "text2text, template": [
        *("--template", "premise: {Premise} claim: {Claim}", "--columns", "target=Verdict"),
        *("--labels", "0=no,1=yes yes"),
    ],
}
TEXT = "isitso itisso " * 70
CASES = [
    *(("t5", name) for name in [*ROWS, "span-corruption"]),
    *(("gpt2", name) for name in [*ROWS, "lm"]),
]


def trained(family: str, name: str, folder: Path) -> Path:
    """A run of a few steps on rows that are all alike."""
    make = tiny_runs.tiny_t5 if family == "t5" else tiny_runs.tiny_gpt2
    sizes = {"d_model": 32, "d_kv": 16} if family == "t5" else {"n_embd": 32, "n_positions": 256}
    model, task, data = make(folder / "model", **sizes), name.partition(",")[0], folder / "data.jsonl"
    rows = [{"text": TEXT}] if task in CORPUS_TASKS else [ROWS[name]] * 8
    if task == "lm":  # the prompt ends with the first document
        rows = [{"text": " ".join(TEXT.split()[:3])}, *rows]
    tiny_runs.write_lines(data, rows)
    options = ["--max-steps", "40", "--batch-size", "8", "--lr", "0.02", "--eval-answers", "0"]
    options += ["--max-source-length", "90", "--max-target-length", "40", "--eval-every", "40"]
    files = [
        "--model",
        str(model),
        "--train",
        str(data),
        "--valid",
        str(data),
        "--output",
        str(folder / "run"),
    ]
    assert ftcore.train.main(["--task", task, *files, *options, *OPTIONS.get(name, [])]) == 0
    return folder / "run"


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_printed_line_gives_an_answer_to_a_prompt_of_training(
    family: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained(family, name, tmp_path)
    [line] = re.findall("^try them +(.*)$", capsys.readouterr().out, re.M)
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "ftcore.generate", "--model", str(run / "best")]
    assert ftcore.generate.main([*words[3:], "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["text"].strip(), answer
    assert captured.err == ""
    task, tokenizer = load_task(run / "best"), load_tokenizer(run / "best")
    assert task is not None
    prompt = tokenizer.encode(answer["prompt"])
    if name == "lm":
        assert tokenizer.encode(TEXT)[: len(prompt)] == prompt
    elif name == "span-corruption":
        assert tokenizer.sentinel_id(0) in prompt
    else:
        records = read_records(task, tmp_path / "data.jsonl", decoder_only=family == "gpt2")
        lengths = {"max_source_length": 90, "max_target_length": 40}
        dataset = Dataset(records, tokenizer, decoder_only=family == "gpt2", **lengths)
        if (family, name) == ("gpt2", "emotion"):  # the start of a text
            assert dataset[0]["input_ids"][: len(prompt)] == prompt
        elif name != "qa":
            assert prompt == dataset.source(0)
        else:  # a line break would split the printed line
            assert prompt == tokenizer.encode(records[0].source.replace(",\n", ", "))


def test_a_run_is_evaluated_and_answers_files_as_it_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained("gpt2", "text2text, template", tmp_path)
    model, data = ["--model", str(run / "best")], str(tmp_path / "data.jsonl")
    capsys.readouterr()
    assert ftcore.evaluate.main([*model, "--data", data, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["examples"] == 8 and scores["exact_match"] == 1
    renamed = tmp_path / "renamed.csv"
    renamed.write_text("Premise,Claim,v\nit is,it's so,TRUE\n")
    options = ["--columns", "target=v", "--labels", "true=yes yes,false=no"]
    assert ftcore.evaluate.main([*model, "--data", str(renamed), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == 1
    assert ftcore.generate.main([*model, "--input", data]) == 0
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["yes yes"] * 8


def test_transformers_opens_a_directory_with_a_task(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    transformers = pytest.importorskip("transformers")
    run = trained("gpt2", "chat", tmp_path)
    for directory in (run / "best", run / "last"):
        assert json.loads((directory / "task.json").read_text()) == {"task": "chat"}
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        assert model.config.n_embd == 32


def test_an_adapter_has_its_task(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tiny_runs.write_lines(tmp_path / "data.jsonl", [{"text": "fine", "label": 0}] * 2)
    files = ["--model", str(tiny_runs.tiny_t5(tmp_path / "t5")), "--train", str(data), "--valid", str(data)]
    options = ["--task", "emotion", "--labels", "0=joy", "--lora-rank", "2", "--max-steps", "1"]
    run = tmp_path / "run"
    assert ftcore.train.main([*files, *options, "--save-every", "1", "--output", str(run)]) == 0
    for directory in (run / "best/adapter", run / "last", run / "checkpoints/step-000001"):
        assert load_task(directory) == Task("emotion", labels={"0": "joy"})
    capsys.readouterr()
    assert ftcore.generate.main(["--model", str(run / "best/adapter"), "so", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "Emotion: so"
