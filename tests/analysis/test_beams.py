"""beam_trace: finished hypotheses equal generate, scores equal log-probabilities."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.analysis.beams import beam_trace, draw_beams
from ftcore.decoding import generate
from tests.helpers.oracle import seeds, tokens
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny

searches = st.fixed_dictionaries(
    {
        "num_beams": st.integers(2, 5),
        "max_new_tokens": st.integers(1, 9),
        "length_penalty": st.sampled_from([0.0, 1.0, 2.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "eos_token_id": st.sampled_from([1, [1, 3, 5, 7, 9, 11]]),
        "no_repeat_ngram_size": st.sampled_from([0, 2]),
    }
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=10)
@given(options=searches, seed=seeds)
def test_finished_candidates_equal_generate(family, options, seed):
    model, ids = tiny(family, seed), tokens(seed, 1, 5)
    options = {**options, "num_return_sequences": options["num_beams"], "pad_token_id": 0}
    answers = generate(model, ids, **options)
    trace = beam_trace(model, ids, **options)
    assert torch.equal(trace.ids, answers)
    prompt_length = ids.shape[1] if family == "gpt2" else 1
    assert len(trace.finished) == len(answers)
    for candidate, answer in zip(trace.finished, answers.tolist(), strict=True):
        tokens_so_far = trace.tokens(candidate)
        assert tokens_so_far == answer[prompt_length : prompt_length + len(tokens_so_far)]
        assert set(answer[prompt_length + len(tokens_so_far) :]) <= {0}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scores_equal_log_probabilities(family):
    model, ids = tiny(family, 3).double(), tokens(3, 1, 5)
    options = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": [1, 3, 5, 7], "length_penalty": 0.7}
    trace = beam_trace(model, ids, pad_token_id=0, **options)
    for candidate in (one for step in trace.steps for one in step):
        tokens_so_far = torch.tensor([trace.tokens(candidate)])
        if family == "gpt2":
            logits = model(torch.cat([ids, tokens_so_far[:, :-1]], 1))[0, ids.shape[1] - 1 :]
        else:
            logits = model(
                ids, decoder_input_ids=torch.cat([torch.zeros(1, 1).long(), tokens_so_far[:, :-1]], 1)
            )[0]
        each = logits.log_softmax(-1)[torch.arange(tokens_so_far.shape[1]), tokens_so_far[0]]
        assert candidate.log_prob == pytest.approx(each[-1].item(), abs=1e-5)  # the search is in float32
        assert candidate.score == pytest.approx(each.sum().item(), abs=1e-5)
        if candidate.final_score is not None:
            assert candidate.final_score == pytest.approx(
                candidate.score / tokens_so_far.shape[1] ** 0.7, abs=1e-5
            )


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=6)
@given(options=searches, seed=seeds, sampling=st.booleans())
def test_status_of_every_candidate(family, options, seed, sampling):
    torch.manual_seed(seed)
    trace = beam_trace(tiny(family, seed), tokens(seed, 1, 5), pad_token_id=0, do_sample=sampling, **options)
    ends = options["eos_token_id"] if isinstance(options["eos_token_id"], list) else [1]
    last = options["max_new_tokens"] - 1
    for number, step in enumerate(trace.steps):
        assert [one.rank for one in step] == list(range(len(step)))
        assert {one.step for one in step} == {number}
        statuses = [one.status for one in step]
        assert statuses.count("running") <= options["num_beams"] >= len(trace.finished)
        for one in step:
            ended = one.token in ends or number == last
            assert (one.status == "running") <= (not ended)
            assert (one.status in ("finished", "displaced")) == (one.final_score is not None) <= ended
            if one.parent is not None:
                assert trace.steps[number - 1][one.parent].status == "running"
            else:
                assert number == 0
        if not sampling:  # the best candidates without EOS are running
            alive = [one for one in step if one.token not in ends and number != last]
            running = [one for one in step if one.status == "running"]
            assert running == alive[: len(running)] and len(running) == min(len(alive), options["num_beams"])


def test_displaced_candidates_have_lower_scores():
    options = {"num_beams": 2, "max_new_tokens": 8, "length_penalty": 3.0, "pad_token_id": 0}
    options["eos_token_id"] = list(range(1, 60, 2))
    seen = 0
    for seed in range(6):
        trace = beam_trace(tiny("gpt2", seed), tokens(seed, 1, 5), **options)
        displaced = [one for step in trace.steps for one in step if one.status == "displaced"]
        assert all(one.final_score <= trace.finished[-1].final_score for one in displaced)
        seen += len(displaced)
    assert seen


def test_trace_to_json():
    trace = beam_trace(tiny("t5"), tokens(0, 1, 5), num_beams=3, max_new_tokens=4)
    steps = json.loads(json.dumps([[asdict(one) for one in step] for step in trace.steps]))
    assert steps[0][0] == asdict(trace.steps[0][0])


def test_invalid_searches():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="2 rows, expected 1"):
        beam_trace(model, random_inputs("gpt2")["input_ids"], num_beams=2)
    with pytest.raises(ValueError, match="observer needs num_beams above 1"):
        beam_trace(model, tokens(0, 1, 5))


def test_draw_beams_with_special_characters():
    pytest.importorskip("matplotlib")
    trace = beam_trace(tiny("t5"), tokens(0, 1, 5), num_beams=3, max_new_tokens=4, eos_token_id=[1, 3, 5, 7])
    axes = draw_beams(trace, lambda token: f"$\\frac{{{token}<script>").axes[0]
    texts = {text.get_text() for text in axes.texts}
    best = trace.finished[0]
    assert any(text.startswith(f"$\\frac{{{best.token}<script>") for text in texts)
    assert any(text.endswith(f"{best.final_score:.2f}") for text in texts)
    nothing_finished = replace(trace, steps=trace.steps[:1])
    draw_beams(nothing_finished, str)
