"""The files that all backends read, and the cases."""

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ftcore.benchmark.cases import GPT2_CASES, ROWS, SHAPES, T5_CASES, Case
from ftcore.benchmark.inputs import training_data, write_batches, write_model
from ftcore.benchmark.worker import random_prompts
from ftcore.checkpoints.checkpoint import load_model, model_from_config
from ftcore.decoding.arguments import Arguments, arguments_for

TINY = {
    "gpt2": {"model_type": "gpt2", "n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}


def test_prompts_are_ids_of_the_vocabulary_and_reproducible():
    case = Case("", "generate", rows=3, source=200)
    ids = random_prompts(case, 40)
    assert ids.shape == (3, 200) and ids.min() == 5 and ids.max() == 39
    assert torch.equal(ids, random_prompts(case, 40))


def test_a_written_checkpoint_has_neither_dropout_nor_generation_settings(tmp_path):
    old = {"repetition_penalty": 2.0, "do_sample": True}  # as old checkpoints have them
    model = model_from_config(TINY["t5"] | {"vocab_size": 40, "dropout_rate": 0.3} | old)
    model.generation_config = {"num_beams": 7}
    model.save_pretrained(tmp_path / "original")
    written = write_model(str(tmp_path / "original"), tmp_path / "written")
    config = json.loads((tmp_path / "written" / "config.json").read_text(encoding="utf-8"))
    assert config["dropout_rate"] == 0 and config["decoder_start_token_id"] == 0
    assert not (tmp_path / "written" / "generation_config.json").exists()
    loaded = load_model(tmp_path / "written")
    assert replace(arguments_for(loaded, {}), origin={}) == Arguments(
        eos_token_id=1, pad_token_id=0, decoder_start_token_id=0
    )
    for name, weight in written.state_dict().items():
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
        short = case.quick().fit(64)
        assert short.source + short.target <= 64
        rows = 2 if case.random else case.rows
        assert (short.kind, short.rows, short.beams) == (case.kind, rows, case.beams)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_too_few_examples(family, tmp_path):
    vocabulary = {"vocab_size": 1600, "decoder_start_token_id": 0} if family == "t5" else {"vocab_size": 1600}
    model = model_from_config(TINY[family] | vocabulary)
    rows = '{"question": "q", "context": "c", "answers": ["c"]}\n' if family == "t5" else "i feel well;joy\n"
    file = tmp_path / ("few.jsonl" if family == "t5" else "few.txt")
    file.write_text(rows, encoding="utf-8")
    data = training_data(model, train=str(file), tokenizer=None)
    case = Case("", "train", rows=4, source=40, target=12, steps=2)
    with pytest.raises(ValueError, match=r"few.*: 1 examples, expected 2 batches of 4 at least"):
        write_batches(case, *data, model, tmp_path, tmp_path / "inputs")
