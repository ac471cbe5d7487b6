"""The recorded computations are the activations of `record`; runs share what they have in common."""

import json

import pytest
import torch

from ftcore.explorer import computation
from ftcore.explorer.computation import record_computation, record_computations
from ftcore.explorer.recorder import Search, decoder_logits, record_text
from ftcore.explorer.serialize import find_token_ids
from ftcore.explorer.server import Session
from ftcore.models import T5Config, T5ForConditionalGeneration, UMT5Config
from ftcore.study import randomize_weights, record
from tests.helpers.packed_arrays import unpack
from tests.helpers.tiny_models import tiny

SEARCH = Search(max_new_tokens=6, num_beams=3, temperature=3.0, seed=1)


@pytest.fixture(scope="module")
def recording(family):
    return record_text(family.model, family.tokenizer, family.text, SEARCH)


def close(found, expected):
    """Up to rounding: the fused kernel computes attention unless its weights are recorded too."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def everything(family, recording, run):
    source, ids = torch.tensor(recording["source"]), torch.tensor(recording["runs"][run]["ids"])
    with torch.no_grad(), record(family.model, "all") as acts:
        decoder_logits(family.model, source, ids[:-1])
    return {name: tensor[0] for name, tensor in acts.items()}


def per_head(states):
    """(T, H * K) -> (H, T, K) of two heads."""
    return states.unflatten(-1, (2, -1)).transpose(0, 1)


def assert_attention(found, acts, name, start, is_first):
    prefix, block = name.rpartition("attn.")[::2]
    at = slice(start, None)
    states = {kind: per_head(acts[f"{prefix}{kind}.{block}"]) for kind in ("q", "k", "v")}
    close(found["q"], states["q"][:, at])
    close(found["head_out"], acts[f"{prefix}head_out.{block}"][:, at])
    for kind in ("k", "v"):
        if prefix != "cross.":
            close(found[kind], states[kind][:, at])
        elif is_first:
            close(found[kind], states[kind])
        else:
            assert kind not in found


def test_computations_are_the_recorded_activations(family, recording):
    source = torch.tensor(recording["source"])
    recorded = record_computations(family.model, source, recording["runs"])
    own_starts = []
    for number, run in enumerate(recorded["runs"]):
        acts, start = everything(family, recording, number), run["start"]
        own_starts.append(start)
        for name, tensor in run["input"].items():
            full = f"decoder.{name}" if family.name == "t5" else name
            close(tensor, acts[full][start:])
        for name, found in run["parts"].items():
            if "attn" in name:
                assert_attention(found, acts, name, start, number == 0)
            else:
                neurons = acts[name.replace("mlp", "neurons")][start:]
                close(found["activations"], neurons.gather(1, found["neurons"]))
                close(found["activations"].abs()[:, 0], neurons.abs().amax(1))
    first, *others = [run["ids"][:-1] for run in recording["runs"]]
    for ids, start in zip(others, own_starts[1:], strict=True):
        differing = [i for i, (one, other) in enumerate(zip(first, ids, strict=False)) if one != other]
        assert start == (differing[0] if differing else min(len(first), len(ids)))
    assert own_starts[0] == 0


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_the_encoder_is_recorded_once(family, recording):
    acts = everything(family, recording, 0)
    recorded = record_computations(family.model, torch.tensor(recording["source"]), recording["runs"])
    for name, found in recorded["encoder"]["parts"].items():
        if "attn" in name:
            assert_attention(found, acts, name, 0, True)
    close(recorded["encoder"]["input"]["embed"], acts["encoder.embed"])


def test_a_neuron_is_the_product_of_its_rows(family, recording):
    source = torch.tensor(recording["source"])
    run = record_computations(family.model, source, recording["runs"])["runs"][0]
    acts = everything(family, recording, 0)
    for name, found in run["parts"].items():
        if "mlp" in name:
            rows, normed = found["rows"], acts[name.replace("mlp", "norm_mlp")]
            for at, neurons in enumerate(found["neurons"].tolist()):
                for n, neuron in enumerate(neurons):
                    row = rows["neurons"].tolist().index(neuron)
                    expected = normed[at] @ rows["into"][row] + rows["bias"][row]
                    close(found["inputs"][at, n], expected)
                    if found["gates"] is not None:
                        gate = normed[at] @ rows["gate"][row]
                        close(found["gates"][at, n], gate)


def test_the_largest_activations_may_be_negative():
    model = tiny("t5", feed_forward_proj="gated-gelu")
    source = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad(), record(model, "encoder.neurons.*") as acts:
        model.encode(source)
    parts = record_computation(model, source, None)["parts"]
    for block in range(2):
        found, neurons = parts[f"encoder.mlp.{block}"]["activations"], acts[f"encoder.neurons.{block}"][0]
        assert (found < 0).any()
        close(found.abs(), neurons.abs().topk(4).values)


@pytest.mark.parametrize("kind", [T5Config, UMT5Config])
def test_the_position_bias_is_what_is_added_to_the_scores(kind):
    sizes = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 2}
    model = randomize_weights(T5ForConditionalGeneration(kind(**sizes, decoder_start_token_id=0)), 0).eval()
    source, ids = torch.tensor([[3, 4, 5, 6, 7]]), torch.tensor([0, 3, 4, 5])
    recorded = {
        **record_computation(model, source, None)["parts"],
        **record_computation(model, source, ids)["parts"],
    }
    with torch.no_grad(), record(model, "all") as acts:
        model(source, decoder_input_ids=ids[None, :-1])
    for stack, length in (("encoder", 5), ("decoder", 3)):
        for block in range(2):
            bias = recorded[f"{stack}.attn.{block}"]["bias"]
            distances = torch.arange(length)[None, :] - torch.arange(length)[:, None]
            added = bias["table"][bias["buckets"][distances + length - 1].long()].permute(2, 0, 1)
            q, k = (per_head(acts[f"{stack}.{kind}.{block}"][0]) for kind in ("q", "k"))
            scores = acts[f"{stack}.scores.{block}"][0]
            visible = scores > -torch.inf
            torch.testing.assert_close((q @ k.transpose(1, 2) + added)[visible], scores[visible])
    assert recorded["cross.attn.0"]["bias"] is None


def count_numbers(value):
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(map(count_numbers, value.values())) if isinstance(value, dict) else 0


def test_a_large_page_has_no_vectors_that_are_written_or_no_computations(family, recording, monkeypatch):
    source = torch.tensor(recording["source"])
    recorded = record_computations(family.model, source, recording["runs"])

    everything = sum(map(count_numbers, [recorded["encoder"], *recorded["runs"]]))
    monkeypatch.setattr(computation, "MAX_NUMBERS", everything * 4 // 5)
    reduced = record_computations(family.model, source, recording["runs"])
    for run in reduced["runs"]:
        for name, part in run["parts"].items():
            assert part["head_out" if "attn" in name else "rows"] is None
    assert sum(map(count_numbers, [reduced["encoder"], *reduced["runs"]])) < everything * 4 // 5
    monkeypatch.setattr(computation, "MAX_NUMBERS", everything // 10)
    assert record_computations(family.model, source, recording["runs"]) is None


def test_a_live_page_requests_one_sublayer(family, recording):
    session = Session(family.model, family.tokenizer)
    request = {"text": family.text, "ids": recording["runs"][0]["ids"], "max_new_tokens": 6}
    names = ["attn.1"] if family.name == "gpt2" else ["encoder.attn.1", "cross.attn.2", "decoder.mlp.0"]
    acts = everything(family, recording, 0)
    for name in names:
        answer = json.loads(session.answer("computation", request | {"part": name}))
        assert list(answer["parts"]) == [name] and answer["start"] == 0
        if "attn" in name:
            expected = acts[name.replace("attn", "head_out")]
            close(unpack(answer["parts"][name]["head_out"]), expected)
    with pytest.raises(ValueError, match=r"the decoder has no sublayer 'z\.1'"):
        session.answer("computation", request | {"part": "z.1"})
    with pytest.raises(ValueError, match="part is 1, expected str"):
        session.answer("computation", request | {"part": 1})


def test_computations_have_no_token_ids(family, recording):
    """Texts of tokens are recorded by key: a neuron's number must not be taken for a token."""
    source = torch.tensor(recording["source"])
    recorded = record_computations(family.model, source, recording["runs"])
    assert list(find_token_ids(recorded)) == []
