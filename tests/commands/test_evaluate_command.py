"""python -m ftcore.evaluate: the scores of training, predictions, one line for every error."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ftcore.train
from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.data import load_tokenizer
from ftcore.decoding import generate_texts
from ftcore.evaluate import main
from ftcore.metrics import exact_match, f1
from ftcore.training.scoring import LossScore
from tests.helpers import tiny_runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    tiny_runs.tiny_gpt2(folder / "gpt2")
    tiny_runs.questions(folder / "qa.jsonl", 9)
    (folder / "text.txt").write_text("the quick brown fox. " * 30)
    return folder


def evaluate(capsys: pytest.CaptureFixture, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


def on(files: Path, model: str, data: str = "qa.jsonl") -> list[str]:
    return ["--model", str(files / model), "--data", str(files / data), "--max-target-length", "20"]


def error_of(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert not captured.out and line.startswith("ftcore.evaluate: ")
    return line


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_scores_equal_those_logged_by_training(
    files: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture
) -> None:
    """The last line of metrics.jsonl equals the scores of last/."""
    rows = ({"context": f"it is {n}", "question": "is it?", "answer": "yes"} for n in range(9))
    run, data = tmp_path / "run", str(tiny_runs.write_lines(tmp_path / "yes.jsonl", rows))
    options = ["--max-steps", "30", "--batch-size", "9", "--max-target-length", "20", "--lr", "0.02"]
    paths = ["--model", str(files / model), "--train", data, "--valid", data, "--output", str(run)]
    ftcore.train.main([*paths, *options, "--eval-every", "30"])
    logged = tiny_runs.metrics(run)[-1]
    same = ["--data", data, "--max-target-length", "20", "--batch-size", "4"]
    scores = evaluate(capsys, "--model", str(run / "last"), *same)
    assert scores.pop("examples") == 9 and scores.pop("tokens") > 9
    assert scores.pop("loss") == pytest.approx(logged.pop("valid_loss"), rel=1e-5)
    assert scores.pop("answers") == "greedy search, at most 20 tokens, compared as in SQuAD 1.1"
    assert {"step": 30, "epoch": 30.0, **scores} == pytest.approx(logged, rel=1e-5)
    assert scores["f1"] > 0  # the model has learned something


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_predictions(files: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "answers.jsonl"
    scores = evaluate(
        capsys, *on(files, model), "--predictions", str(file), "--num-beams", "2", "--limit", "5"
    )
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(answers) == 5
    texts = [answer["source"] for answer in answers]
    wanted = generate_texts(
        load_model(files / model), load_tokenizer(files / model), texts, num_beams=2, max_new_tokens=20
    )
    assert [answer["prediction"] for answer in answers] == wanted
    for answer in answers:
        assert answer["exact_match"] == exact_match(answer["prediction"], answer["references"])
        assert answer["f1"] == f1(answer["prediction"], answer["references"])
    for name in ("exact_match", "f1"):
        assert scores[name] == pytest.approx(sum(answer[name] for answer in answers) / 5)


def test_table(files: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*on(files, "t5"), "--num-beams", "3"]) == 0
    output = capsys.readouterr().out
    assert all(len(line) <= 80 for line in output.splitlines())
    table = dict(re.split("  +", line) for line in output.replace("\n" + " " * 21, " ").splitlines())
    scores = ["examples", "tokens", "loss", "token_accuracy", "perplexity"]
    assert list(table) == [*scores, "exact_match (SQuAD)", "f1 (SQuAD)", "answers"]
    assert table["examples"] == "9"
    assert table["answers"] == "beam search with 3 beams, at most 20 tokens, compared as in SQuAD 1.1"


def test_several_files_are_scored_together(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = (files / "qa.jsonl").read_text().splitlines(keepends=True)
    for number, part in enumerate((rows[:4], rows[4:])):
        (tmp_path / f"{number}.jsonl").write_text("".join(part))
    whole, parts = evaluate(capsys, *on(files, "t5")), [str(tmp_path / f"{n}.jsonl") for n in (0, 1)]
    options = [*on(files, "t5")[:2], "--max-target-length", "20", "--data"]
    assert evaluate(capsys, *options, *parts) == evaluate(capsys, *options, f"{tmp_path}/?.jsonl") == whole
    assert evaluate(capsys, *options, *parts, "--limit", "5")["examples"] == 5


def test_metrics_of_the_answers(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evaluated.py").write_text(
        "def length(predictions, references):\n    return sum(map(len, predictions)) / len(predictions)\n"
        "def fails(predictions, references):\n    return 1 / (len(predictions) < 9)\n"
    )
    file = tmp_path / "answers.jsonl"
    options = [*on(files, "t5"), "--predictions", str(file), "--metrics"]
    scores = evaluate(capsys, *options, "accuracy,evaluated:length")
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    lengths = [len(answer["prediction"]) for answer in answers]
    assert scores["length"] == sum(lengths) / 9 and scores["accuracy"] == 0 and "f1" not in scores
    assert "--metrics rogue: no such metric, did you mean 'rouge'?" in error_of(capsys, *options, "rogue")
    (tmp_path / "emotions.txt").write_text("I laugh;joy\n")
    texts = [*on(files, "gpt2", str(tmp_path / "emotions.txt")), "--task", "emotion", "--metrics", "f1"]
    assert "--metrics f1: the examples have no gold answers" in error_of(capsys, *texts)
    file.unlink()
    with pytest.raises(SystemExit) as ending:  # the answers are written first
        main([*options, "evaluated:fails"])
    assert ending.value.code == 1 and len(file.read_text().splitlines()) == 9
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("ftcore.evaluate: --metrics evaluated:fails: ZeroDivisionError: division by zero")


def test_questions_without_answers_have_scores_of_their_own(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"context": "c", "question": f"{n}", "answers": [] if n < 3 else ["x"]} for n in range(5)]
    data = str(tiny_runs.write_lines(tmp_path / "squad2.jsonl", rows))
    monkeypatch.setattr("ftcore.training.scoring.generate_from_ids", lambda *_, **__: ["", "", "x", "x", ""])
    scores = evaluate(capsys, *on(files, "t5", data))
    assert scores["exact_match"] == scores["f1"] == 3 / 5
    assert (scores["HasAns_exact"], scores["HasAns_f1"], scores["HasAns_total"]) == (1 / 2, 1 / 2, 2)
    assert (scores["NoAns_exact"], scores["NoAns_f1"], scores["NoAns_total"]) == (2 / 3, 2 / 3, 3)
    assert scores["answers"].endswith("compared as in SQuAD 2.0")
    monkeypatch.undo()
    assert not any("Ans_" in name for name in evaluate(capsys, *on(files, "t5")))


def test_answers_outside_qa_are_compared_exactly(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = ({"source": f"review {n}", "target": "+-"[n % 2]} for n in range(8))
    data = str(tiny_runs.write_lines(tmp_path / "signs.jsonl", rows))
    options = [*on(files, "t5", data), "--task", "text2text"]
    scores = evaluate(capsys, *options)
    assert scores["exact_match"] == scores["f1"] <= 0.5
    assert "exactly" in scores["answers"]
    assert main(options) == 0
    assert "\nexact_match   " in capsys.readouterr().out


def test_settings_for_writing_do_not_change_scores(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plain = evaluate(capsys, *on(files, "t5"))
    for number, settings in enumerate(({"do_sample": True}, {"num_beams": 3, "num_return_sequences": 2})):
        model = tiny_runs.tiny_t5(tmp_path / str(number))
        (model / "generation_config.json").write_text(json.dumps(settings))
        assert evaluate(capsys, *on(files, "t5"), "--model", str(model)) == plain


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_weights_that_are_not_finite_are_named(
    files: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture
) -> None:
    broken = load_model(files / model)
    name, weight = list(broken.named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] = math.inf
    shutil.copytree(files / model, tmp_path / "broken")
    save_model(broken, tmp_path / "broken")
    paths = ["--model", str(tmp_path / "broken"), "--output", str(tmp_path / "run")]
    commands = {
        "evaluate": lambda: main([*on(files, model), *paths[:2], "--json"]),
        "train": lambda: ftcore.train.main([*paths, "--train", str(files / "qa.jsonl")]),
    }
    for command, start in commands.items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            start()
        assert ending.value.code == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"ftcore.{command}: the loss is" in line and line.endswith(f"{name} holds infinity")


def test_an_infinite_perplexity_is_null(
    files: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcore.evaluate.score_loss", lambda *_: LossScore(1e6, 0.0, 3))
    assert evaluate(capsys, *on(files, "t5"))["perplexity"] is None


def test_a_corpus_has_a_perplexity_and_no_answers(files: Path, capsys: pytest.CaptureFixture) -> None:
    scores = evaluate(capsys, *on(files, "gpt2", "text.txt"), "--task", "lm")
    assert list(scores) == ["examples", "tokens", "loss", "token_accuracy", "perplexity"]
    assert scores["tokens"] == len("the quick brown fox. " * 30)  # every byte but the first, and the end


def test_cut_sources_are_counted(files: Path, capsys: pytest.CaptureFixture) -> None:
    main([*on(files, "t5"), "--max-source-length", "8"])
    assert (
        "warning: 9 of 9 evaluation sources are truncated to --max-source-length 8 tokens"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/x.json"], "/nowhere/x.json"),
        (["--model", "/nowhere/x"], "/nowhere/x': no such directory"),
        (["--task", "poetry"], "--task: invalid choice: 'poetry'"),
        (["--task", "lm"], "'lm' trains a decoder-only model"),
        (["--device", "cuda:99"], "--device is 'cuda:99'"),
        (["--batch-size", "0"], "--batch-size is 0, expected at least 1"),
        (["--limit", "0"], "--limit is 0, expected at least 1"),
        (
            ["--predictions", "/nowhere/x.jsonl"],
            "--predictions /nowhere/x.jsonl: its directory does not exist",
        ),
        (["--predikt", "x"], "did you mean '--predictions'?"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    files: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert message in error_of(capsys, *on(files, "t5"), *arguments)


def test_invalid_files_are_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "--model is missing" in error_of(capsys)
    assert "--data is missing" in error_of(capsys, "--model", str(files / "t5"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"context"}\n')
    assert "broken.jsonl, line 1: broken JSON" in error_of(capsys, *on(files, "t5"), "--data", str(broken))
    text = [*on(files, "gpt2", "text.txt"), "--task", "lm", "--predictions", str(tmp_path / "x")]
    assert "the records have no gold answers" in error_of(capsys, *text)
    assert "--limit counts records; --task lm reads plain text" in error_of(
        capsys, *text[:-2], "--limit", "2"
    )
    small = tiny_runs.tiny_gpt2(tmp_path / "small", n_positions=16)
    assert "only 16 positions" in error_of(capsys, *on(files, "gpt2"), "--model", str(small))
    assert "no config.json" in error_of(capsys, *on(files, "t5"), "--model", str(files))


def test_a_missing_start_token_defaults_to_the_pad_token(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tiny_runs.tiny_t5(tmp_path / "bare", decoder_start_token_id=None)
    assert evaluate(capsys, *on(files, "t5"), "--model", str(bare)) == evaluate(capsys, *on(files, "t5"))
