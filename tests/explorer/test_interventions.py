"""Knock-outs and patches do what they say, one at a time, together, and all of them for the page."""

import pytest
import torch

from ftcore.decoding import generate
from ftcore.explorer import interventions
from ftcore.explorer.interventions import (
    Case,
    KnockOut,
    Transplant,
    every_knock_out,
    every_transplant,
    outcome,
)
from ftcore.explorer.recorder import greedy, heads, logits_of, source_ids, stacks
from ftcore.explorer.serialize import unpacked
from ftcore.study import patch, record


@pytest.fixture
def case(family):
    source = source_ids(family.model, family.tokenizer, family.text, 6)
    other = source_ids(family.model, family.tokenizer, family.other, 6)
    return Case(source, greedy(family.model, source, 6), other, max_new_tokens=6)


def answer_logs(family, case):
    """(A, V) log-probabilities at the positions that wrote the answer."""
    first = case.source.shape[1] - 1 if family.name == "gpt2" else 0
    with torch.no_grad():
        return logits_of(family.model, case.source, case.ids[:-1])[first:].log_softmax(-1), case.ids[
            first + 1 :
        ]


def test_without_interventions_nothing_changes(family, case):
    found = outcome(family.model, case, [])
    logs, said = answer_logs(family, case)
    assert found["ids"] == said.tolist()
    torch.testing.assert_close(unpacked(found["log_probabilities"]), logs.gather(1, said[:, None])[:, 0])
    assert unpacked(found["divergence"]).max() < 1e-5


def test_a_knocked_out_head_adds_nothing(family, case):
    sublayer, head = heads(family.model)[-1]

    def without(z):
        z.unflatten(-1, (2, -1))[..., head, :] = 0
        return z

    found = outcome(family.model, case, [KnockOut(sublayer.z, head)])
    with patch(family.model, sublayer.z, without):
        logs, said = answer_logs(family, case)
        written = generate(family.model, case.source, max_new_tokens=6)[0]
    torch.testing.assert_close(unpacked(found["log_probabilities"]), logs.gather(1, said[:, None])[:, 0])
    assert found["ids"] == written[-len(found["ids"]) :].tolist()
    before, _ = answer_logs(family, case)
    expected = (before.exp() * (before - logs)).sum(-1)
    torch.testing.assert_close(unpacked(found["divergence"]), expected, rtol=1e-3, atol=1e-5)


def test_all_of_the_other_texts_stream_gives_the_other_texts_answer(family, case):
    name = stacks(family.model)[0].blocks[-1][-1].after
    length = case.source.shape[1]
    changes = [Transplant(name, position, position) for position in range(length)]
    found = outcome(family.model, case, changes)
    other = generate(family.model, case.other, max_new_tokens=6)[0]
    prompt = length if family.name == "gpt2" else 1
    # GPT-2 goes on from the other's stream, but only its last block's: the first new token is the other's.
    count = 1 if family.name == "gpt2" else len(other) - prompt
    assert found["ids"][:count] == other[prompt : prompt + count].tolist()


def test_an_activation_can_come_from_another_position(family, case):
    part = stacks(family.model)[0].blocks[0][0]
    found = outcome(family.model, case, [Transplant(part.writes, 1, 2)])
    with torch.no_grad(), record(family.model, part.writes) as acts:
        logits_of(family.model, case.other, greedy(family.model, case.other, 6)[:-1])

    def moved(added):
        added[:, 1] = acts[part.writes][:, 2]
        return added

    with patch(family.model, part.writes, moved):
        logs, said = answer_logs(family, case)
    torch.testing.assert_close(unpacked(found["log_probabilities"]), logs.gather(1, said[:, None])[:, 0])


def test_a_position_is_patched_once_however_the_text_is_read(family, case):
    """Generation reads a prompt at once and then single tokens: none of those is position 0 again."""
    stack = stacks(family.model)[-1]
    name = stack.blocks[0][0].writes
    change = Transplant(name, 0, 0)
    found = outcome(family.model, case, [change])
    given = interventions.other_activations(family.model, case, [change])[name][0, 0]
    ids = case.source if family.name == "gpt2" else torch.tensor([[0]])
    for _ in range(6):  # without a cache: each step reads everything

        def put(added):
            added[:, 0] = given
            return added

        with torch.no_grad(), patch(family.model, name, put):
            following = logits_of(family.model, case.source, ids[0])[-1].argmax()
        ids = torch.cat([ids, following[None, None]], 1)
        if following in (family.tokenizer.eos_id,):
            break
    prompt = case.source.shape[1] if family.name == "gpt2" else 1
    assert found["ids"] == ids[0, prompt:].tolist()


def test_a_sweep_has_the_outcome_of_each(family, case):
    knocked = every_knock_out(family.model, case)
    for index, (sublayer, head) in enumerate(heads(family.model)):
        alone = outcome(family.model, case, [KnockOut(sublayer.z, head)])
        assert knocked["answers"][knocked["answer"][index]] == alone["ids"]
        for name in ("log_probabilities", "next_ids", "next_log_probabilities", "divergence"):
            assert torch.equal(unpacked(knocked[name])[index], unpacked(alone[name])), name
    swept = every_transplant(family.model, case)
    length = case.source.shape[1]
    assert unpacked(swept["log_probabilities"]).shape[0] == len(swept["names"]) * length
    alone = outcome(family.model, case, [Transplant(swept["names"][1], 2, 2)])
    assert torch.equal(unpacked(swept["log_probabilities"])[length + 2], unpacked(alone["log_probabilities"]))


def test_what_was_not_recorded_is_said(family, case, monkeypatch):
    alone = Case(case.source, case.ids)
    assert "No second text" in every_transplant(family.model, alone)["missing"]
    longer = Case(case.source, case.ids, torch.cat([case.other, case.other], 1))
    assert "do not correspond" in every_transplant(family.model, longer)["missing"]
    monkeypatch.setattr(interventions, "MOST_WORK", 1)
    for sweep in (every_knock_out, every_transplant):
        assert "--serve" in sweep(family.model, case)["missing"]


def test_a_patch_from_nowhere_is_refused(family, case):
    name = stacks(family.model)[0].blocks[0][0].writes
    with pytest.raises(ValueError, match="no second text"):
        outcome(family.model, Case(case.source, case.ids), [Transplant(name, 0, 0)])
    with pytest.raises(ValueError, match="position 999 of the second text does not exist"):
        outcome(family.model, case, [Transplant(name, 0, 999)])


def test_nothing_stays_in_the_model(family, case):
    every_knock_out(family.model, case)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family.model.modules())
