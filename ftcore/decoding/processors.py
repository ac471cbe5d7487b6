"""The rules of generation: each looks at the tokens so far and changes the scores of the next one.

A rule is a function of `ids` (R, T), the tokens of R rows so far, and `scores` (R, V), what the model thinks
of each of V next tokens: logits in greedy search and sampling, log-probabilities in beam search. It returns
new scores and keeps no state; a token that it forbids scores minus infinity. `rules` picks those that the
arguments ask for, in the one order that counts: first what must and must not be said, then, when sampling,
what reshapes and cuts the distribution.

Papers: repetition penalty, Keskar et al. 2019 (CTRL), section 4.1; no repeated n-grams, Paulus et al. 2017,
section 2.5; top-k, Fan et al. 2018, section 5.1; top-p, Holtzman et al. 2019, section 3.1; typical, Meister
et al. 2022, section 4; min-p, Nguyen et al. 2024.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ftcore.decoding.arguments import Arguments

Rule = Callable[[Tensor, Tensor], Tensor]  # (ids, scores) -> scores

FORBIDDEN = float("-inf")


def rules(
    arguments: Arguments,
    *,
    min_length: int,
    max_length: int,
    first_real: Tensor | None = None,
) -> list[Rule]:
    """The rules that `arguments` ask for, in the order in which they apply.

    Args:
        arguments: of this call.
        min_length, max_length: of a row, prompt included.
        first_real: (R,) the position of each row's first token that is no padding; None for no padding.
    """
    chosen: list[Rule] = []
    if arguments.repetition_penalty != 1.0:
        penalty = arguments.repetition_penalty
        chosen.append(partial(penalise_repetition, penalty=penalty, first_real=first_real))
    if arguments.no_repeat_ngram_size > 0:
        chosen.append(partial(forbid_repeated_ngrams, size=arguments.no_repeat_ngram_size))
    # An EOS among the bad words is ignored, as Hugging Face does: rows could never end.
    ends = [[eos] for eos in arguments.eos_ids]
    if bad_words := [word for word in arguments.bad_words_ids or [] if word not in ends]:
        chosen.append(partial(forbid_words, words=bad_words))
    if min_length > 0 and arguments.eos_ids:
        chosen.append(partial(forbid_early_end, min_length=min_length, eos_ids=arguments.eos_ids))
    if arguments.forced_bos_token_id is not None:
        chosen.append(partial(force_at, length=1, tokens=[arguments.forced_bos_token_id]))
    if arguments.forced_eos_ids:
        chosen.append(partial(force_at, length=max_length - 1, tokens=arguments.forced_eos_ids))
    return chosen + (warpers(arguments) if arguments.do_sample else [])


def warpers(arguments: Arguments) -> list[Rule]:
    """The rules of sampling alone: they reshape the distribution and cut its tail."""
    # Of each beam's choices one must be no EOS, or all might end at once with better ones unexplored.
    keep = 1 if arguments.num_beams == 1 else max(2, 1 + len(arguments.eos_ids))
    chosen: list[Rule] = []
    if arguments.temperature != 1.0:
        chosen.append(partial(apply_temperature, temperature=arguments.temperature))
    if arguments.top_k:
        chosen.append(partial(keep_top_k, k=max(arguments.top_k, keep)))
    if arguments.top_p < 1.0:
        chosen.append(partial(keep_top_p, p=arguments.top_p, keep=keep))
    if arguments.min_p is not None:
        chosen.append(partial(keep_min_p, p=arguments.min_p, keep=keep))
    if arguments.typical_p < 1.0:
        chosen.append(partial(keep_typical, mass=arguments.typical_p, keep=keep))
    return chosen


def apply_rules(chosen: list[Rule], ids: Tensor, scores: Tensor) -> Tensor:
    """All rules in turn: `ids` (R, T), `scores` (R, V) -> (R, V)."""
    for rule in chosen:
        scores = rule(ids, scores)
    return scores


# What must and must not be said


def penalise_repetition(
    ids: Tensor, scores: Tensor, *, penalty: float, first_real: Tensor | None = None
) -> Tensor:
    """Make every token that already stands in the row (padding apart) less likely by the factor `penalty`."""
    real = torch.ones_like(ids, dtype=torch.bool)
    if first_real is not None:
        real = torch.arange(ids.shape[1], device=ids.device) >= first_real[:, None]
    # Divide a positive score, multiply a negative one: both ways it falls when penalty > 1.
    penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(tokens_among(ids, real, scores), penalised, scores)


def forbid_repeated_ngrams(ids: Tensor, scores: Tensor, *, size: int) -> Tensor:
    """No run of `size` tokens may occur twice in a row: prompt, start token and padding count as text too."""
    if ids.shape[1] < size:
        return scores
    ngrams = ids.unfold(1, size, 1)  # (R, T - size + 1, size): every run of that length
    begun = ids[:, ids.shape[1] - size + 1 :]  # (R, size - 1): the run that the next token would complete
    same_start = (ngrams[:, :, :-1] == begun[:, None]).all(-1)  # (R, T - size + 1)
    return scores.masked_fill(tokens_among(ngrams[:, :, -1], same_start, scores), FORBIDDEN)


def forbid_words(ids: Tensor, scores: Tensor, *, words: list[list[int]]) -> Tensor:
    """No word may be completed, a word being a sequence of token ids."""
    scores = scores.clone()
    for *start, last in words:
        if len(start) <= ids.shape[1]:
            about_to = (ids[:, ids.shape[1] - len(start) :] == ids.new_tensor(start)).all(-1)  # (R,)
            scores[:, last].masked_fill_(about_to, FORBIDDEN)
    return scores


def forbid_early_end(ids: Tensor, scores: Tensor, *, min_length: int, eos_ids: list[int]) -> Tensor:
    """No EOS before the row, prompt included, has `min_length` tokens."""
    if ids.shape[1] >= min_length:
        return scores
    return scores.index_fill(1, tokens_in(eos_ids, scores), FORBIDDEN)


def force_at(ids: Tensor, scores: Tensor, *, length: int, tokens: list[int]) -> Tensor:
    """A row of exactly `length` tokens goes on with one of `tokens`, surely."""
    if ids.shape[1] != length:
        return scores
    return torch.full_like(scores, FORBIDDEN).index_fill_(1, tokens_in(tokens, scores), 0.0)


# How to draw


def apply_temperature(ids: Tensor, scores: Tensor, *, temperature: float) -> Tensor:
    """Below 1 the likely grow likelier; above 1 the differences shrink."""
    return scores / temperature


def keep_top_k(ids: Tensor, scores: Tensor, *, k: int) -> Tensor:
    """Only the k likeliest tokens stay, and whatever ties with the last of them."""
    weakest = scores.topk(min(k, scores.shape[-1])).values[:, -1:]  # (R, 1)
    return scores.masked_fill(scores < weakest, FORBIDDEN)


def keep_top_p(ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """The nucleus: the smallest set of likeliest tokens whose probability reaches p."""
    ascending, order = scores.sort(-1)
    # Summed from the unlikely end: whatever lies within the lowest 1 - p of the probability goes.
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - p
    outside[:, -keep:] = False
    return scores.masked_fill(outside.scatter(1, order, outside), FORBIDDEN)


def keep_min_p(ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Only tokens at least p times as likely as the likeliest stay: wide where unsure, narrow where sure."""
    probabilities = scores.softmax(-1)
    outside = probabilities < p * probabilities.amax(-1, keepdim=True)
    likeliest = probabilities.topk(min(keep, scores.shape[-1])).indices
    return scores.masked_fill(outside.scatter(1, likeliest, False), FORBIDDEN)


def keep_typical(ids: Tensor, scores: Tensor, *, mass: float, keep: int = 1) -> Tensor:
    """The tokens whose surprise lies nearest to the expected one, until their probability reaches `mass`."""
    log_probs = scores.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).nansum(-1, keepdim=True)  # 0 times -inf counts as 0
    oddness, order = (-log_probs - entropy).abs().sort(-1)  # the most typical first
    reached = scores.gather(1, order).softmax(-1).cumsum(-1)
    last = (reached < mass).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)  # (R, 1)
    outside = oddness > oddness.gather(1, last)
    outside[:, :keep] = False
    return scores.masked_fill(outside.scatter(1, order, outside), FORBIDDEN)


# Sets of tokens


def tokens_in(tokens: list[int], scores: Tensor) -> Tensor:
    """Those of `tokens` that the vocabulary has: an EOS may lie beyond it."""
    within = [token for token in tokens if token < scores.shape[-1]]
    return torch.tensor(within, dtype=torch.long, device=scores.device)


def tokens_among(ids: Tensor, counted: Tensor, scores: Tensor) -> Tensor:
    """(R, V) bool: which tokens stand in each row of `ids` (R, T), where `counted` (R, T) holds."""
    vocabulary = scores.shape[-1]
    # What does not count, and a pad id beyond the vocabulary, falls into a spare last column.
    columns = ids.masked_fill(~counted, vocabulary).clamp(max=vocabulary)
    found = torch.zeros(len(ids), vocabulary + 1, dtype=torch.bool, device=ids.device)
    return found.scatter_(1, columns, True)[:, :vocabulary]
