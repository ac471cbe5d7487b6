"""Resized models: weights that fit are loaded, and the origin of every parameter is reported."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import ftcore.train
from ftcore.checkpoints.checkpoint import model_from_config
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.training.options import TrainOptions
from ftcore.training.resize import config_changes, expand_ranges, resize
from ftcore.training.setup import make_model
from tests.helpers import tiny_runs

SIZES: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_heads": 3, "num_layers": 3},
    "gpt2": {"vocab_size": 30, "n_positions": 10, "n_embd": 12, "n_layer": 3, "n_head": 3},
}
CHANGES = {
    "t5": {
        "vocab_size": st.integers(20, 40),
        "d_model": st.integers(1, 20),
        "d_kv": st.integers(1, 8),
        "d_ff": st.integers(1, 30),
        "num_heads": st.integers(1, 5),
        "num_layers": st.integers(1, 5),
        "num_decoder_layers": st.integers(1, 5),
        "feed_forward_proj": st.sampled_from(["relu", "gated-gelu"]),
        "tie_word_embeddings": st.booleans(),
    },
    "gpt2": {
        "vocab_size": st.integers(20, 40),
        "n_positions": st.integers(5, 20),
        "n_embd": st.sampled_from([6, 12, 24]),
        "n_head": st.sampled_from([1, 2, 3]),
        "n_inner": st.integers(1, 60),
        "n_layer": st.integers(1, 5),
        "tie_word_embeddings": st.booleans(),
    },
}


def a_model(family: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    if family == "t5":
        return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **SIZES["t5"] | settings)).eval()
    return GPT2LMHeadModel(GPT2Config(**SIZES["gpt2"] | settings)).eval()


def logits(model: Any, length: int = 5) -> Tensor:
    ids = torch.arange(2 * length).view(2, length) % 20
    return model(ids, decoder_input_ids=ids) if isinstance(model, T5ForConditionalGeneration) else model(ids)


def drawn(family: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(family), st.fixed_dictionaries({}, optional=CHANGES[family]))


@settings(deadline=None, max_examples=40)
@given(st.one_of(drawn("t5"), drawn("gpt2")))
def test_each_parameter_has_one_correct_origin(drawn: tuple[str, dict[str, Any]]) -> None:
    family, changes = drawn
    old = a_model(family)
    for number, weight in enumerate(old.parameters(), start=1):
        weight.data.fill_(100 * number)  # unlike any random number
    torch.manual_seed(2)
    new, resized = resize(old, changes)
    torch.manual_seed(2)
    random = model_from_config(new.config.to_dict()).state_dict()

    modules = [(origin, name) for origin, ranges in resized.parameters.items() for name in expand(ranges)]
    before, after = old.state_dict(), dict(new.named_parameters())
    for name in dict(old.named_parameters()).keys() | after.keys():
        [origin] = [origin for origin, module in modules if module == "everything" or is_in(name, module)]
        assert (origin == "left out") == (name not in after)
        assert (origin == "new") == (name not in before)
        if name in after:
            loaded = after[name] >= 100
            assert torch.equal(after[name][~loaded], random[name][~loaded])
            assert loaded.all() == (origin in ("loaded", "cut")) and loaded.any() == (origin != "new")
            assert (origin == "loaded") <= torch.equal(after[name], before.get(name, after[name]))


def expand(ranges: list[str]) -> Iterator[str]:
    return chain.from_iterable(map(expand_ranges, ranges))


def is_in(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


@pytest.mark.parametrize("family", SIZES)
def test_the_same_sizes_are_the_same_model(family: str) -> None:
    old = a_model(family)
    new, resized = resize(old, SIZES[family])
    assert torch.equal(logits(new.eval()), logits(old))
    assert resized.keys == {} and resized.parameters == {"loaded": ["everything"]}


@pytest.mark.parametrize("family", SIZES)
def test_fewer_blocks_are_the_first_ones(family: str) -> None:
    old = a_model(family)
    new, resized = resize(old, {"num_layers": 2} if family == "t5" else {"n_layer": 2})
    stacks = [old.encoder.block, old.decoder.block] if family == "t5" else [old.transformer.h]
    for stack in stacks:
        del stack[2:]
    assert torch.equal(logits(new.eval()), logits(old))
    left_out = ["encoder.block.2", "decoder.block.2"] if family == "t5" else ["transformer.h.2"]
    assert resized.parameters["left out"] == left_out


def test_the_decoder_depth_follows_the_encoder_by_default() -> None:
    for also, layers in (({}, (2, 2)), ({"num_decoder_layers": 4}, (2, 4))):
        new, _ = resize(a_model("t5"), {"num_layers": 2} | also)
        assert (len(new.encoder.block), len(new.decoder.block)) == layers


def test_fewer_heads_are_whole_heads() -> None:
    """Equal to the old model with the last head's output masked."""
    old = a_model("t5")
    new, _ = resize(old, {"num_heads": 2})
    with torch.no_grad():
        for name, weight in old.named_parameters():
            if name.endswith(".o.weight"):
                weight[:, 2 * 4 :] = 0
    torch.testing.assert_close(logits(new.eval()), logits(old))


@pytest.mark.parametrize("family", SIZES)
def test_fewer_neurons_are_the_first_ones(family: str) -> None:
    """Equal to the old model with the other neurons masked."""
    old = a_model(family)
    new, _ = resize(old, {"d_ff": 9} if family == "t5" else {"n_inner": 9})
    with torch.no_grad():
        for name, weight in old.named_parameters():
            if name.endswith(".wo.weight"):
                weight[:, 9:] = 0
            elif name.endswith("mlp.c_proj.weight"):
                weight[9:] = 0
    torch.testing.assert_close(logits(new.eval()), logits(old))


@pytest.mark.parametrize("positions", [6, 30])
def test_positions_are_cut_or_appended(positions: int) -> None:
    old = a_model("gpt2")
    new, resized = resize(old, {"n_positions": positions})
    assert torch.equal(logits(new.eval()), logits(old))
    assert resized.parameters["cut" if positions < 10 else "grown"] == ["transformer.wpe"]


def test_gpt2s_fused_qkv_is_cut_per_projection() -> None:
    old = a_model("gpt2")
    new, _ = resize(old, {"n_embd": 6})  # heads of 2 instead of 4
    for wanted, got in zip(
        old.transformer.h[0].attn.c_attn.weight.chunk(3, dim=1),
        new.transformer.h[0].attn.c_attn.weight.chunk(3, dim=1),
        strict=True,
    ):
        assert torch.equal(got, torch.cat([wanted[:6, 4 * head : 4 * head + 2] for head in range(3)], dim=1))


@pytest.mark.parametrize("family", SIZES)
def test_an_untied_head_starts_as_the_embedding(family: str) -> None:
    old = a_model(family)
    new, resized = resize(old, {"tie_word_embeddings": False})
    assert torch.equal(logits(new.eval()), logits(old))
    assert resized.keys == {"tie_word_embeddings": (True, False)}
    assert len(list(new.parameters())) == len(list(old.parameters())) + 1


def test_without_weights_everything_is_new() -> None:
    _, resized = resize(a_model("t5"), {"d_model": 8}, keep_weights=False)
    assert resized.parameters == {"new": ["everything"]}


# --- the options


def changes(family: str, **options: Any) -> dict[str, Any]:
    return config_changes(TrainOptions(**options), a_model(family).config)


@pytest.mark.parametrize(
    ("family", "options", "wanted"),
    [
        ("t5", {}, {}),
        ("t5", {"num_layers": 2, "set": ["d_kv=8"]}, {"num_layers": 2, "d_kv": 8}),
        ("t5", {"set": ["num_hidden_layers=2"]}, {"num_layers": 2}),
        ("t5", {"set": ["feed_forward_proj=gated-gelu"]}, {"feed_forward_proj": "gated-gelu"}),
        ("t5", {"set": ["tie_word_embeddings=false"]}, {"tie_word_embeddings": False}),
        ("gpt2", {"num_layers": 2, "d_model": 8}, {"n_layer": 2, "n_embd": 8}),
        ("gpt2", {"num_heads": 4, "d_ff": 9}, {"n_head": 4, "n_inner": 9}),
        ("gpt2", {"set": ["n_positions=64", "attn_pdrop=0.5"]}, {"n_positions": 64, "attn_pdrop": 0.5}),
    ],
)
def test_options_are_keys_of_config_json(
    family: str, options: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert changes(family, **options) == wanted


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gpt2", {"d_kv": 8}, "`d_kv`: gpt2 has no 'd_kv'"),
        ("t5", {"set": ["n_layer=2"]}, "`set` n_layer=2: t5 has no 'n_layer', did you mean 'num_layers'?"),
        ("t5", {"num_layers": 2, "set": ["num_layers=3"]}, "`set` num_layers=3 contradicts another option"),
        ("gpt2", {"num_layers": 2, "set": ["n_layer=3"]}, "which sets n_layer to 2"),
    ],
)
def test_wrong_changes_are_refused(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        changes(family, **options)
    assert message in str(refusal.value)


# --- in a run


def run(tmp_path: Path, family: str, *options: str) -> dict[str, Tensor]:
    {"t5": tiny_runs.tiny_t5, "gpt2": tiny_runs.tiny_gpt2}[family](tmp_path / "model")
    return train(tmp_path, *options)


def train(tmp_path: Path, *options: str) -> dict[str, Tensor]:
    data = tiny_runs.questions(tmp_path / "train.jsonl", 8)
    command = f"--model {tmp_path / 'model'} --train {data} --output {tmp_path / 'run'} --max-steps 1 --lr 0"
    ftcore.train.main([*command.split(), "--max-target-length", "20", "--eval-answers", "2", *options])
    return load_file(tmp_path / "run" / "last" / "model.safetensors")


def test_a_run_prints_its_changes_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = run(tmp_path, "gpt2", "--num-layers", "2", "--set", "n_positions=100")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("changed    n_positions 128 -> 100, n_layer 1 -> 2")
    assert lines[start + 1 : start + 4] == [
        "  loaded   transformer.wte, transformer.h.0, transformer.ln_f",
        "  cut      transformer.wpe",
        "  new      transformer.h.1",
    ]
    old = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(weights["transformer.wpe.weight"], old["transformer.wpe.weight"][:100])
    ftcore.train.main(["--output", str(tmp_path / "run"), "--resume"])
    assert "changed" not in capsys.readouterr().out


def test_a_run_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = run(tmp_path, "t5", "--from-scratch", "--d-model", "8")
    assert "  new      everything" in capsys.readouterr().out
    assert weights["shared.weight"].shape == (384, 8)


@pytest.mark.parametrize("options", [[], ["--from-scratch"], ["--num-layers", "2"]])
def test_rows_for_added_tokens(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The tokenizer is compared with the model after --set."""
    tiny_runs.tiny_gpt2(tmp_path / "model")
    vocabulary = tmp_path / "model" / "vocab.json"
    ids = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps(ids | {"added": len(ids)}))
    with pytest.raises(SystemExit):
        train(tmp_path, *options)
    assert "the tokenizer has 258 ids, but the embedding only 257 rows" in capsys.readouterr().err
    weights = train(tmp_path, "--set", "vocab_size=258", *options)
    assert weights["transformer.wte.weight"].shape == (258, 16)


def test_a_large_model_can_be_made_small(tmp_path: Path) -> None:
    """From scratch, only the changed model is built."""
    config = tiny_runs.tiny_gpt2(tmp_path / "model") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_embd": 2**20, "n_layer": 100}))
    small = ["--d-model", "8", "--num-layers", "2"]
    with pytest.raises(SystemExit):
        train(tmp_path, "--from-scratch")
    assert train(tmp_path, "--from-scratch", *small)["transformer.wte.weight"].shape == (257, 8)


def test_the_start_token_follows_a_changed_pad_token(tmp_path: Path) -> None:
    config = tiny_runs.tiny_t5(tmp_path / "model") / "config.json"
    values = json.loads(config.read_text()) | {"pad_token_id": None, "decoder_start_token_id": None}
    config.write_text(json.dumps(values))
    options = TrainOptions(model=str(tmp_path / "model"), set=["pad_token_id=0"])
    model, _, _ = make_model(str(tmp_path / "model"), options, torch.device("cpu"))
    assert model.config.decoder_start_token_id == 0


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("t5", ["--num-layers", "0"], "--num-layers is 0, expected at least 1"),
        ("t5", ["--set", "d_model"], "--set d_model: expected KEY=VALUE"),
        (
            "t5",
            ["--set", "d_model=wide"],
            "the changed config.json: d_model is 'wide', expected a whole number",
        ),
        (
            "t5",
            ["--set", "num_layers=10000000"],
            "the changed config.json: num_layers is 10000000, expected 1",
        ),
        ("t5", ["--d-model", "1000000000000"], "the changed config.json: d_model is 1000000000000, expected"),
        ("t5", ["--set", "d_model=" + "[" * 10**5], "the changed config.json: d_model is '[[[[[[["),
        ("t5", ["--set", "dropout_rate=NaN"], "the changed config.json: dropout_rate is 'NaN', expected"),
        ("t5", ["--set", "vocab_size=300"], "the tokenizer has 384 ids, but the embedding only 300 rows"),
        (
            "gpt2",
            ["--d-model", "9"],
            "the changed config.json: n_embd is 9, which 2 heads (n_head) do not divide",
        ),
    ],
)
def test_impossible_sizes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, family: str, options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, family, *options)
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
