"""Diverse beam search against a slow implementation of one source, written after the paper.

transformers 5.23 has moved its own out of the library.
"""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcore.decoding import generate
from ftcore.decoding.diverse_beam_search import diverse_beam_search
from ftcore.models import KVCache
from tests.helpers.search_cases import (
    EOS,
    FAMILIES,
    PAD,
    VOCAB,
    cases,
    inputs,
    pair,
    prompt_length,
    up_to_end,
)

Beam = tuple[float, list[int]]  # score, new tokens


def log_probs(family: str, model: Any, ids: Tensor, mask: Tensor, beams: list[Beam]) -> list[list[float]]:
    """Of the next token of each beam, without a cache; `ids` and `mask` are (1, S)."""
    rows = torch.tensor([tokens for _, tokens in beams], dtype=torch.long).view(len(beams), -1)
    ids, mask = ids.expand(len(beams), -1), mask.expand(len(beams), -1)
    with torch.no_grad():
        if family == "t5":
            logits = model(ids, mask, torch.cat([torch.zeros(len(beams), 1, dtype=torch.long), rows], 1))
        else:
            logits = model(torch.cat([ids, rows], 1), torch.cat([mask, torch.ones_like(rows)], 1))
    return logits[:, -1].log_softmax(-1).tolist()


def slow_search(family: str, model: Any, ids: Tensor, mask: Tensor, o: dict[str, Any]) -> list[Beam]:
    """The complete hypotheses of all groups, best first."""
    groups, most, ends = o["num_beam_groups"], o["max_new_tokens"], o["eos_token_id"]
    beams = o["num_beams"] // groups
    running: list[list[Beam]] = [[(0.0, [])] for _ in range(groups)]
    complete: list[list[Beam]] = [[] for _ in range(groups)]
    done = [False] * groups
    for step in range(1, most + 1):
        chosen: Counter[int] = Counter()
        for g in [g for g in range(groups) if not done[g]]:
            candidates = [
                (score + log_prob - o["diversity_penalty"] * chosen[token], [*tokens, token])
                for (score, tokens), row in zip(
                    running[g], log_probs(family, model, ids, mask, running[g]), strict=True
                )
                for token, log_prob in enumerate(row)
                if token not in ends or step > o["min_new_tokens"]
            ]
            candidates.sort(reverse=True)
            ended = [
                (score / step ** o["length_penalty"], tokens)
                for score, tokens in candidates[:beams]
                if tokens[-1] in ends or step == most
            ]
            complete[g] = sorted(complete[g] + ended, reverse=True)[:beams]
            running[g] = [beam for beam in candidates if beam[1][-1] not in ends][:beams]
            choice = running[g] if step < most else candidates[:beams]
            chosen.update(tokens[-1] for _, tokens in choice)
            if len(complete[g]) == beams:
                longest = most if o["early_stopping"] == "never" and o["length_penalty"] > 0 else step
                hope = running[g][0][0] / longest ** o["length_penalty"]
                done[g] = o["early_stopping"] is True or hope <= complete[g][-1][0]
    return sorted((beam for group in complete for beam in group), reverse=True)


def options(r: random.Random) -> dict[str, Any]:
    beams, groups = r.choice([(2, 2), (4, 2), (6, 3), (6, 2)])
    return {
        "num_beams": beams,
        "num_beam_groups": groups,
        "diversity_penalty": r.choice([0.0, 0.3, 1.0, 20.0]),
        "num_return_sequences": r.choice([1, beams]),
        "max_new_tokens": r.choice([1, 5]),
        "min_new_tokens": r.choice([0, 0, 1]),
        "length_penalty": r.choice([1.0, 0.0, 2.0]),
        "early_stopping": r.choice([True, False, "never"]),
        "eos_token_id": r.choice([[EOS], [*range(1, 9)]]),
        "pad_token_id": PAD,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_scores_are_those_of_a_slow_search(family: str) -> None:
    for _, model, r in cases(family, 40):
        ids, mask = inputs(r, family)
        o = options(r)
        got = generate(model, ids, mask, **o, return_scores=True)
        want = [
            beam
            for row in range(len(ids))
            for beam in slow_search(family, model, ids[row : row + 1], mask[row : row + 1], o)[
                : o["num_return_sequences"]
            ]
        ]
        new = got.ids[:, prompt_length(family, ids) :]
        assert up_to_end(new, o["eos_token_id"]) == [tokens for _, tokens in want], o
        assert got.sequence_scores.tolist() == pytest.approx([score for score, _ in want], rel=1e-5), o
        lengths = torch.tensor([len(tokens) for _, tokens in want])
        sums = got.token_scores.sum(1) / lengths ** o["length_penalty"]
        torch.testing.assert_close(sums, got.sequence_scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_group_is_beam_search(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, model, r in cases(family, 20):
        ids, mask = inputs(r, family)
        o = options(r) | {"num_beam_groups": 1, "diversity_penalty": 0.0, "repetition_penalty": 1.3}
        want = generate(model, ids, mask, **o)
        with monkeypatch.context() as patch:
            patch.setattr("ftcore.decoding.search.beam_search", lambda *args: diverse_beam_search(*args[:6]))
            assert generate(model, ids, mask, **o).tolist() == want.tolist(), o


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_penalty_every_group_is_the_same_beam_search(family: str) -> None:
    for _, model, r in cases(family, 20):
        ids, mask = inputs(r, family)
        o = options(r) | {"diversity_penalty": 0.0}
        groups, beams = o["num_beam_groups"], o["num_beams"] // o["num_beam_groups"]
        got = generate(model, ids, mask, **o | {"num_return_sequences": o["num_beams"]})
        of_one = {"num_beams": beams, "num_beam_groups": 1, "num_return_sequences": beams}
        if beams > 1:
            want = generate(model, ids, mask, **o | of_one)
            assert got.tolist() == want.repeat_interleave(groups, 0).tolist(), o
        assert len(set(map(tuple, got.tolist()))) <= beams * len(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_high_penalty_keeps_the_groups_apart(family: str) -> None:
    _, model = pair(family, 1)
    o = {"num_beams": 4, "num_beam_groups": 4, "num_return_sequences": 4, "eos_token_id": None}
    ids = torch.tensor([[5, 6, 7]])
    got = generate(model, ids, **o, diversity_penalty=50.0, max_new_tokens=5)[:, -5:]
    assert all(len(set(column)) == 4 for column in got.T.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_batching_and_a_kept_cache_do_not_change_the_ids(family: str) -> None:
    _, model = pair(family, 1)
    o = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4}
    o |= {"max_new_tokens": 8, "eos_token_id": [1, 3, 4, 5], "pad_token_id": PAD}
    prompts = [[5, 9, 3, 12, 8], [7, 6], [30, 22, 4]]
    ids = torch.tensor([[PAD] * (5 - len(row)) + row for row in prompts])
    together = generate(model, ids, (ids != PAD).long(), **o)[:, prompt_length(family, ids) :]
    for row, prompt in enumerate(prompts):
        alone = generate(model, torch.tensor([prompt]), **o, cache=KVCache(20))
        alone = alone[:, prompt_length(family, torch.tensor([prompt])) :]
        ends = o["eos_token_id"]
        assert up_to_end(together[4 * row : 4 * row + 4], ends) == up_to_end(alone, ends)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 5}, "num_beams is 5, expected a multiple of num_beam_groups, 2"),
        ({"num_beams": 1}, "num_beams is 1, expected a multiple of num_beam_groups, 2"),
        ({"do_sample": True}, "num_beam_groups above 1 needs do_sample=False"),
        ({"num_beam_groups": 1}, "diversity_penalty needs num_beam_groups above 1"),
        ({"num_beam_groups": 0}, "num_beam_groups is 0, expected a whole number of at least 1"),
        ({"diversity_penalty": -1.0}, "diversity_penalty is -1.0"),
        ({"observer": print}, "num_beam_groups=1"),
        (
            {"suppress_tokens": [*range(VOCAB)]},
            "no token with a finite score is left after 3 tokens of row 0",
        ),
    ],
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    _, model = pair("gpt2", 0)
    o: dict[str, Any] = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5} | changes
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, torch.tensor([[5, 6, 7]]), **o)
    assert "\n" not in str(caught.value)
