"""Functions of the caller in a search: allowed tokens and logits processors; generators of single rows."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcore.decoding import generate
from tests.helpers.search_cases import (
    EOS,
    FAMILIES,
    PAD,
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

IDS = torch.tensor([[5, 6, 7]])


def any_options(r: random.Random) -> dict[str, Any]:
    """Of any search, without tokens that are suppressed after the caller's functions."""
    options = (random_options if r.random() < 0.6 else sampling_options)(r)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        options.pop(name, None)
    return options


# Allowed tokens


def some_tokens(batch_id: int, ids: Tensor) -> list[int]:
    """A choice of tokens that depends on the source and on all ids so far."""
    r = random.Random(f"{batch_id} {ids.tolist()}")
    return r.sample(range(VOCAB), r.choice([4, 12, 30]))


@pytest.mark.parametrize("family", FAMILIES)
def test_allowed_tokens_give_the_ids_of_transformers(family: str) -> None:
    for reference, model, r in cases(family, 40):
        ids, mask = inputs(r, family)
        o = any_options(r) | {"prefix_allowed_tokens_fn": some_tokens}
        assert_equal_to_transformers(reference, model, ids, mask, o)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_choose_among_fewer_answers_than_beams(family: str) -> None:
    """All beams end, or are impossible, before the search does."""
    for reference, model, r in cases(family, 30):
        ids, mask = inputs(r, family)
        start = prompt_length(family, ids)
        answers = [[r.randrange(3, VOCAB) for _ in range(r.choice([1, 2, 4]))] + [EOS] for _ in range(3)]

        def next_tokens(batch_id: int, ids: Tensor) -> list[int]:
            new = ids[start:].tolist()  # noqa: B023
            return [answer[len(new)] for answer in answers if answer[: len(new)] == new != answer] or [EOS]  # noqa: B023

        o = {
            "max_new_tokens": 8,
            "num_beams": 5,
            "num_return_sequences": 3,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }
        o |= {"early_stopping": r.choice([False, "never"]), "length_penalty": r.choice([0.0, 1.0, 2.0])}
        o["prefix_allowed_tokens_fn"] = next_tokens
        assert_equal_to_transformers(reference, model, ids, mask, o)
        rows = generate(model, ids, mask, **o)[:, start:]
        found = [row[: row.index(EOS) + 1] for row in rows.tolist()]
        assert all(answer in found[3 * source :][:3] for source in range(len(ids)) for answer in answers)


@pytest.mark.parametrize("beams", [1, 3])
def test_allowed_tokens_win_against_earlier_constraints(beams: int) -> None:
    """They come after the bad words and the minimum length, as in transformers."""
    reference, model = pair("gpt2", 1)
    o = {
        "max_new_tokens": 4,
        "num_beams": beams,
        "bad_words_ids": [[5]],
        "min_new_tokens": 3,
        "pad_token_id": PAD,
    }
    for tokens in ([5], [EOS], [5, EOS]):
        o["prefix_allowed_tokens_fn"] = lambda batch_id, ids: tokens  # noqa: B023
        assert generate(model, IDS, **o).tolist() == reference.generate(IDS, **o).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_without_a_possible_token_leave_the_complete_hypotheses(family: str) -> None:
    reference, model = pair(family, 1)
    start = prompt_length(family, IDS)

    def end_at_once(ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, -torch.inf)
        if ids.shape[1] == start:
            kept[:, [EOS, 5]] = scores[:, [EOS, 5]]
        return kept

    o = {"max_new_tokens": 4, "num_beams": 2, "logits_processor": [end_at_once], "pad_token_id": PAD}
    got = generate(model, IDS, **o)
    assert got.tolist() == reference.generate(IDS, **o).tolist()
    assert got[:, start:].tolist() == [[EOS]]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}])
def test_the_number_of_the_source_selects_its_tokens(options: dict[str, Any]) -> None:
    """With beams too; ids is one row."""
    _, model = pair("gpt2", 1)
    allowed = [[3, 4], [5, 6], [7, 8]]
    seen: set[tuple[int, ...]] = set()

    def function(batch_id: int, ids: Tensor) -> list[int]:
        seen.add(tuple(ids.shape))
        return allowed[batch_id]

    ids = torch.tensor([[9, 10], [11, 12], [13, 14]])
    o = {"max_new_tokens": 4, "eos_token_id": None, "prefix_allowed_tokens_fn": function} | options
    rows = generate(model, ids, **o).view(3, -1, 6)
    for source, tokens in enumerate(allowed):
        assert set(rows[source, :, 2:].flatten().tolist()) <= set(tokens)
    assert seen == {(2,), (3,), (4,), (5,)}


@pytest.mark.parametrize(
    "tokens", [(3, 4), torch.tensor([3, 4]), range(3, 5), [torch.tensor(3), torch.tensor(4)]]
)
def test_allowed_tokens_may_be_any_sequence_of_numbers(tokens: Any) -> None:
    _, model = pair("gpt2", 1)
    want = generate(model, IDS, prefix_allowed_tokens_fn=lambda source, ids: [3, 4])
    assert generate(model, IDS, prefix_allowed_tokens_fn=lambda source, ids: tokens).tolist() == want.tolist()


@pytest.mark.parametrize("wrong", [[], None, "a", [VOCAB], [-1], [[3, 4]], [2**70], 3, {3, 4}, ["a"]])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_list_without_a_token_id_is_refused(wrong: Any, beams: int) -> None:
    _, model = pair("gpt2", 1)
    ids = torch.cat([IDS, IDS + 1])

    def function(batch_id: int, ids: Tensor) -> Any:
        return wrong if batch_id == 1 else [3, 4, 5]

    with pytest.raises(ValueError) as caught:
        generate(model, ids, prefix_allowed_tokens_fn=function, num_beams=beams)
    message = str(caught.value)
    assert message.startswith("prefix_allowed_tokens_fn: function returned ") and "\n" not in message
    assert message.endswith(", expected a list of token ids from 0 to 40 for batch_id 1, at least one")


# Logits processors


def add_noise(ids: Tensor, scores: Tensor) -> Tensor:
    """Other scores in every row and step, the same in both libraries."""
    return scores + torch.sin(ids.sum(1, keepdim=True) * torch.arange(VOCAB)) / 2


def forbid_even(ids: Tensor, scores: Tensor) -> Tensor:
    """In place, which must not change the model's logits."""
    scores[:, ::2] = -torch.inf
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_processors_give_the_ids_of_transformers(family: str) -> None:
    """After the constraints and before temperature, top-k and top-p."""
    for reference, model, r in cases(family, 40):
        ids, mask = inputs(r, family)
        o = any_options(r)
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            o.pop(name, None)  # could be even
        functions = r.choice([[add_noise], [add_noise, forbid_even], [forbid_even, add_noise]])
        assert_equal_to_transformers(reference, model, ids, mask, o | {"logits_processor": functions})


@pytest.mark.parametrize(
    "returned", [None, torch.zeros(1, VOCAB - 1), torch.zeros(VOCAB), torch.zeros(1, VOCAB) > 0, 5.0]
)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_processor_that_returns_no_scores_is_refused_by_name(returned: Any, beams: int) -> None:
    _, model = pair("gpt2", 1)

    def forgetful(ids: Tensor, scores: Tensor) -> Any:
        return returned

    with pytest.raises(ValueError) as caught:
        generate(model, IDS, logits_processor=[forgetful], num_beams=beams)
    message = str(caught.value)
    assert message.startswith("logits_processor: forgetful returned ") and "\n" not in message
    assert message.endswith(f" expected scores of the shape ({beams}, {VOCAB})")


@pytest.mark.parametrize("wrong", [add_noise, [5], "add_noise", {"a": add_noise}])
def test_functions_must_be_in_a_list(wrong: Any) -> None:
    _, model = pair("gpt2", 1)
    for name in ("logits_processor", "stopping_criteria"):
        with pytest.raises(ValueError, match=rf"^{name} is .*, expected a list of functions or null$"):
            generate(model, IDS, **{name: wrong})
    with pytest.raises(ValueError, match=r"^prefix_allowed_tokens_fn is \[3\], expected a function or null$"):
        generate(model, IDS, prefix_allowed_tokens_fn=[3])


def test_a_processor_that_leaves_no_token_is_named_and_the_model_is_not() -> None:
    _, model = pair("gpt2", 1)

    def forbid_all(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.fill_(-torch.inf)

    with pytest.raises(
        ValueError, match=r"no token with a finite score is left .*logits_processor=\[<function"
    ):
        generate(model, IDS, logits_processor=[forbid_all])


# Generators of single rows


Rows = dict[int, list[list[int]]]  # the samples of each source, up to the end token


def sampled(family: str, sources: Tensor, order: list[int], seed: int, o: dict[str, Any]) -> Rows:
    """Sample these sources in this order, each with its own generator."""
    _, model = pair(family, 1)
    generators = [torch.Generator().manual_seed(100 * seed + source) for source in order]
    ids = sources[order]
    out = generate(model, ids, torch.ones_like(ids), generator=generators, **o)[
        :, prompt_length(family, ids) :
    ]
    rows, count = up_to_end(out, o["eos_token_id"]), len(out) // len(order)
    return {source: rows[place * count : (place + 1) * count] for place, source in enumerate(order)}


@pytest.mark.parametrize(
    "search", [{}, {"num_return_sequences": 3}, {"num_beams": 3, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_with_its_own_generator_does_not_depend_on_the_others(
    family: str, search: dict[str, Any]
) -> None:
    """Alone, in a batch and in another order."""
    different = 0
    for seed in range(12):
        r = random.Random(seed)
        sources = torch.tensor([[r.randrange(3, VOCAB) for _ in range(5)] for _ in range(3)])
        o = sampling_options(r) | {"num_return_sequences": 1, "eos_token_id": [1, 2, 3]} | search
        together = sampled(family, sources, [0, 1, 2], seed, o)
        assert sampled(family, sources, [2, 0, 1], seed, o) == together
        for source in range(3):
            assert sampled(family, sources, [source], seed, o) == {source: together[source]}
        different += sampled(family, sources, [0, 1, 2], seed + 1, o) != together
    assert different > 6


def test_there_is_one_generator_for_each_source() -> None:
    _, model = pair("gpt2", 1)
    with pytest.raises(ValueError, match="generator is a list of 2, expected 1, one for each source"):
        generate(model, IDS, do_sample=True, generator=[torch.Generator(), torch.Generator()])


# The method of the models


@pytest.mark.parametrize("family", FAMILIES)
def test_the_method_of_the_models_is_generate(family: str) -> None:
    """Called as transformers' is."""
    reference, model = pair(family, 1)
    encoded = {"input_ids": IDS.repeat(2, 1), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    o = {"max_new_tokens": 6, "num_beams": 2, "pad_token_id": PAD}
    assert model.generate(**encoded, **o).tolist() == reference.generate(**encoded, **o).tolist()
    assert model.generate(IDS, do_sample=False).tolist() == generate(model, IDS).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_prompt_generation_begins_with_bos_as_in_transformers(family: str) -> None:
    for reference, model, r in cases(family, 40):
        o = random_options(r) | {"bos_token_id": r.randrange(3, VOCAB)}
        for name in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"):
            o.pop(name, None)  # transformers, too, may have no token left
        assert model.generate(**o).tolist() == reference.generate(**o).tolist(), o


def test_bos_is_a_token_where_it_is_the_pad_token_too() -> None:
    _, model = pair("gpt2", 1)
    assert model.generate(pad_token_id=1, eos_token_id=5).tolist() == model.generate(eos_token_id=5).tolist()
    with pytest.raises(
        ValueError, match="the prompt is empty, and bos_token_id, which would begin it, is None"
    ):
        model.generate(bos_token_id=None)


def test_t5_has_no_bos() -> None:
    with pytest.raises(
        ValueError, match=r"the prompt is empty, and bos_token_id, .* expected a token id from 0 to"
    ):
        generate(pair("t5", 1)[1])
