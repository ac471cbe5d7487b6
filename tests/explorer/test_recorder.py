"""What is recorded is what the model computes: attention, next tokens, lens and sizes, of every run."""

import json

import pytest
import torch

from ftcore import load_model, load_tokenizer
from ftcore.decoding import generate
from ftcore.explorer.page import as_json
from ftcore.explorer.recorder import (
    TEMPERATURES,
    Search,
    describe,
    logits_of,
    most_tokens,
    record_text,
    source_ids,
)
from ftcore.explorer.serialize import restored, unpacked
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.study import logit_lens, record
from ftcore.study.names import short_names

SEARCH = Search(max_new_tokens=6, num_beams=3, temperature=0.7, top_k=20, seed=3)


@pytest.fixture(scope="module")
def recording(family):
    """As the page reads it: through JSON."""
    return json.loads(as_json(record_text(family.model, family.tokenizer, family.text, SEARCH)))


@pytest.fixture(scope="module", params=["greedy", "sampling", "beams"])
def run(request, recording):
    (found,) = [run for run in recording["runs"] if run["name"] == request.param]
    return found


@pytest.fixture
def activations(family, recording, run):
    """Everything, of one pass over the run's tokens."""
    source, read = torch.tensor(recording["source"]), torch.tensor(run["ids"][:-1])
    with torch.no_grad(), record(family.model, *short_names(family.model)) as acts:
        logits = logits_of(family.model, source, read)
    return {"logits": logits, **{name: tensor[0] for name, tensor in acts.items()}}


def test_the_answers_are_those_of_generate(family, recording):
    source = torch.tensor(recording["source"])
    assert source.tolist() == [family.tokenizer.encode(family.text)]
    drawing = {"do_sample": True, "temperature": 0.7, "top_k": 20}
    drawing["generator"] = torch.Generator().manual_seed(3)
    for run, arguments in zip(recording["runs"], ({}, drawing, {"num_beams": 3}), strict=True):
        assert run["ids"] == generate(family.model, source, max_new_tokens=6, **arguments)[0].tolist()


def test_attention_is_the_models_to_a_level(run, activations):
    for name, array in run["attention"].items():
        expected = activations[name][:, run["start"] :]
        assert array["shape"] == list(expected.shape), name
        assert (restored(unpacked(array)) - expected).abs().max() < expected.sqrt().max() / 255 + 1e-5, name
    assert {name.rpartition(".")[0] for name in run["attention"]} in (
        {"pattern"},
        {"decoder.pattern", "cross.pattern"},
    )


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_where_there_is_no_encoder_none_is_recorded(recording):
    assert recording["encoder"] is None


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_the_encoders_attention_is_there_once(family, recording):
    with torch.no_grad(), record(family.model, "encoder.pattern.*") as acts:
        family.model.encode(torch.tensor(recording["source"]))
    assert list(recording["encoder"]["attention"]) == list(acts)
    for name, expected in acts.items():
        found = restored(unpacked(recording["encoder"]["attention"][name]))
        assert (found - expected[0]).abs().max() < 1 / 255


def test_probabilities_are_exact_at_every_setting_of_the_sliders(run, activations):
    logits = activations["logits"][run["start"] :]
    recorded = {name: unpacked(array) for name, array in run["next"].items()}
    ids, top = recorded["ids"].long(), recorded["logits"]
    for place, temperature in enumerate(TEMPERATURES):
        everything = (logits / temperature).softmax(-1).gather(1, ids)
        found = (top / temperature - recorded["log_sums"][:, place : place + 1]).exp()
        torch.testing.assert_close(found, everything, rtol=1e-4, atol=1e-7)


def test_the_written_tokens_rank_and_logit_are_recorded(run, activations):
    logits = activations["logits"][run["start"] :]
    chosen = torch.tensor(run["ids"][run["start"] + 1 :])
    recorded = {name: unpacked(array) for name, array in run["next"].items()}
    for position, token in enumerate(chosen.tolist()):
        torch.testing.assert_close(recorded["chosen_logit"][position], logits[position, token])
        order = logits[position].argsort(descending=True, stable=True)
        assert order[recorded["chosen_rank"][position]] == token


def test_the_lens_is_logit_lens(family, recording, run):
    source, read = torch.tensor(recording["source"]), torch.tensor([run["ids"][:-1]])
    inputs = (read, None, None) if family.name == "gpt2" else (source, None, read)
    expected = logit_lens(family.model, *inputs)[:, 0, run["start"] :].softmax(-1)  # (L, T, V)
    ids, shares = unpacked(run["lens"]["ids"]).long(), unpacked(run["lens"]["probabilities"])
    torch.testing.assert_close(shares, expected.gather(2, ids), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shares[..., 0], expected.amax(-1), rtol=1e-4, atol=1e-6)


def test_what_heads_and_parts_add_has_its_size(family, run, activations):
    start = run["start"]
    for group, names in (("written", run["written"]), ("stream", run["stream"])):
        for name, array in names.items():
            torch.testing.assert_close(unpacked(array), activations[name][start:].norm(dim=-1)), group
    # One head alone: what attention adds without the others, less its bias.
    pattern = next(iter(run["heads"]))
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
            torch.testing.assert_close(unpacked(run["heads"][pattern])[head], expected)


def test_runs_that_share_a_prompt_have_it_once(family, recording):
    starts = [run["start"] for run in recording["runs"]]
    prompt = len(family.tokenizer.encode(family.text))
    assert starts == ([0, prompt - 1, prompt - 1] if family.name == "gpt2" else [0, 0, 0])
    for run in recording["runs"]:
        assert unpacked(run["next"]["ids"]).shape[0] == len(run["ids"]) - 1 - run["start"]


def test_every_token_has_a_text(family, recording):
    known = recording["pieces"]
    for run in recording["runs"]:
        for token in {*run["ids"], *unpacked(run["next"]["ids"]).flatten().tolist()}:
            assert known[str(token)]
    assert all(str(one["token"]) in known for step in recording["beams"] for one in step)
    assert "".join(known[str(token)] for token in family.tokenizer.encode(family.text)[:3]) == family.text[:3]


def test_the_parts_are_those_of_the_model(family, activations):
    described = describe(family.model, "name")
    parts = [part for stack in described["stacks"] for block in stack["blocks"] for part in block]
    for part in parts:
        for name in filter(None, (part["writes"], part["after"], part["pattern"], part["z"])):
            assert name in activations
    assert described["parameters"] == sum(one.numel() for one in family.model.parameters())
    assert len(parts) == (4 if family.name == "gpt2" else 13)


def test_nothing_stays_in_the_model(family):
    record_text(family.model, family.tokenizer, family.text, SEARCH)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family.model.modules())


# What cannot be shown


def test_a_text_that_is_too_long_is_refused_before_anything_runs(family):
    limit = most_tokens(family.model)
    expected = limit - 6 if family.name == "gpt2" else limit
    with pytest.raises(ValueError, match=f"the text has .* tokens, expected at most {expected}"):
        source_ids(family.model, family.tokenizer, "x" * (limit + 1), 6)


def test_an_empty_text_is_refused_where_there_is_nothing_to_continue(gpt2_directory):
    with pytest.raises(ValueError, match="empty"):
        record_text(load_model(gpt2_directory), load_tokenizer(gpt2_directory), "", SEARCH)


def test_gpt2_small_fits_with_all_its_positions():
    with torch.device("meta"):
        assert most_tokens(GPT2LMHeadModel(GPT2Config())) == 1024
