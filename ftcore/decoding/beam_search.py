"""Beam search. The letters of shapes are those of search.py."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ftcore.decoding.arguments import PROCESSOR_ARGUMENTS, Arguments
from ftcore.decoding.processors import LogitsProcessor, apply_processors
from ftcore.decoding.sampling import Generators, ScoredIds, draw, search_error
from ftcore.decoding.state import DecoderState
from ftcore.decoding.stopping import EndOfRow

# Below every real score, yet finite, so that the order of such hypotheses is defined.
NEG_INF = -1e9


@dataclass
class Hypotheses:
    """M sequences of each of B sources."""

    ids: Tensor  # (B, M, L) prompt and tokens, then pad up to the maximum length
    token_scores: Tensor  # (B, M, L) log-probability of each generated token, 0 at all others
    scores: Tensor  # (B, M) sum of log-probabilities; of complete ones, that / new_tokens ** length_penalty
    ended: Tensor  # (B, M) bool: the last token ends the row, or the maximum length is reached
    new_tokens: Tensor  # (B, M) number of generated tokens, EOS included
    parents: Tensor  # (B, M) the running beam, 0 to N - 1, that it extends

    def gather(self, index: Tensor) -> "Hypotheses":
        """The hypotheses at `index` (B, M') of each source."""
        of_tokens = index[:, :, None]
        return Hypotheses(
            self.ids.take_along_dim(of_tokens, 1),
            self.token_scores.take_along_dim(of_tokens, 1),
            *(tensor.gather(1, index) for tensor in (self.scores, self.ended, self.new_tokens, self.parents)),
        )

    def cat(self, other: "Hypotheses") -> "Hypotheses":
        """These and then the others, of each source."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Hypotheses(*(torch.cat(pair, 1) for pair in pairs))


# Called as observer(length, candidates, complete, running): the step's candidates, of `length` tokens, and
# the complete and running hypotheses chosen from them.
BeamObserver = Callable[[int, Hypotheses, Hypotheses, Hypotheses], None]


def beam_search(
    state: DecoderState,
    prompt: Tensor,
    processors: list[LogitsProcessor],
    end_of_row: EndOfRow,
    arguments: Arguments,
    max_length: int,
    generator: Generators | None = None,
    observer: BeamObserver | None = None,
) -> ScoredIds:
    """Beam search: `prompt` (B, T) -> ids (B * num_return_sequences, up to L).

    Every source has two sets of N hypotheses: the `running` beams, and the best `complete` ones so far. A
    step proposes K candidates, the best one-token extensions of the running beams. Those that end compete
    with the complete hypotheses; the best of the others are the next running beams.
    """
    sources, prompt_length = prompt.shape
    beams = arguments.num_beams
    running, complete = first_hypotheses(prompt, beams, max_length, arguments.pad_id)
    # Whether a source's running beams may still beat its complete hypotheses; once False it stays so.
    can_improve = torch.ones(sources, 1, dtype=torch.bool, device=prompt.device)
    unfinished = can_improve[:, 0]  # (B,)
    logits = state.prefill(prompt, beams)  # (R, V)
    for length in range(prompt_length, max_length):
        ids = running.ids[:, :, :length].flatten(0, 1)  # (R, T)
        # Masked log-probabilities are not renormalized.
        log_probs = apply_processors(processors, ids, logits.log_softmax(-1))
        failed = unfinished & cannot_continue(running, complete, log_probs)  # (B,)
        candidates = propose(running, log_probs, length, max_length, end_of_row, arguments, generator)
        complete = best_complete(complete, candidates, can_improve, arguments)
        prefix = common_prefix_length(running.ids[:, :, :length])  # (1,)
        running = best_running(candidates, beams)
        if observer is not None:
            observer(length + 1, candidates, complete, running)
        can_improve = can_improve & may_improve(running, complete, max_length - prompt_length, arguments)
        unfinished = (can_improve & ~stops_early(complete, arguments))[:, 0] & ~candidates.ended.all()
        # The only device synchronization of a step.
        *still_unfinished, any_failed, prefix_length = torch.cat(
            [unfinished.long(), failed.any(0, keepdim=True).long(), prefix]
        ).tolist()
        if any_failed:
            raise search_error(state, arguments, ids, logits, failed.repeat_interleave(beams))
        if not state.drop_finished(still_unfinished):
            break
        state.reorder(running.parents, prefix_length)
        logits = state(running.ids[:, :, length].reshape(-1, 1))
    return returned_hypotheses(complete, prompt_length, arguments)


def first_hypotheses(
    prompt: Tensor, beams: int, max_length: int, pad_id: int
) -> tuple[Hypotheses, Hypotheses]:
    """The running beams before the first step, and as many empty slots for complete hypotheses, (B, N)."""
    ids = prompt.new_full((len(prompt), beams, max_length), pad_id)
    ids[:, :, : prompt.shape[1]] = prompt[:, None]
    token_scores = torch.zeros(ids.shape, device=prompt.device)
    zeros = ids.new_zeros(ids.shape[:2])  # (B, N)
    empty = token_scores.new_full(ids.shape[:2], NEG_INF)
    complete = Hypotheses(ids, token_scores, empty, ended=zeros.bool(), new_tokens=zeros, parents=zeros)
    # All beams of a source are identical at first, so only the first one counts.
    scores = empty.clone()
    scores[:, 0] = 0.0
    return replace(complete, scores=scores), complete


def common_prefix_length(ids: Tensor) -> Tensor:
    """Number of leading tokens, (1,), in which the hypotheses of each source agree; `ids` is (B, N, T)."""
    agree = (ids == ids[:, :1]).all(1).all(0)  # (T,)
    return agree.cumprod(0).sum(0, keepdim=True)


def cannot_continue(running: Hypotheses, complete: Hypotheses, log_probs: Tensor) -> Tensor:
    """(B,) bool: is the best candidate's score NaN or infinite? `log_probs` is (R, V).

    Without a possible token, the complete hypotheses are the result, as in transformers.
    """
    best = (running.scores + log_probs.amax(-1).view_as(running.scores)).amax(1)
    is_exhausted = best.isneginf() & complete.ended.any(1)
    return ~best.isfinite() & ~is_exhausted


def propose(
    running: Hypotheses,
    log_probs: Tensor,
    length: int,
    max_length: int,
    end_of_row: EndOfRow,
    arguments: Arguments,
    generator: Generators | None = None,
) -> Hypotheses:
    """The K candidates of each source: running beams plus one token, with `log_probs` (R, V).

    K is large enough for N candidates without EOS. They are sorted by score or, when sampling, as drawn.
    """
    sources, beams = running.scores.shape
    vocabulary = log_probs.shape[-1]
    totals = running.scores[:, :, None] + log_probs.view(sources, beams, vocabulary)  # (B, N, V)
    totals = totals.flatten(1)  # (B, N * V): the beams of a source compete
    count = min(beams * max(2, 1 + len(arguments.eos_ids)), totals.shape[1])
    chosen = draw(totals, count, generator) if arguments.do_sample else totals.topk(count).indices  # (B, K)
    parents, tokens = chosen // vocabulary, chosen % vocabulary
    candidates = running.gather(parents)
    candidates.ids[:, :, length] = tokens
    candidates.token_scores[:, :, length] = log_probs.view(sources, -1).gather(1, chosen)
    ended = end_of_row(candidates.ids[:, :, : length + 1].flatten(0, 1)).view_as(tokens)
    return replace(
        candidates,
        scores=totals.gather(1, chosen),
        ended=ended | (length + 1 == max_length),
        new_tokens=candidates.new_tokens + 1,
        parents=parents,
    )


def best_complete(
    complete: Hypotheses, candidates: Hypotheses, can_improve: Tensor, arguments: Arguments
) -> Hypotheses:
    """The N best of the complete hypotheses and of the candidates that have ended, by source: (B, N).

    A sum of log-probabilities falls with every token, which favors short hypotheses. So it is divided by the
    number of new tokens to the power of `length_penalty` (Wu et al. 2016, section 7, has another divisor).
    """
    beams = complete.scores.shape[1]
    # Only the N best candidates may end; lower-ranked ones keep enough beams running.
    rank = torch.arange(candidates.scores.shape[1], device=can_improve.device)
    ended = candidates.ended & (rank < beams)
    full = stops_early(complete, arguments)  # (B, 1)
    excluded = (~ended).float() + (~can_improve).float() + full.float()  # number of reasons
    scores = candidates.scores / candidates.new_tokens**arguments.length_penalty + NEG_INF * excluded
    scores = scores.nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)  # of sources that are done
    both = complete.cat(replace(candidates, scores=scores, ended=ended))
    return both.gather(both.scores.topk(beams).indices)


def best_running(candidates: Hypotheses, beams: int) -> Hypotheses:
    """The best candidates that have not ended, (B, N); ended ones fill up."""
    scores = candidates.scores + NEG_INF * candidates.ended
    return replace(candidates, scores=scores).gather(scores.topk(beams).indices)


def stops_early(complete: Hypotheses, arguments: Arguments) -> Tensor:
    """(B, 1) bool: with early_stopping=True, N complete hypotheses are enough."""
    return complete.ended.all(1, keepdim=True) & (arguments.early_stopping is True)


def may_improve(running: Hypotheses, complete: Hypotheses, most_new: int, arguments: Arguments) -> Tensor:
    """(B, 1) bool: whether the best running beam could still beat the worst complete hypothesis.

    Its log-probability can only fall, but the length that divides it can grow, so "never" assumes the maximum
    length. The other settings assume the present length: they stop earlier and may miss the best.
    """
    length: Tensor | int = running.new_tokens[:, :1]
    if arguments.early_stopping == "never" and arguments.length_penalty > 0:
        length = most_new
    best = running.scores[:, :1] / length**arguments.length_penalty  # (B, 1)
    # Any hypothesis beats an empty slot.
    worst = torch.where(complete.ended, complete.scores.amin(1, keepdim=True), NEG_INF)  # (B, N)
    return (best > worst).any(1, keepdim=True)


def returned_hypotheses(complete: Hypotheses, prompt_length: int, arguments: Arguments) -> ScoredIds:
    """The first `num_return_sequences` of each source, (B * num_return_sequences, up to L)."""
    returned = arguments.num_return_sequences
    if not complete.ended[:, 0].all():  # an empty slot has a better score than every hypothesis
        causes = arguments.changed(["length_penalty", *PROCESSOR_ARGUMENTS])
        raise arguments.error(
            f"all hypotheses have a score below {NEG_INF:g}, because of {', '.join(causes)}"
        )
    end = prompt_length + int(complete.new_tokens[:, :returned].max())
    return ScoredIds(
        complete.ids[:, :returned, :end].flatten(0, 1),
        complete.token_scores[:, :returned, prompt_length:end].flatten(0, 1),
        complete.scores[:, :returned].flatten(),
    )
