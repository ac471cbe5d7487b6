"""Head ablations and activation patches: alone, combined, and as sweeps."""

import numpy as np
import pytest
import torch

from ftcore.decoding import generate
from ftcore.explorer import interventions
from ftcore.explorer.interventions import (
    ActivationPatch,
    Baseline,
    HeadAblation,
    every_activation_patch,
    every_head_ablation,
    outcome,
)
from ftcore.explorer.recorder import all_heads, decoder_logits, greedy_search, source_ids, stacks
from ftcore.study import patch, record


@pytest.fixture
def baseline(family):
    source = source_ids(family.model, family.tokenizer, family.text, 6)
    other = source_ids(family.model, family.tokenizer, family.other, 6)
    return Baseline(source, greedy_search(family.model, source, 6), other, max_new_tokens=6)


def prompt_length(family, baseline):
    return baseline.source.shape[1] if family.name == "gpt2" else 1


def answer_log_probs(family, baseline):
    """(A,) log-probability of each token of the recorded answer."""
    start = prompt_length(family, baseline)
    with torch.no_grad():
        logits = decoder_logits(family.model, baseline.source, baseline.ids[:-1])[start - 1 :]
    return logits.log_softmax(-1).gather(1, baseline.ids[start:, None])[:, 0]


def test_no_interventions_change_nothing(family, baseline):
    found = outcome(family.model, baseline, [])
    assert found["ids"] == baseline.ids[prompt_length(family, baseline) :].tolist()
    torch.testing.assert_close(found["log_probs"], answer_log_probs(family, baseline))


def test_an_ablated_head_adds_nothing(family, baseline):
    name, head = all_heads(family.model)[-1]

    def ablated(z):
        z.unflatten(-1, (2, -1))[..., head, :] = 0
        return z

    found = outcome(family.model, baseline, [HeadAblation(name, head)])
    with patch(family.model, name, ablated):
        expected = answer_log_probs(family, baseline)
        ids = generate(family.model, baseline.source, max_new_tokens=6)[0]
    torch.testing.assert_close(found["log_probs"], expected)
    assert found["ids"] == ids[-len(found["ids"]) :].tolist()


def test_patching_the_whole_stream_gives_the_second_texts_answer(family, baseline):
    name = stacks(family.model)[0].blocks[-1][-1].residual
    length = baseline.source.shape[1]
    changes = [ActivationPatch(name, position, position) for position in range(length)]
    found = outcome(family.model, baseline, changes)
    other = generate(family.model, baseline.other, max_new_tokens=6)[0]
    prompt = prompt_length(family, baseline)
    # GPT-2's cache is not patched, so only the first new token is the second text's.
    count = 1 if family.name == "gpt2" else len(other) - prompt
    assert found["ids"][:count] == other[prompt : prompt + count].tolist()


def test_a_patch_can_come_from_another_position(family, baseline):
    name = stacks(family.model)[0].blocks[0][0].output
    found = outcome(family.model, baseline, [ActivationPatch(name, 1, 2)])
    with torch.no_grad(), record(family.model, name) as acts:
        decoder_logits(family.model, baseline.other, greedy_search(family.model, baseline.other, 6)[:-1])

    def patched(output):
        output[:, 1] = acts[name][:, 2]
        return output

    with patch(family.model, name, patched):
        expected = answer_log_probs(family, baseline)
    torch.testing.assert_close(found["log_probs"], expected)


def test_a_position_is_patched_once_with_a_cache(family, baseline):
    """Generation reads the prompt at once and then single tokens; none of those is position 0 again."""
    name = stacks(family.model)[-1].blocks[0][0].output
    change = ActivationPatch(name, 0, 0)
    found = outcome(family.model, baseline, [change])
    value = interventions.second_text_activations(family.model, baseline, [change])[name][0, 0]

    def patched(output):
        output[:, 0] = value
        return output

    ids = baseline.source[0] if family.name == "gpt2" else torch.tensor([0])
    for _ in range(6):  # without a cache: each step reads all tokens
        with torch.no_grad(), patch(family.model, name, patched):
            next_id = decoder_logits(family.model, baseline.source, ids)[-1].argmax()
        ids = torch.cat([ids, next_id[None]])
        if next_id == family.tokenizer.eos_id:
            break
    assert found["ids"] == ids[prompt_length(family, baseline) :].tolist()


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])  # one intervention in a batch, several, all
def test_a_sweep_has_the_outcome_of_each_intervention(family, baseline, batch_tokens, monkeypatch):
    monkeypatch.setattr(interventions, "BATCH_TOKENS", batch_tokens)
    ablated = every_head_ablation(family.model, baseline)
    patched = every_activation_patch(family.model, baseline)
    positions = range(baseline.source.shape[1])
    for sweep, changes in (
        (ablated, [HeadAblation(name, head) for name, head in all_heads(family.model)]),
        (patched, [ActivationPatch(name, at, at) for name in patched["names"] for at in positions]),
    ):
        assert len(sweep["answer"]) == len(sweep["log_probs"]) == len(changes)
        for index, change in enumerate(changes):
            alone = outcome(family.model, baseline, [change])
            assert sweep["answers"][sweep["answer"][index]] == alone["ids"]
            for name in ("log_probs", "next_ids", "next_log_probs"):
                torch.testing.assert_close(sweep[name][index], alone[name], msg=name)


def test_an_answer_of_a_sweep_ends_where_it_ends_alone(family, baseline, monkeypatch):
    """While other rows of its batch go on."""
    last = baseline.ids[prompt_length(family, baseline) + 2].item()
    monkeypatch.setattr(family.model, "generation_config", {"eos_token_id": last, "pad_token_id": last})
    changes = [HeadAblation(name, head) for name, head in all_heads(family.model)]
    alone = [outcome(family.model, baseline, [change])["ids"] for change in changes]
    sweep = every_head_ablation(family.model, baseline)
    assert [sweep["answers"][index] for index in sweep["answer"]] == alone
    if family.name == "t5":
        assert len(set(map(len, alone))) > 1


def test_skipped_sweeps_give_a_reason(family, baseline, monkeypatch):
    without_other = Baseline(baseline.source, baseline.ids)
    assert "No second text" in every_activation_patch(family.model, without_other)["skipped"]
    longer = Baseline(baseline.source, baseline.ids, torch.cat([baseline.other, baseline.other], 1))
    assert "not correspond" in every_activation_patch(family.model, longer)["skipped"]
    monkeypatch.setattr(interventions, "MAX_SWEEP_MACS", 1)
    for sweep in (every_head_ablation, every_activation_patch):
        assert "--serve" in sweep(family.model, baseline)["skipped"]


def test_a_patch_without_a_source_is_refused(family, baseline):
    name = stacks(family.model)[0].blocks[0][0].output
    with pytest.raises(ValueError, match="no second text"):
        outcome(family.model, Baseline(baseline.source, baseline.ids), [ActivationPatch(name, 0, 0)])
    with pytest.raises(ValueError, match="position 999 of the second text does not exist"):
        outcome(family.model, baseline, [ActivationPatch(name, 0, 999)])


def test_no_hooks_remain(family, baseline):
    every_head_ablation(family.model, baseline)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family.model.modules())


def test_interventions_that_do_not_exist_are_refused(family, baseline):
    name, heads = stacks(family.model)[0].blocks[0][0].output, all_heads(family.model)
    for change, message in (
        (HeadAblation(heads[0][0], len(heads)), "there is no head"),
        (HeadAblation("z.99", 0), "there is no head 0 of 'z.99'"),
        (ActivationPatch("lm_head", 0, 0), "'lm_head' cannot be patched"),
        (ActivationPatch(name, 999, 0), "position is 999, expected a whole number from 0"),
        (ActivationPatch(name, 0.5, 0), "position is 0.5"),
        (ActivationPatch(name, 0, -1), "other_position is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            outcome(family.model, baseline, [change])


def test_numpy_numbers_are_taken(family, baseline):
    (name, _), output = all_heads(family.model)[0], stacks(family.model)[0].blocks[0][0].output
    changes = [HeadAblation(name, 1), ActivationPatch(output, 1, 2)]
    same = [HeadAblation(name, np.int64(1)), ActivationPatch(output, np.int32(1), np.int64(2))]
    expected, found = outcome(family.model, baseline, changes), outcome(family.model, baseline, same)
    assert torch.equal(found["log_probs"], expected["log_probs"]) and found["ids"] == expected["ids"]
