"""python -m ftcore.compare: table, JSON and exit status 0 (equal), 1 (different) or 2 (invalid input)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ftcore.models.gpt2
from ftcore.compare import main
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.study import randomize_weights

pytest.importorskip("transformers")

T5 = {
    "model_type": "t5",
    "vocab_size": 80,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 80, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2}
VARIANTS = {
    "t5": T5,
    "t5-v1.1": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gpt2": GPT2,
    "gpt2-other": GPT2
    | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 20, "activation_function": "relu"},
}


def config_file(folder: Path, values: object) -> str:
    path = folder / "some.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return str(path)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config.from_dict(GPT2))
    randomize_weights(model)
    model.save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


@pytest.fixture
def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our GPT-2 with a mistake in it."""
    right = ftcore.models.gpt2.attend
    monkeypatch.setattr("ftcore.models.gpt2.attend", lambda *a, **k: right(*a, **k | {"scale": 1.0}))


# Output


@pytest.mark.parametrize("name", VARIANTS)
def test_random_weights_are_equal(name, tmp_path, capsys):
    assert main(["--config", config_file(tmp_path, VARIANTS[name])]) == 0
    output = capsys.readouterr().out
    assert "lm_head" in output
    assert "Equal: no difference is larger than rounding explains." in output
    head, last = output.partition("\n\n")[0], output.splitlines()[-1]
    assert last.startswith("Without hooks, with the fused attention kernel: logits equal")
    assert all(len(line) <= 80 for line in [*head.splitlines(), last])
    assert "differs" not in output


@pytest.mark.parametrize("name", ["t5-tiny.json", "gpt2-tiny.json"])
def test_example_configurations_are_equal(name, capsys):
    path = Path(__file__).parents[2] / "examples" / "configs" / name
    assert main(["--config", str(path), "--length", "20", "--forward-only"]) == 0
    assert "Gradients" not in capsys.readouterr().out


def test_checkpoint_is_equal(gpt2, tmp_path, capsys):
    assert main(["--model", gpt2, "--batch", "3", "--length", "9", "--seed", "5"]) == 0
    assert "3x9x80" in capsys.readouterr().out
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config.from_dict(T5))
    model.save_pretrained(tmp_path / "t5")
    assert main(["--model", str(tmp_path / "t5")]) == 0
    assert "2x140x16" in capsys.readouterr().out


def test_json_output(gpt2, capsys):
    assert main(["--model", gpt2, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equal"] is True
    assert report["fused"]["equal"] is True
    assert report["first_divergent"] is None
    assert report["rows"][0]["name"] == "transformer.wte"
    assert report["rows"][0]["shape"] == [2, 48, 16]
    assert {row["verdict"] for row in report["rows"]} == {"equal"}


def test_rows_are_in_execution_order(gpt2, capsys):
    main(["--model", gpt2, "--json"])
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    in_order = [
        "transformer.h.0.ln_1",
        "transformer.h.0.attn",
        "transformer.h.0.mlp.act",
        "transformer.h.1",
        "",
    ]
    assert [name for name in names if name in in_order] == in_order


def test_difference_is_reported_with_its_cause(gpt2, wrong_scale, capsys):
    assert main(["--model", gpt2]) == 1
    output = " ".join(capsys.readouterr().out.split())  # without line breaks
    assert "First divergent module: transformer.h.0.attn.c_proj" in output
    assert "the mistake is in transformer.h.0.attn, between its submodules" in output
    assert "Likely cause: missing 1/sqrt(d), in transformer.h.0.attn" in output
    assert main(["--model", gpt2, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["equal"] is False
    assert report["first_bad_module"] == "transformer.h.0.attn"
    assert [cause["name"] for cause in report["causes"]] == ["missing 1/sqrt(d)"]
    assert report["causes"][0]["after"] < report["causes"][0]["before"]


def test_difference_of_the_fused_kernel_is_reported(gpt2, monkeypatch, capsys):
    right = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "ftcore.models.attention.F.scaled_dot_product_attention", lambda *a, **k: right(*a, **k) * 2
    )
    assert main(["--model", gpt2]) == 1
    output = capsys.readouterr().out
    assert "Equal: no difference" in output
    assert "with the fused attention kernel: logits differ (relative" in output.splitlines()[-1]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --model or --config"),
        (["--model", "a", "--config", "b"], "give either --model or --config, not both"),
        (["--config", "a", "--length", "0"], "--length is 0, expected at least 1"),
        (["--config", "a", "--batch", "0"], "--batch is 0, expected at least 1"),
        (["--config", "a", "--seed", str(10**30)], "--seed is 1000000000000000000000000000000, expected an"),
        (["--config", "missing.json"], "no such file: missing.json"),
        (["--config", "."], "a directory, expected a file such as the config.json in it"),
        (["--model", "./missing"], "no such directory"),
        (["--config", "a", "--lenght", "3"], "did you mean '--length'"),
    ],
)
def test_invalid_options_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "some.json: broken JSON"),
        ("[]", "some.json: expected a JSON object, found list"),
        ({"model_type": "bert"}, "some.json: model_type is 'bert', expected \"t5\""),
        (GPT2 | {"n_head": 3}, "some.json: n_embd is 16, which 3 heads"),
        (GPT2 | {"n_layer": 10**7}, "some.json: n_layer is 10000000, expected 1 to 256"),
        (
            T5 | {"d_model": 2**24, "d_ff": 2**24},
            "GB, more than the memory here can hold: T5Config(vocab_size",
        ),
        (T5 | {"num_layers": "two"}, "some.json: num_layers is 'two', expected a whole number"),
    ],
)
def test_invalid_configuration_is_one_line(values, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--config", config_file(tmp_path, values)])
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in output
    assert output.count("\n") == 1


def test_length_beyond_n_positions(gpt2, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--model", gpt2, "--length", "49"])
    assert ended.value.code == 2
    assert "--length is 49, but the model has 48 positions" in capsys.readouterr().err


def test_missing_transformers(gpt2, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as ended:
        main(["--model", gpt2])
    assert ended.value.code == 2
    assert "pip install transformers" in capsys.readouterr().err


def test_help_without_torch_and_transformers():
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "sys.argv = ['compare', '--help']; runpy.run_module('ftcore.compare', run_name='__main__')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "--config FILE" in shown.stdout
