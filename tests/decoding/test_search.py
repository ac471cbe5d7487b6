"""generate: ids equal to transformers' for every argument, equal without a cache, errors in one line."""

import copy
import math
import random
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftcore.decoding import generate
from ftcore.decoding.beam_search import common_prefix_length
from ftcore.decoding.state import head_logits
from tests.helpers.search_cases import (
    EOS,
    FAMILIES,
    PAD,
    START,
    VOCAB,
    assert_equal_to_transformers,
    cases,
    inputs,
    pair,
    prompt_length,
    random_options,
    sampling_options,
    up_to_end,
)

# Equal to transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_and_beam_search_give_the_ids_and_scores_of_transformers(family: str) -> None:
    for reference, model, r in cases(family, 80):
        ids, mask = inputs(r, family)
        options = random_options(r)
        assert_equal_to_transformers(reference, model, ids, mask, options)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_gives_the_ids_and_scores_of_transformers_for_the_same_seed(family: str) -> None:
    for reference, model, r in cases(family, 30):
        ids, mask = inputs(r, family)
        options = sampling_options(r)
        assert_equal_to_transformers(reference, model, ids, mask, options)


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_sampling_gives_the_ids_and_scores_of_transformers_for_the_same_seed(family: str) -> None:
    for reference, model, r in cases(family, 20):
        ids, mask = inputs(r, family)
        options = sampling_options(r) | {"num_beams": 3, "early_stopping": r.choice([True, False, "never"])}
        assert_equal_to_transformers(reference, model, ids, mask, options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_random_cases_depend_on_early_stopping(family: str) -> None:
    """Otherwise equal ids would prove nothing about it."""
    differing = 0
    for _, model, r in cases(family, 20):
        ids, mask = inputs(r, family)
        o = {"max_new_tokens": 16, "num_beams": 4, "eos_token_id": [*range(1, 12)], "length_penalty": 2.0}
        answers = [generate(model, ids, mask, early_stopping=e, **o).tolist() for e in (True, False, "never")]
        differing += answers[0] != answers[1] or answers[1] != answers[2]
    assert differing >= 3


@pytest.mark.parametrize("beams", [1, 3])
def test_the_start_token_is_prepended_to_a_decoder_prefix(beams: int) -> None:
    reference, model = pair("t5", 0)
    r = random.Random(0)
    ids, mask = inputs(r, "t5")
    for prefix in ([5, 9, 4], [0, 5, 9]):
        decoder_input_ids = torch.tensor([prefix] * len(ids))
        options = {"max_new_tokens": 6, "num_beams": beams, "pad_token_id": PAD}
        want = reference.generate(ids, attention_mask=mask, decoder_input_ids=decoder_input_ids, **options)
        got = generate(model, ids, mask, decoder_input_ids=decoder_input_ids, **options)
        assert got.tolist() == want.tolist()
        assert got[:, : len(prefix)].tolist() == [[START, 5, 9, 4][: len(prefix)]] * len(ids)


def test_padded_decoder_prefixes_give_the_ids_and_scores_of_transformers() -> None:
    masked = 0
    for reference, model, r in cases("t5", 100):
        ids, mask = inputs(r, "t5")
        options = sampling_options(r) if r.random() < 0.3 else random_options(r)
        options |= {"max_new_tokens": 5}
        length = r.choice([1, 3, 8])
        prefix = torch.tensor([[r.randrange(3, VOCAB) for _ in range(length)] for _ in ids])
        prefix_mask = torch.ones_like(prefix)
        for row in prefix_mask:
            row[: r.randrange(length)] = 0
        prefix = prefix.masked_fill(prefix_mask == 0, PAD)
        if r.random() < 0.5:  # with the start token of the longest row, or of all rows
            prefix[:, 0] = START
        assert_equal_to_transformers(
            reference, model, ids, mask, options, decoder_input_ids=prefix, decoder_attention_mask=prefix_mask
        )
        masked += bool((prefix_mask == 0).any())
    assert masked > 50


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_a_decoder_prefix_does_not_change_the_answer(beams: int) -> None:
    _, model = pair("t5", 1)
    source = torch.tensor([[5, 9, 3, 12, 8]] * 3)
    o = {"max_new_tokens": 8, "num_beams": beams, "eos_token_id": [1, 3, 4, 5], "pad_token_id": PAD}
    prefixes = [[START, 7, 6, 9], [START, 30], [START]]
    padded = torch.tensor([[PAD] * (4 - len(row)) + row for row in prefixes])
    together = generate(
        model, source, decoder_input_ids=padded, decoder_attention_mask=(padded != PAD).long(), **o
    )
    for row, prefix in zip(together, prefixes, strict=True):
        alone = generate(model, source[:1], decoder_input_ids=torch.tensor([prefix]), **o)
        assert up_to_end(row[None, 4:], o["eos_token_id"]) == up_to_end(
            alone[:, len(prefix) :], o["eos_token_id"]
        )


def test_finished_t5_beams_are_filled_with_pad_unlike_transformers() -> None:
    reference, model = pair("t5", 1)
    ids = torch.randint(3, VOCAB, (3, 4), generator=torch.Generator().manual_seed(0))
    eos = [*range(1, 12)]
    o = {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": eos, "pad_token_id": 0}
    want = reference.generate(ids, use_cache=True, max_new_tokens=9, **o)
    got = generate(model, ids, max_new_tokens=9, **o)
    assert up_to_end(got[:, 1:], eos) == up_to_end(want[:, 1:], eos)
    width = got.shape[1] - 1
    assert got[:, 1:].tolist() == [row + [0] * (width - len(row)) for row in up_to_end(got[:, 1:], eos)]
    assert got.tolist() != want.tolist()


@pytest.mark.parametrize("beams", [1, 2])
def test_gpt2_without_a_mask_masks_pad_tokens(beams: int) -> None:
    reference, model = pair("gpt2", 1)
    ids = torch.tensor([[0, 0, 5, 8], [9, 4, 3, 2]])
    options = {"pad_token_id": 0, "max_new_tokens": 8, "num_beams": beams}
    assert generate(model, ids, **options).tolist() == reference.generate(ids, **options).tolist()
    unmasked = generate(model, ids, torch.ones_like(ids), **options)
    assert generate(model, ids, **options | {"pad_token_id": None}).tolist() == unmasked.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_default_lengths_are_those_of_transformers(family: str) -> None:
    """20 new tokens, but no more than GPT-2 has positions; max_length counts the prompt."""
    reference, model = pair(family, 2)
    for length in (3, 50, 63):
        ids = torch.randint(2, VOCAB, (2, length), generator=torch.Generator().manual_seed(length))
        got = generate(model, ids, eos_token_id=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers advises against the default
            assert got.tolist() == reference.generate(ids, use_cache=True, eos_token_id=None).tolist()
        longer = prompt_length(family, ids) + 1
        assert generate(model, ids, max_length=longer, eos_token_id=None).shape == (2, longer)


# Defaults from the checkpoint


def test_arguments_override_generation_config_which_overrides_config() -> None:
    _, model = pair("gpt2", 3)
    ids = torch.tensor([[5, 6, 7]])
    everything = list(range(VOCAB))
    assert model.config.eos_token_id == EOS
    model.generation_config = {"max_new_tokens": 4, "eos_token_id": everything, "transformers_version": "5"}
    try:
        assert generate(model, ids).shape == (1, 4)  # any token is an EOS
        assert generate(model, ids, eos_token_id=None).shape == (1, 7)
        assert generate(model, ids, eos_token_id=None, max_new_tokens=2).shape == (1, 5)
    finally:
        model.generation_config = None


def test_none_means_not_given() -> None:
    _, model = pair("gpt2", 3)
    ids = torch.tensor([[5, 6, 7]])
    plain = generate(model, ids)
    assert (
        generate(model, ids, num_beams=None, max_new_tokens=None, bad_words_ids=None).tolist()
        == plain.tolist()
    )


# Without transformers


def uncached(family: str, model: Any, ids: Tensor, mask: Tensor, new_tokens: int) -> Tensor:
    """Greedy search that runs the model on the whole text for every token."""
    text = torch.zeros(len(ids), 1, dtype=torch.long) if family == "t5" else ids
    for _ in range(new_tokens):
        if family == "t5":
            logits = model(ids, mask, decoder_input_ids=text)
        else:
            logits = model(text, torch.cat([mask, torch.ones_like(text[:, mask.shape[1] :])], 1))
        text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return text


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family: str) -> None:
    for _, model, r in cases(family, 12):
        ids, mask = inputs(r, family)
        with torch.no_grad():
            want = uncached(family, model, ids, mask, 12)
        assert generate(model, ids, mask, max_new_tokens=12, eos_token_id=None).tolist() == want.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_enough_beams_find_the_most_likely_continuations(family: str) -> None:
    """Compared with brute force over all continuations of 2 tokens."""
    _, model = pair(family, 0)
    ids = torch.tensor([[5, 9, 3]])
    words = torch.cartesian_prod(*[torch.arange(VOCAB)] * 2)  # every continuation of 2 tokens
    with torch.no_grad():
        if family == "t5":
            text = torch.cat([torch.zeros(len(words), 1, dtype=torch.long), words], 1)
            logits = model(ids.expand(len(words), -1), decoder_input_ids=text[:, :-1])
        else:
            text = torch.cat([ids.expand(len(words), -1), words], 1)
            logits = model(text[:, :-1])[:, -2:]
    scores = logits.log_softmax(-1).gather(-1, words[:, :, None]).sum((1, 2))
    best = generate(model, ids, max_new_tokens=2, num_beams=VOCAB, eos_token_id=None, num_return_sequences=3)
    assert best[:, -2:].tolist() == words[scores.topk(3).indices].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_padding_and_batching_do_not_change_the_ids(family: str, beams: int) -> None:
    _, model = pair(family, 1)
    eos = [1, 3, 4, 5]
    options = {"max_new_tokens": 8, "num_beams": beams, "eos_token_id": eos, "pad_token_id": PAD}
    prompts = [torch.tensor([text]) for text in ([5, 9, 3, 12, 8], [7, 6], [30, 22, 4])]
    ids = torch.cat([F.pad(text, (5 - text.shape[1], 0), value=PAD) for text in prompts])
    together = generate(model, ids, (ids != PAD).long(), **options)[:, prompt_length(family, ids) :]
    for text, row in zip(prompts, together, strict=True):
        alone = generate(model, text, **options)[:, prompt_length(family, text) :]
        assert up_to_end(row[None], eos) == up_to_end(alone, eos)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 4])
def test_finished_rows_are_filled_with_pad(family: str, beams: int) -> None:
    _, model = pair(family, 2)
    ids = torch.randint(2, VOCAB, (3, 4), generator=torch.Generator().manual_seed(0))
    eos, pad = [*range(1, 12)], VOCAB + 5  # a pad id out of vocabulary is never fed to the model
    out = generate(model, ids, max_new_tokens=20, eos_token_id=eos, pad_token_id=pad, num_beams=beams)
    for row in out[:, prompt_length(family, ids) :].tolist():
        end = next((i for i, token in enumerate(row) if token in eos), len(row))
        assert set(row[end + 1 :]) <= {pad}
        assert pad not in row[: end + 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_streamer_receives_every_new_token(family: str) -> None:
    _, model = pair(family, 1)
    ids = torch.randint(2, VOCAB, (2, 4), generator=torch.Generator().manual_seed(0))
    steps: list[Tensor] = []
    out = generate(model, ids, max_new_tokens=9, eos_token_id=[*range(1, 9)], streamer=steps.append)
    assert torch.stack(steps, 1).tolist() == out[:, prompt_length(family, ids) :].tolist()


def test_sampling_depends_on_the_generator_only() -> None:
    _, model = pair("gpt2", 0)
    ids = torch.tensor([[5, 6, 7]])

    def sampled(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, ids, do_sample=True, max_new_tokens=12, generator=generator).tolist()

    before = torch.get_rng_state()
    assert sampled(1) == sampled(1) != sampled(2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mode_of_every_module_is_restored(family: str) -> None:
    _, model = pair(family, 0)
    ids = torch.tensor([[5, 6, 7]])
    without_dropout = generate(model, ids)
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    try:
        assert generate(model, ids).tolist() == without_dropout.tolist()
        assert [module.training for module in model.modules()] == modes
        with pytest.raises(ValueError):
            generate(model, torch.tensor([[VOCAB]]))
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()


def test_generated_ids_are_not_inference_tensors() -> None:
    _, model = pair("gpt2", 0)
    ids = generate(model, torch.tensor([[5, 6, 7]]))
    model(ids).sum().backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()


def test_t5_encodes_once_and_keeps_one_row_of_cross_attention_keys_per_source() -> None:
    _, model = pair("t5", 0)
    encoded: list[int] = []
    rows_of_keys: list[int] = []
    cross = model.decoder.block[0].layer[1].EncDecAttention
    hooks = [
        model.encoder.register_forward_hook(lambda module, args, out: encoded.append(len(out))),
        cross.k.register_forward_hook(lambda module, args, out: rows_of_keys.append(len(out))),
    ]
    generate(model, torch.tensor([[5, 6, 7], [8, 9, 10]]), num_beams=4, max_new_tokens=5, eos_token_id=None)
    for hook in hooks:
        hook.remove()
    assert encoded == [2]
    assert rows_of_keys == [2]


def test_the_head_runs_on_one_position_per_step() -> None:
    _, model = pair("gpt2", 0)
    shapes: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    generate(model, torch.tensor([[5, 6, 7, 8]]), num_beams=3, max_new_tokens=3, eos_token_id=None)
    hook.remove()
    assert shapes == [(1, 1, VOCAB), (3, 1, VOCAB), (3, 1, VOCAB)]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_logits_of_the_head_are_those_of_its_forward(rows: int) -> None:
    head = torch.nn.Linear(8, 30, bias=False)
    hidden = torch.randn(rows, 1, 8, generator=torch.Generator().manual_seed(0))
    patched = copy.deepcopy(head)
    patched.forward = lambda states: 2 * head(states)  # type: ignore[method-assign]
    with torch.no_grad():
        logits = head_logits(head, hidden)
        torch.testing.assert_close(logits, head(hidden))
        assert logits.is_contiguous()
        for replacement in (torch.nn.Linear(8, 30), torch.nn.Sequential(head, torch.nn.Tanh()), patched):
            torch.testing.assert_close(head_logits(replacement, hidden), replacement(hidden))


def test_scores_are_computed_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = pair("gpt2", 0)
    ids = torch.tensor([[5, 6, 7]])
    want = generate(model, ids, return_scores=True).ids
    monkeypatch.delattr("ftcore.decoding.sampling.log_prob")
    assert generate(model, ids).tolist() == want.tolist()


# Errors


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gpt2", {"num_beam": 2}, "no argument 'num_beam', did you mean 'num_beams'?"),
        ("gpt2", {"max_tokens": 2}, "did you mean 'max_new_tokens'?"),
        ("gpt2", {"zzz": 2}, "no argument 'zzz'$"),
        ("gpt2", {"output_scores": True}, "'output_scores': it is transformers' name of return_scores"),
        ("gpt2", {"past_key_values": None}, "transformers' name of cache"),
        (
            "gpt2",
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences is 3, more than num_beams, 2",
        ),
        ("gpt2", {"num_return_sequences": 2}, "greedy search has one answer"),
        ("gpt2", {"num_beams": 0}, "num_beams is 0, expected a whole number of at least 1"),
        ("gpt2", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("gpt2", {"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        (
            "gpt2",
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "minimum length of 8 tokens exceeds the maximum of 7",
        ),
        ("gpt2", {"max_length": 3}, "reaches the maximum length of 3"),
        ("gpt2", {"max_new_tokens": 63}, "3 tokens and 63 new ones exceed the model's 64 positions"),
        ("gpt2", {"do_sample": True, "temperature": 0.0}, "temperature is 0.0, expected at least 1e-30"),
        ("gpt2", {"do_sample": True, "top_p": 1.5}, "top_p is 1.5"),
        ("gpt2", {"do_sample": True, "min_p": -0.1}, "min_p is -0.1"),
        ("gpt2", {"do_sample": True, "typical_p": 0.0}, "typical_p is 0"),
        ("gpt2", {"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        (
            "gpt2",
            {"early_stopping": "always"},
            "early_stopping is 'always', expected true or false or 'never'",
        ),
        ("gpt2", {"bad_words_ids": [[]]}, "bad_words_ids holds an empty word"),
        ("gpt2", {"bad_words_ids": [[99]]}, "bad_words_ids holds 99, expected token ids from 0 to 40"),
        ("gpt2", {"forced_eos_token_id": 41}, "forced_eos_token_id holds 41"),
        ("gpt2", {"pad_token_id": -1}, "pad_token_id holds -1"),
        (
            "gpt2",
            {"decoder_input_ids": torch.tensor([[5]])},
            "decoder_input_ids and .* are for T5",
        ),
        ("gpt2", {"num_beams": 2, "streamer": print}, "streamer needs num_beams=1"),
        ("t5", {"decoder_start_token_id": None}, "decoder_start_token_id is missing"),
        ("t5", {"decoder_input_ids": torch.tensor([[5], [6]])}, "decoder_input_ids has 2 rows, expected 1"),
        ("t5", {"attention_mask": torch.ones(1, 2)}, r"attention_mask has the shape \(1, 2\)"),
        (
            "t5",
            {"decoder_input_ids": torch.tensor([[5]]), "decoder_attention_mask": torch.ones(1, 2)},
            r"decoder_attention_mask has the shape \(1, 2\), expected that of decoder_input_ids, \(1, 1\)",
        ),
        (
            "t5",
            {"decoder_input_ids": torch.tensor([[5, 6]]), "decoder_attention_mask": torch.tensor([[1, 0]])},
            "decoder_input_ids ends in padding",
        ),
        (
            "t5",
            {"decoder_attention_mask": torch.ones(1, 2)},
            "_mask needs decoder_input_ids",
        ),
        ("gpt2", {"decoder_attention_mask": torch.ones(1, 3)}, "decoder_attention_mask are for T5"),
    ],
)
def test_invalid_arguments_are_refused(family: str, options: dict[str, Any], message: str) -> None:
    _, model = pair(family, 0)
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, torch.tensor([[5, 6, 7]]), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_that_are_not_ids_are_refused(family: str) -> None:
    _, model = pair(family, 0)
    for ids in (torch.tensor([5, 6]), torch.ones(1, 3), torch.ones(1, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="input_ids must be a tensor of token ids"):
            generate(model, ids)
    for token in (VOCAB, -1):
        with pytest.raises(ValueError, match=f"token id {token}, but the embedding has rows 0 to 40"):
            generate(model, torch.tensor([[5, token]]))


def test_right_padding_of_gpt2_prompts_is_refused() -> None:
    _, model = pair("gpt2", 0)
    ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    with pytest.raises(ValueError, match="pad GPT-2's prompts on the left"):
        generate(model, ids, (ids != 0).long())


def test_all_of_gpt2s_positions_can_be_used() -> None:
    _, model = pair("gpt2", 0)
    out = generate(model, torch.tensor([[5, 6, 7]]), max_new_tokens=62, eos_token_id=None)
    assert out.shape == (1, 65)  # the last token needs no position


def test_unused_sampling_options_cause_a_warning() -> None:
    _, model = pair("gpt2", 0)
    with pytest.warns(UserWarning, match="without do_sample=True generate ignores temperature, top_k"):
        generate(model, torch.tensor([[5, 6, 7]]), temperature=0.5, top_k=3)


# Scores that are not finite

SEARCHES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_that_is_not_finite_is_named(family: str, search: str, value: float) -> None:
    """With a pad id beyond the vocabulary, and in a step in which other rows have ended."""
    model = copy.deepcopy(pair(family, 1)[1])
    name = "transformer.wpe.weight" if family == "gpt2" else "decoder.final_layer_norm.weight"
    with torch.no_grad():
        model.get_parameter(name)[-1] = value  # GPT-2 reads it at its last position
    ids = torch.randint(3, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    o = SEARCHES[search] | {
        "max_new_tokens": 57,
        "eos_token_id": 7,
        "pad_token_id": VOCAB,
        "min_new_tokens": 57,
    }
    o |= {"bad_words_ids": [[3]], "length_penalty": 1.0}
    word = "NaN" if math.isnan(value) else "infinity"
    with pytest.raises(FloatingPointError, match=f"^the model's output is not finite: {name} holds {word}$"):
        generate(model, ids, torch.ones_like(ids), **o)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_whose_output_is_not_finite_is_named(family: str, search: str) -> None:
    model = copy.deepcopy(pair(family, 1)[1])
    name = "transformer.ln_f" if family == "gpt2" else "encoder.final_layer_norm"
    module = model.get_submodule(name)
    compute = module.forward
    module.forward = lambda hidden: compute(hidden) * math.inf
    ids = torch.tensor([[5, 6, 7], [2, 8, 9]])
    with pytest.raises(FloatingPointError, match=f"first in the output of {name}, whose input ranged from"):
        generate(model, ids, ids != 2, **SEARCHES[search])


@pytest.mark.parametrize("search", [{}, {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_sources_that_have_ended_may_have_any_scores(family: str, search: dict[str, Any]) -> None:
    """With hooks they stay in the batch."""
    _, model = pair(family, 1)
    ids = torch.randint(3, VOCAB, (3, 4), generator=torch.Generator().manual_seed(0))
    o = {"max_new_tokens": 12, "eos_token_id": [*range(1, 9)], "pad_token_id": PAD} | search
    want = generate(model, ids, **o)
    new = want[:, prompt_length(family, ids) :].view(3, -1, want.shape[1] - prompt_length(family, ids))
    lengths = [max(map(len, up_to_end(rows, o["eos_token_id"]))) for rows in new]
    first = lengths.index(min(lengths))
    assert min(lengths) < max(lengths)

    def forbid(tokens: Tensor, scores: Tensor) -> Tensor:
        if tokens.shape[1] >= prompt_length(family, ids) + min(lengths):
            scores = scores.unflatten(0, (3, -1)).clone()
            scores[first] = math.nan
        return scores.flatten(0, -2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftcore.decoding.search.processors_for", lambda *_, **__: [forbid])
        patch.setattr("ftcore.decoding.state.is_hooked", lambda model: True)
        assert generate(model, ids, **o).tolist() == want.tolist()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"suppress_tokens": [*range(VOCAB)]}, r"suppress_tokens=\[0, 1, 2, 3, 4, 5, \.\.\.\]$"),
        ({"bad_words_ids": [[token] for token in range(VOCAB)], "eos_token_id": None}, "bad_words_ids="),
        ({"forced_bos_token_id": 3, "suppress_tokens": [3]}, r"suppress_tokens=\[3\], forced_bos_token_id=3"),
        (
            {"exponential_decay_length_penalty": (0, 1e200), "min_new_tokens": 0},
            r"length_penalty=\[0, 1e\+200\]",
        ),
    ],
)
def test_arguments_that_leave_no_token_are_named(search: str, rules: dict[str, Any], message: str) -> None:
    _, model = pair("t5", 1)
    o: dict[str, Any] = (
        {"eos_token_id": 1, "max_new_tokens": 9, "min_new_tokens": 5} | SEARCHES[search] | rules
    )
    with pytest.raises(ValueError, match=r"^no token with a finite score is left after \d") as caught:
        generate(model, torch.tensor([[5, 6, 7]]), **o)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_beams": 2, "length_penalty": -1e300},
            r"a score below -1e\+09, because of length_penalty=-1e\+300$",
        ),
        (
            {"num_beams": 2, "do_sample": True, "temperature": 1e-30},
            "a score below .* because of temperature=1e-30$",
        ),
        (
            {"do_sample": True, "temperature": 1e-30, "repetition_penalty": 1e-30},
            "=1e-30, temperature=1e-30$",
        ),
    ],
)
def test_scores_beyond_float32_are_refused(options: dict[str, Any], message: str) -> None:
    _, model = pair("gpt2", 1)
    with pytest.raises(ValueError, match=message):
        generate(model, torch.tensor([[5, 6, 7]]), eos_token_id=None, **options)


def test_more_end_tokens_than_half_the_vocabulary() -> None:
    """The candidates of a step are all tokens of all beams then."""
    _, model = pair("t5", 1)
    out = generate(model, torch.tensor([[5, 6, 7]]), num_beams=2, eos_token_id=[*range(VOCAB + 5)])
    assert out.shape == (1, 2)


# Threads


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_share_a_model_in_train_mode(family: str) -> None:
    model = copy.deepcopy(pair(family, 1)[1])
    prompts = [torch.randint(3, VOCAB, (1, 5), generator=torch.Generator().manual_seed(n)) for n in range(30)]
    lengths = [2 + number % 13 for number in range(30)]
    want = [generate(model, ids, max_new_tokens=n).tolist() for ids, n in zip(prompts, lengths, strict=True)]
    model.train()
    with ThreadPoolExecutor(6) as threads:
        got = threads.map(lambda ids, n: generate(model, ids, max_new_tokens=n).tolist(), prompts, lengths)
        assert list(got) == want
    assert all(module.training for module in model.modules())


# Finished sources


def fed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the head receives in each step of `generate`. (A hook would keep all rows.)"""
    counts: list[int] = []

    def counted(head: Any, hidden: Tensor) -> Tensor:
        counts.append(len(hidden))
        return head_logits(head, hidden)

    monkeypatch.setattr("ftcore.decoding.state.head_logits", counted)
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_finished_sources_does_not_change_the_ids(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy search, sampling and beam search, compared with a search that keeps all rows."""
    shrunk = 0
    for _, model, r in cases(family, 40):
        ids, mask = inputs(r, family)
        options = (random_options if r.random() < 0.6 else sampling_options)(r)
        options |= {"max_new_tokens": 12, "eos_token_id": [*range(1, 9)]}
        answers = []
        for keep_all in (False, True):
            with monkeypatch.context() as patch:
                if keep_all:
                    patch.setattr("ftcore.decoding.state.is_hooked", lambda model: True)
                counts = fed_rows(patch)
                generator = torch.Generator().manual_seed(3)
                answers.append(generate(model, ids, mask, generator=generator, **options).tolist())
            assert not keep_all or len(set(counts[1:])) <= 1
            assert counts[1:] == sorted(counts[1:], reverse=True)
            shrunk += len(set(counts[1:])) > 1
        assert answers[0] == answers[1], options
    assert shrunk > 5


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_see_all_rows_in_every_step(family: str, beams: int) -> None:
    _, model = pair(family, 1)
    ids = torch.randint(2, VOCAB, (4, 4), generator=torch.Generator().manual_seed(0))
    shapes: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(len(out)))
    generate(model, ids, max_new_tokens=16, eos_token_id=[*range(1, 9)], num_beams=beams)
    hook.remove()
    assert set(shapes[1:]) == {4 * beams}


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_common_prefix_length(data: st.DataObject) -> None:
    sources, beams, length = (data.draw(st.integers(1, 4)) for _ in range(3))
    bits = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    ids = [[data.draw(bits) for _ in range(beams)] for _ in range(sources)]
    want = max(n for n in range(length + 1) if all(row[:n] == rows[0][:n] for rows in ids for row in rows))
    assert common_prefix_length(torch.tensor(ids)).tolist() == [want]
