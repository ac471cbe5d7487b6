"""python -m ftcore.generate: inputs, outputs, --fast, and one line for every error."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ftcore.checkpoints.checkpoint import load_model
from ftcore.data import load_tokenizer
from ftcore.decoding import generate_texts
from ftcore.generate import main
from tests.helpers import tiny_runs


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_runs.tiny_gpt2(tmp_path_factory.mktemp("gpt2"), n_positions=256))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_runs.tiny_t5(tmp_path_factory.mktemp("byt5"), tie_word_embeddings=False))


def expected(directory: str, texts: list[str], **options: object) -> list[str]:
    return generate_texts(load_model(directory), load_tokenizer(directory), texts, **options)


def one_line(text: str) -> str:
    return " ".join(text.split("\n"))


# Inputs


def test_a_prompt_is_continued(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", gpt2, "--prompt", "Ada", "--max-new-tokens", "7"]) == 0
    assert capsys.readouterr().out == expected(gpt2, ["Ada"], max_new_tokens=7)[0] + "\n"


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_question_is_formatted_as_in_training(
    family: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = request.getfixturevalue(family)
    assert main(["--model", directory, "--context", "Ada lives.", "--question", "Who?", "--json"]) == 0
    given = {
        "t5": "question: Who? context: Ada lives.",
        "gpt2": "context: Ada lives.\nquestion: Who?\nanswer:",
    }
    answer = {"prompt": given[family], "text": expected(directory, [given[family]])[0]}
    assert json.loads(capsys.readouterr().out) == answer


def test_the_lines_of_a_file_are_answered_in_order(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Ada\n\nthe engine weaves\r\n  I\n", encoding="utf-8")
    assert main(["--model", gpt2, "--input", str(path), "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    answers = expected(gpt2, ["Ada", "the engine weaves", "  I"])
    assert captured.out == "".join(one_line(answer) + "\n" for answer in answers)
    assert "3/3" in captured.err  # the progress bar


def test_a_file_may_mix_kinds_of_records(t5: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "records.jsonl"
    records = [{"prompt": "a\nb"}, {"context": "c", "question": "q", "answers": ["x"]}, {"source": "s"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["--model", t5, "--input", str(path), "--json", "--max-new-tokens", "5"]) == 0
    texts = ["a\nb", "question: q context: c", "s"]
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == texts
    assert [answer["text"] for answer in answers] == expected(t5, texts, max_new_tokens=5)


@pytest.mark.parametrize("name", ["prompts.csv", "prompts.txt"])
def test_prompts_in_csv_are_not_lines(
    t5: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text('id,prompt\n1,"a ""b"", c"\n2,prompt\n')
    assert main(["--model", t5, "--input", str(path), "--json", "--max-new-tokens", "2"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ['a "b", c', "prompt"]


def test_the_word_prompt_is_a_prompt(t5: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("prompt\nb\n")
    assert main(["--model", t5, "--input", str(path), "--json", "--max-new-tokens", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


# Outputs


def test_beams_and_several_answers(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--num-beams", "3", "--num-return-sequences", "2", "--no-repeat-ngram-size", "2"]
    arguments += ["--length-penalty", "0.6", "--repetition-penalty", "1.2", "--min-new-tokens", "3"]
    assert main(["--model", gpt2, "--prompt", "Ada", "--json", *arguments]) == 0
    options = {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "length_penalty": 0.6}
    [texts] = expected(gpt2, ["Ada"], repetition_penalty=1.2, min_new_tokens=3, **options)
    assert json.loads(capsys.readouterr().out) == {"prompt": "Ada", "texts": texts}
    assert main(["--model", gpt2, "--prompt", "Ada", *arguments]) == 0
    assert capsys.readouterr().out == "".join(text + "\n" for text in texts)


def test_scores_are_printed_as_json(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", gpt2, "--prompt", "Ada", "--max-new-tokens", "3", "--json", "--scores"]
    assert main(arguments) == 0
    [want] = expected(gpt2, ["Ada"], max_new_tokens=3, return_scores=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"prompt": "Ada", **want._asdict()}
    assert sum(answer["token_scores"]) == pytest.approx(answer["score"])
    assert main([*arguments, "--num-beams", "3", "--num-return-sequences", "2"]) == 0
    options = {"max_new_tokens": 3, "num_beams": 3, "num_return_sequences": 2}
    [[first, second]] = expected(gpt2, ["Ada"], **options, return_scores=True)
    assert json.loads(capsys.readouterr().out) == {
        "prompt": "Ada",
        "texts": [first.text, second.text],
        "scores": [first.score, second.score],
        "tokens": [first.tokens, second.tokens],
        "token_scores": [first.token_scores, second.token_scores],
    }
    with pytest.raises(SystemExit):
        main([*arguments[:-2], "--scores"])
    assert "--scores needs --json" in capsys.readouterr().err


def test_a_seed_makes_samples_reproducible(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    def sampled(seed: int) -> str:
        sampling = ["--sample", "--temperature", "2", "--top-k", "0", "--top-p", "0.9", "--seed", str(seed)]
        main(["--model", gpt2, "--prompt", "Ada", *sampling])
        return capsys.readouterr().out

    assert sampled(1) == sampled(1) != sampled(2)


def test_each_prompt_of_a_file_has_a_seed_of_its_own(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SEED + its number from 0, whatever the batches."""
    path = tmp_path / "prompts.txt"
    path.write_text("Ada\nthe engine weaves\nAda\n")

    def sampled(*arguments: str) -> list[str]:
        main(["--model", gpt2, *arguments, "--sample", "--json", "--max-new-tokens", "6"])
        return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]

    together = sampled("--input", str(path), "--seed", "5")
    assert together == sampled("--input", str(path), "--seed", "5", "--batch-size", "1")
    assert together[0] != together[2]
    assert sampled("--prompt", "Ada", "--seed", "7") == [together[2]]


def test_an_empty_prompt_begins_with_bos(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--stream"]):
        assert main(["--model", gpt2, "--prompt", "", *options]) == 0
        assert capsys.readouterr().out == expected(gpt2, [""])[0] + "\n"


def test_the_answer_ends_before_a_stop_string(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    [free] = expected(gpt2, ["Ada"])
    for options in ([], ["--stream"], ["--fast"]):
        assert main(["--model", gpt2, "--prompt", "Ada", "--stop", "zz", free[3], *options]) == 0
        assert capsys.readouterr().out == free[: free.index(free[3])] + "\n"


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_special_tokens_are_kept_on_request(
    t5: str, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sentinel = load_tokenizer(t5).sentinel_id(0)
    others = [token for token in range(384) if token not in (1, sentinel, 70)]
    directory = copy_of(
        t5, tmp_path / "model", suppress_tokens=others, no_repeat_ngram_size=1, min_new_tokens=2
    )
    for kept in ([], ["--keep-special-tokens"]):
        assert main(["--model", directory, "--prompt", "Ada", *options, *kept]) == 0
        text = capsys.readouterr().out
        assert "C" in text and "</s>" not in text
        assert ("<extra_id_0>" in text) == bool(kept)


def test_the_stream_is_the_answer(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", gpt2, "--prompt", "Ada", "--stream"]) == 0
    assert capsys.readouterr().out == expected(gpt2, ["Ada"])[0] + "\n"


def test_the_output_file_has_the_printed_text(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.txt"
    assert main(["--model", gpt2, "--prompt", "Ada", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_text(encoding="utf-8") == expected(gpt2, ["Ada"])[0] + "\n"


def test_a_prompt_ending_in_a_space_causes_a_warning(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", gpt2, "--prompt", "Ada "]) == 0
    assert "warning: 1 of 1 prompts end in a space" in capsys.readouterr().err


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of TEXT, --prompt, --context with --question, --field, or --input"),
        (["--prompt", "a", "--input", "b"], "give one of"),
        (["--context", "a"], "--context and --question go together"),
        (
            ["a", "--prompt", "b"],
            "give one of TEXT, --prompt, --context with --question, --field, or --input, not",
        ),
        (["--interactive", "a"], "--interactive asks for texts and prints answers"),
        (["--interactive", "--output", "a"], "and no --output"),
        (["--field", "a"], "--field a: expected NAME=TEXT"),
        (["--field", "a=b"], "--task is missing: the checkpoint has no task"),
        (["--template", "{a}", "b"], "--task is missing: the checkpoint has no task of its own"),
        (["--task", "qa", "b"], "takes question, context, not a single text: pass --context TEXT"),
        (["--prompt", "a", "--temperature", "0.5"], "--temperature needs --sample"),
        (["--prompt", "a", "--stream", "--num-beams", "2"], "cannot go with --num-beams"),
        (["--input", "a", "--stream"], "cannot go with --input"),
        (["--prompt", "a", "--batch-size", "0"], "--batch-size is 0"),
        (["--prompt", "a", "--num-beam", "2"], "did you mean '--num-beams'?"),
        (["--prompt", "a", "--num-return-sequences", "2"], "greedy search has one answer"),
        (["--prompt", "a", "--num-beams", "2", "--num-return-sequences", "3"], "more than num_beams, 2"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "a" * 250], "exceed the model's 256 positions"),
        (["--prompt", "a", "--stop", ""], "--stop is an empty text"),
        (["--prompt", "a", "--sample", "--seed", "9" * 30], "--seed is 99999"),
        (["--prompt", "a", "--sample", "--seed", "-1"], "--seed is -1, expected from 0"),
        (["--prompt", "a", "--sample", "--temperature", "1e-45"], "temperature is 1e-45, expected at least"),
        (["--prompt", "a", "--sample", "--temperature", "1e400"], "temperature is inf, expected a number"),
        (["--prompt", "a", "--length-penalty", "nan"], "length_penalty is nan, expected a number"),
        (["--prompt", "a", "--num-beams", "1000000000"], "num_beams is 1000000000, expected at most"),
        (["--prompt", "a", "--max-new-tokens", "1000000000"], "n_positions"),
        (
            ["--prompt", "a", "--top-k", "9" * 30, "--sample"],
            "--top-k is 99999",
        ),
        (["--input", "/no/such/file"], "no such file: /no/such/file"),
        (["--prompt", "a", "--output", "/no/such/directory/file"], "its directory does not exist"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    gpt2: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "a" * 250 in arguments:
        arguments = [*arguments, "--max-new-tokens", "20"]
    with pytest.raises(SystemExit) as ended:
        main(["--model", gpt2, *arguments])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def copy_of(directory: str, target: Path, **settings: object) -> str:
    """A copy of a checkpoint with a generation_config.json."""
    shutil.copytree(directory, target)
    (target / "generation_config.json").write_text(json.dumps(settings))
    return str(target)


@pytest.mark.parametrize(
    "search",
    [[], ["--sample"], ["--num-beams", "2"], ["--stream"], ["--json"], ["--fast"], ["--fast", "--sample"]],
)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_weights_that_are_not_finite_are_one_line_and_status_1(
    family: str,
    search: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = copy_of(request.getfixturevalue(family), tmp_path / "model")
    weights = load_file(f"{directory}/model.safetensors")
    name = "transformer.ln_f.weight" if family == "gpt2" else "decoder.final_layer_norm.weight"
    weights[name][0] = float("nan")
    save_file(weights, f"{directory}/model.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(["--model", directory, "--prompt", "Ada", *search])
    out, error = capfd.readouterr()
    assert ended.value.code == 1
    assert f"ftcore.generate: the model's output is not finite: {name} holds NaN\n" in error
    assert error.count("\n") == 1 + ("--fast" in search) and not out


def test_rules_that_forbid_every_token_are_one_line_and_status_1(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(gpt2, tmp_path / "model", suppress_tokens=[*range(400)])
    with pytest.raises(SystemExit) as ended:
        main(["--model", directory, "--prompt", "Ada"])
    *_, error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert error.endswith(
        "no token with a finite score is left after 3 tokens of row 0, because of"
        " suppress_tokens=[0, 1, 2, 3, 4, 5, ...]"
    )


def test_settings_of_the_checkpoint_are_stated(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_new_tokens": 4, "eos_token_id": 1, "temperature": 1.0, "suppress_tokens": [70, 71]}
    directory = copy_of(gpt2, tmp_path / "model", guidance_scale=1.5, transformers_version="5", **settings)
    assert main(["--model", directory, "--prompt", "Ada"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {directory}/generation_config.json: not implemented and ignored: 'guidance_scale'",
        "the checkpoint sets max_new_tokens=4, suppress_tokens=[70, 71]",
    ]
    assert main(["--model", directory, "--prompt", "Ada", "--max-new-tokens", "2"]) == 0
    assert "the checkpoint sets suppress_tokens=[70, 71]\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "no prompts, expected one per line"),
        (b'{"prompt": "a"}\n{"prompt": \n', "line 2: broken JSON"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: expected an object with the texts"),
        (b'{"prompt": "a"}\n\n[1]\n', "line 3: [1] is not a record"),
        (b"a\xff", "not UTF-8"),
    ],
)
def test_errors_in_a_file_name_its_line(
    gpt2: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["--model", gpt2, "--input", str(path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert str(path) in error
    assert message in error
    assert error.count("\n") == 1


def test_help_does_not_import_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ftcore.generate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "torch" not in done.stderr
    for option in (
        "--prompt TEXT",
        "--input FILE",
        "--num-beams N",
        "--top-p X",
        "--stream",
        "--fast",
        "--model DIR",
    ):
        assert option in done.stdout


def test_the_command(gpt2: str) -> None:
    command = [sys.executable, "-m", "ftcore.generate", "--model", gpt2, "--prompt", "Ada"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == expected(gpt2, ["Ada"])[0] + "\n"
    assert done.stderr == ""
