"""The page points at the lines that compute each step, in the files that ran."""

from pathlib import Path

import pytest

from ftcore import models
from ftcore.explorer.source import find_lines, sizes, source_lines, steps_of
from ftcore.models import GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.models.attention import attend
from tests.helpers.tiny_models import tiny

MODELS = {
    "gpt2": tiny("gpt2"),
    "gated t5": tiny("t5", feed_forward_proj="gated-gelu"),
    "plain t5": tiny("t5", feed_forward_proj="relu"),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def test_every_text_occurs_once_in_its_function(model):
    """A change of the model's code that removes a line fails here; on the page the mark would be missing."""
    for prefix, steps in steps_of(model).items():
        for step, passages in steps.items():
            for function, texts in passages:
                for text in texts:
                    marked = find_lines(function, [text])
                    assert marked, f"{prefix} {step}: {function.__qualname__} has no single line {text!r}"


def test_lines_and_their_numbers_are_those_of_the_files(model):
    recorded = source_lines(model)
    folder = Path(models.__file__).parent
    for function in recorded["functions"]:
        first = function["first"] - 1
        lines = (folder / function["file"]).read_text(encoding="utf-8").splitlines()
        assert function["lines"] == lines[first : first + len(function["lines"])]
        assert function["lines"][-1].strip()


def test_the_marked_lines_have_the_texts(model):
    recorded, passages = source_lines(model), steps_of(model)
    for prefix, steps in recorded["steps"].items():
        for step, parts in steps.items():
            for (index, marked), (_, texts) in zip(parts, passages[prefix][step], strict=True):
                code = [recorded["functions"][index]["lines"][line] for line in marked]
                assert all(any(text in line for line in code) for text in texts)


def test_steps_of_each_family(model):
    both = {
        "input",
        "norm_attn",
        "norm_mlp",
        "norm_final",
        "qkv",
        "product",
        "scale",
        "mask",
        "softmax",
        "mix",
    }
    both |= {"write", "neurons", "write_mlp"}
    if isinstance(model, GPT2LMHeadModel):
        assert {prefix: set(steps) for prefix, steps in steps_of(model).items()} == {"": both}
    else:
        assert {prefix: set(steps) for prefix, steps in steps_of(model).items()} == dict.fromkeys(
            ("encoder", "decoder", "cross"), both | {"bias"}
        )


def two_lines(first: int, second: int) -> list[int]:
    total = max(
        first,
        second,
    )
    return [total]  # once


def test_a_statement_is_marked_whole_and_an_ambiguous_text_not_at_all():
    assert find_lines(two_lines, ["total = max("]) == [1, 2, 3, 4]
    assert find_lines(two_lines, ["return [total]"]) == [5]
    assert find_lines(two_lines, ["total"]) == []
    assert find_lines(attend, ["no such text"]) == []


def test_sizes():
    config = {"vocab_size": 9, "d_model": 8, "d_kv": 3, "d_ff": 7, "num_heads": 2, "num_layers": 1}
    assert sizes(T5ForConditionalGeneration(T5Config(**config))) == {"D": 8, "H": 2, "K": 3, "F": 7, "V": 9}
    assert sizes(tiny("gpt2", n_inner=10)) | {"V": 0} == {"D": 24, "H": 3, "K": 8, "F": 10, "V": 0}
