"""Logits processors: functions that change the scores of the next token, given the tokens so far.

A processor takes `ids` (R, T), the tokens so far, and `scores` (R, V) of the next token: logits in greedy
search and sampling, log-probabilities in beam search. It returns new scores, -inf for a forbidden token, and
has no state. `processors_for` selects those that the arguments enable, in Hugging Face's order: constraints
first, then the caller's, then, when sampling, those that reshape and truncate the distribution, then
renormalization.

Papers: repetition penalty, Keskar et al. 2019 (CTRL), section 4.1; no repeated n-grams, Paulus et al. 2017,
section 2.5; top-k, Fan et al. 2018, section 5.1; top-p, Holtzman et al. 2019, section 3.1; typical, Meister
et al. 2022, section 4; min-p, Nguyen et al. 2024.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ftcore.decoding.arguments import Arguments
from ftcore.decoding.inputs import wrong_result

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # (ids, scores) -> scores
PrefixFunction = Callable[[int, Tensor], Sequence[int]]  # (batch_id, ids (T,)) -> the ids that may follow


def processors_for(
    arguments: Arguments,
    *,
    source_ids: Tensor,
    prompt_length: int,
    min_length: int,
    max_length: int,
    prompt_mask: Tensor | None = None,
) -> list[LogitsProcessor]:
    """The processors that `arguments` enable, in the order in which they apply.

    Args:
        source_ids: (B, S) GPT-2's prompts or T5's encoder inputs, with their padding.
        prompt_length: tokens of a row at the beginning: GPT-2's prompt, or T5's decoder prefix.
        min_length, max_length: of a row, prompt included.
        prompt_mask: (B, T) of the prompt, padded on the left; None without padding.
    """
    chosen: list[LogitsProcessor] = []

    def use(processor: Callable[..., Tensor], **options: Any) -> None:
        chosen.append(partial(processor, **options))

    if arguments.repetition_penalty != 1.0:
        first_token = None if prompt_mask is None else prompt_mask.argmax(1)
        use(penalize_repetition, penalty=arguments.repetition_penalty, first_token=first_token)
    if arguments.no_repeat_ngram_size > 0:
        use(forbid_repeated_ngrams, size=arguments.no_repeat_ngram_size)
    if arguments.encoder_no_repeat_ngram_size > 0:
        use(forbid_ngrams_of_source, source_ids=source_ids, size=arguments.encoder_no_repeat_ngram_size)
    # As in Hugging Face, an EOS among the bad words is ignored: rows could never end.
    ends = [[eos] for eos in arguments.eos_ids]
    if bad_words := [word for word in arguments.bad_words_ids or [] if word not in ends]:
        use(forbid_words, words=bad_words)
    if min_length > 0 and arguments.eos_ids:
        use(forbid_early_end, min_length=min_length, eos_ids=arguments.eos_ids)
    if arguments.prefix_allowed_tokens_fn is not None:
        beams = arguments.num_beams // arguments.num_beam_groups  # the groups are processed separately
        use(keep_allowed, function=arguments.prefix_allowed_tokens_fn, beams=beams)
    if arguments.forced_bos_token_id is not None:
        use(force_at, length=1, tokens=[arguments.forced_bos_token_id])
    if arguments.forced_eos_ids:
        use(force_at, length=max_length - 1, tokens=arguments.forced_eos_ids)
    if arguments.exponential_decay_length_penalty is not None and arguments.eos_ids:
        start, factor = arguments.exponential_decay_length_penalty
        use(favor_end, start=prompt_length + start, factor=factor, eos_ids=arguments.eos_ids)
    if arguments.suppress_tokens:
        use(suppress, tokens=arguments.suppress_tokens)
    if arguments.begin_suppress_tokens:
        is_forced = prompt_length == 1 and arguments.forced_bos_token_id is not None
        use(suppress, tokens=arguments.begin_suppress_tokens, length=prompt_length + is_forced)
    for function in arguments.logits_processor or []:
        use(apply_function, function=function)
    if arguments.do_sample:
        # Each beam keeps at least one candidate that is not an EOS, or all beams might end at once.
        keep = 1 if arguments.num_beams == 1 else max(2, 1 + len(arguments.eos_ids))
        if arguments.temperature != 1.0:
            use(apply_temperature, temperature=arguments.temperature)
        if arguments.top_k:
            use(keep_top_k, k=max(arguments.top_k, keep))
        if arguments.top_p < 1.0:
            use(keep_top_p, p=arguments.top_p, keep=keep)
        if arguments.min_p is not None:
            use(keep_min_p, p=arguments.min_p, keep=keep)
        if arguments.typical_p < 1.0:
            use(keep_typical, mass=arguments.typical_p, keep=keep)
    if arguments.renormalize_logits:
        chosen.append(renormalize)
    return chosen


def apply_processors(processors: list[LogitsProcessor], ids: Tensor, scores: Tensor) -> Tensor:
    """Apply the processors in order: `ids` (R, T), `scores` (R, V) -> (R, V)."""
    for processor in processors:
        scores = processor(ids, scores)
    return scores


# Constraints


def penalize_repetition(
    ids: Tensor, scores: Tensor, *, penalty: float, first_token: Tensor | None = None
) -> Tensor:
    """Make every token that occurs in the row less likely by the factor `penalty`.

    `first_token` (B,) is the position of each source's first token after the left padding.
    """
    is_token = torch.ones_like(ids, dtype=torch.bool)
    if first_token is not None:
        first_token = first_token.repeat_interleave(len(ids) // len(first_token))  # (R,)
        is_token = torch.arange(ids.shape[1], device=ids.device) >= first_token[:, None]
    # Divide positive scores and multiply negative ones: both fall if penalty > 1.
    penalized = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(token_set(ids, is_token, scores), penalized, scores)


def forbid_repeated_ngrams(ids: Tensor, scores: Tensor, *, size: int) -> Tensor:
    """No n-gram of `size` tokens occurs twice in a row, prompt and padding included: (N, V)."""
    return forbid_ngrams_of_source(ids, scores, source_ids=ids, size=size)


def forbid_ngrams_of_source(ids: Tensor, scores: Tensor, *, source_ids: Tensor, size: int) -> Tensor:
    """No n-gram of `size` tokens of the row's source occurs; `source_ids` is (B, S), its padding counts."""
    if min(ids.shape[1] + 1, source_ids.shape[1]) < size:
        return scores
    source_ids = source_ids.repeat_interleave(len(ids) // len(source_ids), 0)  # (R, S)
    ngrams = source_ids.unfold(1, size, 1)  # (R, S - size + 1, size)
    prefix = ids[:, ids.shape[1] - size + 1 :]  # (R, size - 1) of the n-gram that the next token completes
    same_prefix = (ngrams[:, :, :-1] == prefix[:, None]).all(-1)  # (R, S - size + 1)
    return scores.masked_fill(token_set(ngrams[:, :, -1], same_prefix, scores), -torch.inf)


def forbid_words(ids: Tensor, scores: Tensor, *, words: list[list[int]]) -> Tensor:
    """No word, a sequence of token ids, is completed: scores (N, V)."""
    scores = scores.clone()
    for *prefix, last in words:
        if len(prefix) <= ids.shape[1]:
            matches = (ids[:, ids.shape[1] - len(prefix) :] == ids.new_tensor(prefix)).all(-1)  # (R,)
            scores[:, last].masked_fill_(matches, -torch.inf)
    return scores


def forbid_early_end(ids: Tensor, scores: Tensor, *, min_length: int, eos_ids: list[int]) -> Tensor:
    """No EOS before the row, prompt included, has `min_length` tokens: (N, V)."""
    return suppress(ids, scores, tokens=eos_ids) if ids.shape[1] < min_length else scores


def keep_allowed(ids: Tensor, scores: Tensor, *, function: PrefixFunction, beams: int) -> Tensor:
    """Keep the tokens that `function` allows after each row (De Cao et al. 2021, section 3.2): (N, V).

    Where they are impossible already, in all `beams` rows of a source, they become equally likely.
    """
    mask = torch.full_like(scores, -torch.inf)
    for row in range(len(ids)):
        mask[row, allowed_tokens(function, row // beams, ids[row], scores.shape[-1])] = 0.0
    kept = scores + mask
    impossible = kept.amax(-1).view(-1, beams).amax(1) == -torch.inf  # (B,)
    return torch.where(impossible.repeat_interleave(beams)[:, None], mask, kept)


def allowed_tokens(function: PrefixFunction, batch_id: int, ids: Tensor, vocab_size: int) -> Tensor:
    """What `function` returns for one row, as a tensor of ids. Raises ValueError if it is something else."""
    returned: Any = function(batch_id, ids)
    try:
        tokens = torch.as_tensor(returned, dtype=torch.long, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):  # not numbers
        tokens = torch.tensor([-1])
    if tokens.dim() != 1 or len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= vocab_size:
        expected = f"a list of token ids from 0 to {vocab_size - 1} for batch_id {batch_id}, at least one"
        raise wrong_result("prefix_allowed_tokens_fn", function, returned, expected)
    return tokens.to(ids.device)


def force_at(ids: Tensor, scores: Tensor, *, length: int, tokens: list[int]) -> Tensor:
    """After exactly `length` tokens only `tokens` are possible, equally likely: (N, V)."""
    if ids.shape[1] != length:
        return scores
    return torch.full_like(scores, -torch.inf).index_fill_(1, within_vocabulary(tokens, scores), 0.0)


def favor_end(ids: Tensor, scores: Tensor, *, start: int, factor: float, eos_ids: list[int]) -> Tensor:
    """Raise the scores of EOS by their size times (factor ** tokens after the first `start` - 1): (N, V)."""
    tokens_after = ids.shape[1] - start
    if tokens_after <= 0:
        return scores
    try:
        growth = factor**tokens_after - 1
    except OverflowError:
        growth = math.inf
    ends = within_vocabulary(eos_ids, scores)
    penalty = (scores[:, ends].abs() * growth).masked_fill(~scores[:, ends].isfinite(), 0.0)
    return scores + torch.zeros_like(scores).index_copy_(1, ends, penalty)


def suppress(ids: Tensor, scores: Tensor, *, tokens: list[int], length: int | None = None) -> Tensor:
    """`tokens` are impossible; with `length`, only after exactly that many tokens: (N, V)."""
    if length is not None and ids.shape[1] != length:
        return scores
    return scores.index_fill(1, within_vocabulary(tokens, scores), -torch.inf)


def apply_function(ids: Tensor, scores: Tensor, *, function: LogitsProcessor) -> Tensor:
    """A processor of the caller, on a copy of the scores, which it may change in place.

    Raises:
        ValueError: it returned something else than scores of the same shape.
    """
    changed: Any = function(ids, scores.clone())
    if not (isinstance(changed, Tensor) and changed.shape == scores.shape and changed.is_floating_point()):
        raise wrong_result(
            "logits_processor", function, changed, f"scores of the shape {tuple(scores.shape)}"
        )
    return changed.to(scores)


def renormalize(ids: Tensor, scores: Tensor) -> Tensor:
    """Log-probabilities again, after other processors have changed their sum: (N, V)."""
    return scores.log_softmax(-1)


# Sampling


def apply_temperature(ids: Tensor, scores: Tensor, *, temperature: float) -> Tensor:
    """Divide by the temperature: below 1 the distribution gets sharper, above 1 flatter. (N, V)."""
    return scores / temperature


def keep_top_k(ids: Tensor, scores: Tensor, *, k: int) -> Tensor:
    """Keep the k most likely tokens, and those that tie with the last of them: (N, V)."""
    lowest = scores.topk(min(k, scores.shape[-1])).values[:, -1:]  # (R, 1)
    return scores.masked_fill(scores < lowest, -torch.inf)


def keep_top_p(ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Keep the nucleus: the smallest set of most likely tokens whose probability reaches p. (N, V)."""
    ascending, order = scores.sort(-1)
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - p
    outside[:, -keep:] = False
    return scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)


def keep_min_p(ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Keep tokens at least p times as likely as the most likely one: (N, V)."""
    probabilities = scores.softmax(-1)
    outside = probabilities < p * probabilities.amax(-1, keepdim=True)
    most_likely = probabilities.topk(min(keep, scores.shape[-1])).indices
    return scores.masked_fill(outside.scatter(1, most_likely, False), -torch.inf)


def keep_typical(ids: Tensor, scores: Tensor, *, mass: float, keep: int = 1) -> Tensor:
    """Keep tokens of surprisal nearest to the entropy, until their probability reaches `mass`: (N, V)."""
    log_probs = scores.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).nansum(-1, keepdim=True)  # 0 * -inf counts as 0
    distance, order = (-log_probs - entropy).abs().sort(-1)  # the most typical first
    cumulative = scores.gather(1, order).softmax(-1).cumsum(-1)
    last = (cumulative < mass).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)  # (R, 1)
    outside = distance > distance.gather(1, last)
    outside[:, :keep] = False
    return scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)


# Token sets


def within_vocabulary(tokens: list[int], scores: Tensor) -> Tensor:
    """The ids that scores (N, V) have a column for: an EOS may exceed it."""
    within = [token for token in tokens if token < scores.shape[-1]]
    return torch.tensor(within, dtype=torch.long, device=scores.device)


def token_set(ids: Tensor, counted: Tensor, scores: Tensor) -> Tensor:
    """(R, V) bool: the tokens that occur in each row of `ids` (R, T) where `counted` (R, T) is True."""
    vocabulary = scores.shape[-1]
    # An extra last column takes uncounted ids, and pad ids beyond the vocabulary.
    columns = ids.masked_fill(~counted, vocabulary).clamp(max=vocabulary)
    found = torch.zeros(len(ids), vocabulary + 1, dtype=torch.bool, device=ids.device)
    return found.scatter_(1, columns, True)[:, :vocabulary]
