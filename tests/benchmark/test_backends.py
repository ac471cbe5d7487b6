"""The sides are given the same weights and inputs, and do the same work with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers  # noqa: F401  # one of the sides
from torch.testing import assert_close

from ftcore import load_model
from ftcore.benchmark import side_ftcore, side_transformers, stage, worker
from ftcore.benchmark.cases import GPT2_CASES, ROWS, T5_CASES, Case
from ftcore.benchmark.order import Order
from ftcore.benchmark.shapes import SHAPES
from ftcore.benchmark.inputs import read_batches, read_prompts, stage_batches, stage_model, stage_prompts
from ftcore.checkpoints.checkpoint import model_from_config

ROOT = Path(__file__).parents[2]
VOCABULARY = 1600  # the tokenizers in weights/ have fewer ids
TINY = {
    "gpt2": {"model_type": "gpt2", "n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
SIDES = {"ftcore": side_ftcore, "transformers": side_transformers}


@pytest.fixture(params=TINY)
def order(request, tmp_path, monkeypatch) -> Order:
    """Of a tiny model without special weights, staged like a published shape."""
    monkeypatch.setitem(SHAPES, "tiny", TINY[request.param] | {"vocab_size": VOCABULARY})
    stage_model("tiny", tmp_path / "model")
    return Order(
        side="",
        case=Case("", "generate"),
        directory=str(tmp_path / "model"),
        inputs=str(tmp_path / "inputs"),
        dtype="fp32",
        device="cpu",
        threads=1,
    )


def for_side(order: Order, side: str, case: Case, **more: str) -> Order:
    return Order(**(vars(order) | {"side": side, "case": case} | more))


def run(order: Order, rounds: int = 1) -> list[dict]:
    """What the side's process would say, in this one."""
    return list(worker.answers(order, range(rounds)))


def test_both_load_the_same_weights(order):
    ours, theirs = (SIDES[side].load(for_side(order, side, Case("load", "load"))) for side in SIDES)
    for name, weight in ours.named_parameters():
        assert_close(dict(theirs.named_parameters())[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_both_write_as_many_tokens_as_asked_and_the_same(order, beams):
    case = Case("", "generate", rows=2, beams=beams, source=9, target=6)
    stage_prompts(case, VOCABULARY, Path(order.inputs))
    said = {side: run(for_side(order, side, case), rounds=2) for side in SIDES}
    for messages in said.values():
        begin, first, second, end = messages
        assert begin["ready"] and begin["version"]
        assert first["result"] == second["result"]
        assert [len(row) for row in first["result"]] == [6, 6]
        assert first["seconds"] > 0 and end["peak_bytes"] > 10**7
    assert said["ftcore"][1]["result"] == said["transformers"][1]["result"]


@pytest.mark.parametrize("padded", [(), ("transformers",)])
def test_both_train_on_the_same_examples_to_the_same_loss(order, padded):
    model = load_model(order.directory)
    is_t5 = model.config.is_encoder_decoder
    case = Case(
        "", "train", rows=3, source=200, target=40, steps=3, padded=padded, learning_rate=1e-5, plain=True
    )
    files = stage.training_files(decoder_only=not is_t5, train=None, tokenizer=None)
    stage_batches(case, files, model, Path(order.directory), Path(order.inputs))
    tight, wide = (read_batches(Path(order.inputs), padded=which) for which in (False, True))
    assert [batch["index"].tolist() for batch in tight] == [batch["index"].tolist() for batch in wide]
    assert {batch["labels"].shape[1] for batch in wide} == {40}
    widths = [batch["input_ids"].shape[1] for batch in tight]
    assert widths == sorted(widths) and widths[-1] < wide[0]["input_ids"].shape[1]

    more = {"task": files.task, "train": str(files.train)}
    losses = {side: run(for_side(order, side, case, **more), rounds=2)[1:3] for side in SIDES}
    for ours, theirs in zip(losses["ftcore"], losses["transformers"], strict=True):
        assert len(ours["result"]) == case.steps
        assert ours["result"] == pytest.approx(theirs["result"], abs=1e-4)
    assert losses["ftcore"][0]["result"] != losses["ftcore"][1]["result"]  # it does learn


def test_both_train_with_the_dropout_of_the_order(order):
    model = load_model(order.directory)
    case = Case("", "train", rows=3, source=200, target=40, steps=1, learning_rate=1e-5)
    files = stage.training_files(decoder_only=not model.config.is_encoder_decoder, train=None, tokenizer=None)
    stage_batches(case, files, model, Path(order.directory), Path(order.inputs))
    more = {"task": files.task, "train": str(files.train)}
    for side in SIDES:
        without = for_side(order, side, case, **more)
        losses = [run(one)[1]["result"] for one in (without, replace(without, dropout=0.1))]
        assert losses[0] != losses[1]


def test_loading_and_making_ready(order):
    for side in SIDES:
        for kind in ("load", "ready"):
            messages = run(for_side(order, side, Case(kind, kind)))
            assert messages[1]["seconds"] > 0 and messages[1]["result"] is None


def test_what_a_side_cannot_do_is_said_before_anything_is_loaded(order):
    nowhere = for_side(order, "ftcore", Case("train", "train"), dtype="int8", directory="nowhere")
    assert run(nowhere) == [{"cannot": side_ftcore.cannot(nowhere), "version": side_ftcore.version}]


def test_ctranslate2_writes_as_many_tokens_and_the_same(order):
    pytest.importorskip("ctranslate2")
    case = Case("", "generate", rows=2, source=9, target=6)
    stage_prompts(case, VOCABULARY, Path(order.inputs))
    assert run(for_side(order, "ctranslate2", Case("", "convert"))) == [
        run(for_side(order, "ctranslate2", case))[0]
    ]
    results = [run(for_side(order, side, case))[1]["result"] for side in ("ctranslate2", "ftcore")]
    assert results[0] == results[1]


# What is staged


def test_prompts_are_ids_of_the_vocabulary_and_always_the_same(tmp_path):
    case = Case("", "generate", rows=3, source=200)
    for file in (tmp_path / "one", tmp_path / "two"):
        stage_prompts(case, 40, file)
    ids = read_prompts(tmp_path / "one")
    assert ids.shape == (3, 200) and ids.min() == 5 and ids.max() == 39
    assert torch.equal(ids, read_prompts(tmp_path / "two"))


def test_a_staged_directory_has_no_dropout_and_no_settings_of_generation(tmp_path):
    model = model_from_config(TINY["t5"] | {"vocab_size": 40, "dropout_rate": 0.3})
    model.generation_config = {"num_beams": 7}
    model.save_pretrained(tmp_path / "original")
    staged = stage_model(str(tmp_path / "original"), tmp_path / "staged")
    config = json.loads((tmp_path / "staged" / "config.json").read_text(encoding="utf-8"))
    assert config["dropout_rate"] == 0 and config["decoder_start_token_id"] == 0
    assert not (tmp_path / "staged" / "generation_config.json").exists()
    for name, weight in staged.state_dict().items():
        assert_close(weight, model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_configuration(name):
    with torch.device("meta"):
        model = model_from_config(SHAPES[name])
    millions = sum(parameter.numel() for parameter in model.parameters()) // 10**6
    published = {"gpt2": 124, "gpt2-medium": 354, "gpt2-large": 774, "gpt2-xl": 1557, "t5-small": 60}
    published |= {"t5-base": 222, "t5-large": 737, "t5-3b": 2851, "flan-t5-small": 76}
    published |= {"flan-t5-base": 247, "flan-t5-large": 783, "flan-t5-xl": 2849}
    assert millions == published[name]


def test_both_families_have_the_same_rows():
    assert [case.name for case in GPT2_CASES] == [case.name for case in T5_CASES] == ROWS
    for case in (*GPT2_CASES, *T5_CASES):
        short = case.short().fitted(64)
        assert short.source + short.target <= 64
        assert (short.kind, short.rows, short.beams) == (case.kind, case.rows, case.beams)


def test_too_few_examples(order, tmp_path):
    model = load_model(order.directory)
    is_t5 = model.config.is_encoder_decoder
    rows = '{"question": "q", "context": "c", "answers": ["c"]}\n' if is_t5 else "i feel well;joy\n"
    file = tmp_path / ("few.jsonl" if is_t5 else "few.txt")
    file.write_text(rows, encoding="utf-8")
    files = stage.training_files(decoder_only=not is_t5, train=str(file), tokenizer=None)
    with pytest.raises(ValueError, match=r"few.*: 1 examples, expected 2 batches of 4 at least"):
        stage_batches(
            Case("", "train", rows=4, source=40, target=12, steps=2),
            files,
            model,
            tmp_path,
            Path(order.inputs),
        )
