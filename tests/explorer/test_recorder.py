"""The recording equals what the model computes: attention, next tokens, logit lens and norms of every run."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from ftcore import load_model, load_tokenizer
from ftcore.decoding import generate
from ftcore.explorer.recorder import (
    TEMPERATURES,
    Search,
    decoder_logits,
    describe,
    max_text_tokens,
    record_text,
    source_ids,
    stacks,
)
from ftcore.explorer.serialize import to_json
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.study import logit_lens, patch, record
from ftcore.study.names import short_names
from tests.helpers.packed_arrays import dequantize_attention, unpack

SEARCH = Search(max_new_tokens=6, num_beams=3, temperature=0.7, top_k=20, seed=3)


@pytest.fixture(scope="module")
def recording(family):
    """Through JSON, as the page reads it."""
    return json.loads(to_json(record_text(family.model, family.tokenizer, family.text, SEARCH)))


@pytest.fixture(scope="module", params=["greedy", "sampling", "beams"])
def run(request, recording):
    (run,) = [run for run in recording["runs"] if run["name"] == request.param]
    return run


@pytest.fixture
def activations(family, recording, run):
    """Logits and all named activations of one pass over the run's tokens."""
    source, read = torch.tensor(recording["source"]), torch.tensor(run["ids"][:-1])
    with torch.no_grad(), record(family.model, *short_names(family.model)) as acts:
        logits = decoder_logits(family.model, source, read)
    return {"logits": logits, **{name: tensor[0] for name, tensor in acts.items()}}


def test_answers_equal_generate(family, recording):
    source = torch.tensor(recording["source"])
    assert source.tolist() == [family.tokenizer.encode(family.text)]
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20}
    sampling["generator"] = torch.Generator().manual_seed(3)
    for run, arguments in zip(recording["runs"], ({}, sampling, {"num_beams": 3}), strict=True):
        assert run["ids"] == generate(family.model, source, max_new_tokens=6, **arguments)[0].tolist()


def test_attention_is_within_one_quantization_level(run, activations):
    for name, array in run["attention"].items():
        expected = activations[name][:, run["start"] :]
        assert array["shape"] == list(expected.shape), name
        error = (dequantize_attention(unpack(array)) - expected).abs().max()
        assert error < expected.sqrt().max() / 255 + 1e-5, name
    assert {name.rpartition(".")[0] for name in run["attention"]} in (
        {"pattern"},
        {"decoder.pattern", "cross.pattern"},
    )


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_gpt2_has_no_encoder_recording(recording):
    assert recording["encoder"] is None


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_encoder_attention_is_recorded_once(family, recording):
    with torch.no_grad(), record(family.model, "encoder.pattern.*") as acts:
        family.model.encode(torch.tensor(recording["source"]))
    assert list(recording["encoder"]["attention"]) == list(acts)
    for name, expected in acts.items():
        found = dequantize_attention(unpack(recording["encoder"]["attention"][name]))
        assert (found - expected[0]).abs().max() < 1 / 255


def test_probabilities_are_exact_at_every_temperature(run, activations):
    logits = activations["logits"][run["start"] :]
    recorded = {name: unpack(array) for name, array in run["next"].items()}
    ids, top = recorded["ids"].long(), recorded["logits"]
    for i, temperature in enumerate(TEMPERATURES):
        expected = (logits / temperature).softmax(-1).gather(1, ids)
        found = (top / temperature - recorded["log_sums"][:, i : i + 1]).exp()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_chosen_tokens_rank_and_logit_are_recorded(run, activations):
    logits = activations["logits"][run["start"] :]
    chosen = torch.tensor(run["ids"][run["start"] + 1 :])
    recorded = {name: unpack(array) for name, array in run["next"].items()}
    for position, token in enumerate(chosen.tolist()):
        torch.testing.assert_close(recorded["chosen_logit"][position], logits[position, token])
        order = logits[position].argsort(descending=True, stable=True)
        assert order[recorded["chosen_rank"][position]] == token


def test_the_lens_equals_logit_lens(family, recording, run):
    source, read = torch.tensor(recording["source"]), torch.tensor([run["ids"][:-1]])
    inputs = (read, None, None) if family.name == "gpt2" else (source, None, read)
    expected = logit_lens(family.model, *inputs)[:, 0, run["start"] :].softmax(-1)  # (L, T, V)
    ids, probs = unpack(run["lens"]["ids"]).long(), unpack(run["lens"]["probs"])
    torch.testing.assert_close(probs, expected.gather(2, ids), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(probs[..., 0], expected.amax(-1), rtol=1e-4, atol=1e-6)


def test_the_lens_equals_the_model_with_its_last_residual_stream_replaced(
    family, recording, run, activations
):
    """The definition of the lens, which runs the whole model once for each block."""
    source, read = torch.tensor(recording["source"]), torch.tensor(run["ids"][:-1])
    names = [block[-1].residual for block in stacks(family.model)[-1].blocks]
    ids, probs = unpack(run["lens"]["ids"]).long(), unpack(run["lens"]["probs"])
    for block, name in enumerate(names):
        with torch.no_grad(), patch(family.model, names[-1], activations[name][None]):
            expected = decoder_logits(family.model, source, read)[run["start"] :].softmax(-1).topk(5)
        torch.testing.assert_close(probs[block], expected.values)
        assert torch.equal(ids[block], expected.indices)


def test_norms_of_outputs_residuals_and_heads(family, run, activations):
    start = run["start"]
    for name, array in (run["output_norms"] | run["residual_norms"]).items():
        torch.testing.assert_close(unpack(array), activations[name][start:].norm(dim=-1), msg=name)
    # A head alone: the projection of its z, without the bias.
    pattern = next(iter(run["head_norms"]))
    z = pattern.replace("pattern", "z")
    project = family.model.get_submodule(
        "transformer.h.0.attn.c_proj" if family.name == "gpt2" else "decoder.block.0.layer.0.SelfAttention.o"
    )
    mixed = activations[z][start:]
    width = mixed.shape[-1] // 2
    with torch.no_grad():
        for head in range(2):
            alone = torch.zeros_like(mixed)
            alone[:, head * width : (head + 1) * width] = mixed[:, head * width : (head + 1) * width]
            expected = (project(alone) - project(torch.zeros_like(mixed))).norm(dim=-1)
            torch.testing.assert_close(unpack(run["head_norms"][pattern])[head], expected)


def test_a_shared_prompt_is_recorded_once(family, recording):
    starts = [run["start"] for run in recording["runs"]]
    prompt = len(family.tokenizer.encode(family.text))
    assert starts == ([0, prompt - 1, prompt - 1] if family.name == "gpt2" else [0, 0, 0])
    for run in recording["runs"]:
        assert unpack(run["next"]["ids"]).shape[0] == len(run["ids"]) - 1 - run["start"]


def test_every_token_has_a_text(family, recording):
    known = recording["pieces"]
    for run in recording["runs"]:
        for token in {*run["ids"], *unpack(run["next"]["ids"]).flatten().tolist()}:
            assert known[str(token)]
    assert all(str(candidate["token"]) in known for step in recording["beams"] for candidate in step)
    assert "".join(known[str(token)] for token in family.tokenizer.encode(family.text)[:3]) == family.text[:3]


def test_the_described_activations_exist(family, activations):
    described = describe(family.model, "name")
    parts = [part for stack in described["stacks"] for block in stack["blocks"] for part in block]
    for part in parts:
        for name in filter(None, (part["output"], part["residual"], part["pattern"], part["z"])):
            assert name in activations
    assert described["parameters"] == sum(parameter.numel() for parameter in family.model.parameters())
    assert len(parts) == (4 if family.name == "gpt2" else 13)


def test_no_hooks_remain(family):
    record_text(family.model, family.tokenizer, family.text, SEARCH)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family.model.modules())


def test_a_too_long_text_is_refused_before_the_model_runs(family):
    limit = max_text_tokens(family.model)
    expected = limit - 6 if family.name == "gpt2" else limit
    with pytest.raises(ValueError, match=f"the text has .* tokens, expected at most {expected}"):
        source_ids(family.model, family.tokenizer, "x" * (limit + 1), 6)


def test_gpt2_refuses_an_empty_text(gpt2_directory):
    with pytest.raises(ValueError, match="empty"):
        record_text(load_model(gpt2_directory), load_tokenizer(gpt2_directory), "", SEARCH)


def test_gpt2_small_fits_with_all_positions():
    with torch.device("meta"):
        assert max_text_tokens(GPT2LMHeadModel(GPT2Config())) == 1024


def test_a_search_of_numpy_numbers_is_plain():
    search = Search(np.int64(6), np.int32(3), np.float64(0.75), np.uint8(20), np.int64(3))
    assert json.loads(json.dumps(asdict(search))) == asdict(Search(6, 3, 0.75, 20, 3))
    assert Search(temperature=np.float32(0.5)) == Search(temperature=0.5)
