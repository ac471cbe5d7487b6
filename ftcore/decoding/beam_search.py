"""Greedy search, sampling and beam search.

A search does not call the model. It passes tokens to a `DecoderState`, which returns the logits of the next
token, applies the logits processors, and chooses. The ids equal Hugging Face's, with one exception: rows that
end early are always filled with the pad token, where its beam search fills T5's with EOS.

Letters: B sources, N rows or beams of each, R = B * N rows in all, K candidates of each source, V vocabulary,
T tokens so far, L maximum length.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ftcore.decoding.arguments import PROCESSOR_ARGUMENTS, Arguments, arguments_for, position_limit
from ftcore.decoding.processors import LogitsProcessor, apply_processors, processors_for
from ftcore.decoding.state import DecoderState, eval_mode
from ftcore.models import Model
from ftcore.models.non_finite import find_non_finite

# Below every real score, yet finite, so that the order of such hypotheses is defined.
NEG_INF = -1e9


def generate(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    decoder_input_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
    streamer: Callable[[Tensor], None] | None = None,
    observer: "BeamObserver | None" = None,
    **arguments: Any,
) -> Tensor:
    """Continue GPT-2's prompts, or answer T5's inputs.

    Args:
        model: GPT-2 or T5. It runs in eval mode; its former mode is restored.
        input_ids: (B, S) GPT-2's prompts, padded on the left, or T5's encoder inputs, padded anywhere.
        attention_mask: (B, S) 1 at tokens, 0 at padding. By default T5 attends to every position, and GPT-2
            to all but pad tokens, unless the pad token is an EOS.
        decoder_input_ids: (B, T) prefix of T5's answers. The start token is prepended if missing.
        generator: random number generator of sampling, on the model's device; default: torch's global one.
        streamer: called in every step with the new tokens (R,), on the model's device. Not with beams.
        observer: called in every step of a beam search; see `BeamObserver`.
        arguments: the fields of `ftcore.decoding.arguments.Arguments`: max_new_tokens=20, num_beams=1,
            length_penalty=1.0, no_repeat_ngram_size=0, do_sample=False, temperature=1.0, top_k=50, ...

    Returns:
        LongTensor (B * num_return_sequences, length): GPT-2's prompt and continuation, or T5's decoder ids
        with the start token. Sequences of a source are consecutive, with beams best first. Rows that ended
        early are filled with the pad token.

    Raises:
        ValueError: an argument, shape, token id or length that cannot work, before the model runs; or
            arguments that leave no token to choose, in the middle of the search.
        FloatingPointError: logits that are not finite; the message names the first such weight or module.
    """
    chosen = arguments_for(model, arguments)
    if streamer is not None and chosen.num_beams > 1:
        raise ValueError("streamer needs num_beams=1: the answer of a beam search is known only at the end")
    if observer is not None and chosen.num_beams == 1:
        raise ValueError("observer needs num_beams above 1: it observes beam search")
    device = next(model.parameters()).device
    input_ids, attention_mask = checked_source(model, chosen, input_ids, attention_mask, device)
    first_token = None
    if model.config.is_encoder_decoder:
        prompt = decoder_prompt(model, chosen, decoder_input_ids, len(input_ids), device)
    elif decoder_input_ids is not None:
        raise ValueError("decoder_input_ids is for T5; pass GPT-2's whole prompt as input_ids")
    else:
        prompt = input_ids
        if attention_mask is not None:
            rows_per_source = max(chosen.num_beams, chosen.num_return_sequences)
            first_token = attention_mask.argmax(1).repeat_interleave(rows_per_source)
    min_length, max_length = chosen.lengths(prompt.shape[1], position_limit(model))
    processors = processors_for(
        chosen,
        source_ids=input_ids,
        prompt_length=prompt.shape[1],
        min_length=min_length,
        max_length=max_length,
        first_token=first_token,
    )
    with eval_mode(model), torch.inference_mode():
        state = DecoderState(model, input_ids, attention_mask, max_length - 1)
        if chosen.num_beams > 1:
            ids = beam_search(state, prompt, processors, chosen, max_length, generator, observer)
        else:
            ids = sample(state, prompt, processors, chosen, max_length, generator, streamer)
    return ids.clone()  # outside of inference mode, so that autograd accepts it


# Greedy search and sampling


def sample(
    state: DecoderState,
    prompt: Tensor,
    processors: list[LogitsProcessor],
    arguments: Arguments,
    max_length: int,
    generator: torch.Generator | None = None,
    streamer: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Greedy search or sampling until every row has ended: `prompt` (B, T) -> (R, up to L)."""
    sources, prompt_length = prompt.shape
    rows_per_source = arguments.num_return_sequences
    eos_ids = prompt.new_tensor(arguments.eos_ids)
    logits = state.expand(state(prompt), rows_per_source)  # (R, V)
    ids = prompt.new_full((sources * rows_per_source, max_length), arguments.pad_id)  # (R, L)
    ids[:, :prompt_length] = prompt.repeat_interleave(rows_per_source, 0)
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for length in range(prompt_length, max_length):
        scores = apply_processors(processors, ids[:, :length], logits)
        failed = running & ~scores.amax(-1).isfinite()  # (R,)
        # Finished rows sample too, so that the random numbers of the others do not depend on them.
        chosen = draw(scores, 1, generator)[:, 0] if arguments.do_sample else scores.argmax(-1)  # (R,)
        tokens = torch.where(running, chosen, arguments.pad_id)
        ids[:, length] = tokens
        running = running & ~torch.isin(tokens, eos_ids)
        # The only device synchronization of a step.
        *unfinished, any_failed = torch.cat(
            [running.view(sources, rows_per_source).any(1), failed.any(0, keepdim=True)]
        ).tolist()
        if any_failed:
            raise search_error(state, arguments, ids[:, :length], logits, failed)
        if streamer is not None:
            streamer(tokens)
        if length + 1 == max_length or not state.drop_finished(unfinished):
            break
        # Finished rows are fed their (ignored) next token: pad may be out of vocabulary.
        logits = state(chosen[:, None])
    return ids[:, : length + 1]


def draw(scores: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw `count` columns of each row, without replacement: (R, V) -> (R, count)."""
    # Rows that are not finite are drawn from too, and refused afterwards with the others of the step.
    return torch.multinomial(scores.softmax(-1).nan_to_num(1.0), count, generator=generator)


def search_error(
    state: DecoderState, arguments: Arguments, ids: Tensor, logits: Tensor, failed: Tensor
) -> ArithmeticError | ValueError:
    """The error of a step without a finite score in the rows where `failed` (R,) is True.

    Args:
        ids: (R, T) all tokens so far.
        logits: (R, V) of the next token, before the processors.
    """
    if not logits[failed].amax(-1).isfinite().all():
        cause = find_non_finite(state.model, lambda: state.run_again(ids))
        return FloatingPointError(f"the model's output is not finite: {cause}")
    row = failed.tolist().index(True)
    return arguments.error(
        f"no token with a finite score is left after {ids.shape[1]} tokens of row {row}, because of"
        f" {', '.join(arguments.changed(PROCESSOR_ARGUMENTS))}"
    )


# Beam search


@dataclass
class Hypotheses:
    """M sequences of each of B sources."""

    ids: Tensor  # (B, M, L) prompt and tokens, then pad up to the maximum length
    scores: Tensor  # (B, M) sum of log-probabilities; of complete ones, that / new_tokens ** length_penalty
    ended: Tensor  # (B, M) bool: the last token is an EOS, or the maximum length is reached
    new_tokens: Tensor  # (B, M) number of generated tokens, EOS included
    parents: Tensor  # (B, M) the running beam, 0 to N - 1, that it extends

    def gather(self, index: Tensor) -> "Hypotheses":
        """The hypotheses at `index` (B, M') of each source."""
        ids = self.ids.take_along_dim(index[:, :, None], 1)
        others = self.scores, self.ended, self.new_tokens, self.parents
        return Hypotheses(ids, *(tensor.gather(1, index) for tensor in others))

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
    arguments: Arguments,
    max_length: int,
    generator: torch.Generator | None = None,
    observer: BeamObserver | None = None,
) -> Tensor:
    """Beam search: `prompt` (B, T) -> (B * num_return_sequences, up to L).

    Every source has two sets of N hypotheses: the `running` beams, and the best `complete` ones so far. A
    step proposes K candidates, the best one-token extensions of the running beams. Those that end compete
    with the complete hypotheses; the best of the others are the next running beams.
    """
    sources, prompt_length = prompt.shape
    beams = arguments.num_beams
    eos_ids = prompt.new_tensor(arguments.eos_ids)
    # The running beams before the first step, and as many empty slots for complete hypotheses.
    ids = prompt.new_full((sources, beams, max_length), arguments.pad_id)
    ids[:, :, :prompt_length] = prompt[:, None]
    zeros = torch.zeros(sources, beams, dtype=torch.long, device=prompt.device)
    empty = torch.full((sources, beams), NEG_INF, device=prompt.device)
    complete = Hypotheses(ids, empty, ended=zeros.bool(), new_tokens=zeros, parents=zeros)
    # All beams of a source are identical at first, so only the first one counts.
    scores = empty.clone()
    scores[:, 0] = 0.0
    running = replace(complete, scores=scores)
    # Whether a source's running beams may still beat its complete hypotheses; once False it stays so.
    can_improve = torch.ones(sources, 1, dtype=torch.bool, device=prompt.device)
    unfinished = can_improve[:, 0]  # (B,)
    logits = state.expand(state(prompt), beams)  # (R, V)
    for length in range(prompt_length, max_length):
        ids = running.ids[:, :, :length].flatten(0, 1)  # (R, T)
        # Masked log-probabilities are not renormalized.
        log_probs = apply_processors(processors, ids, logits.log_softmax(-1))
        best = (running.scores + log_probs.amax(-1).view(sources, beams)).amax(1)
        failed = unfinished & ~best.isfinite()  # (B,)
        candidates = propose(running, log_probs, length, max_length, eos_ids, arguments, generator)
        complete = best_complete(complete, candidates, can_improve, arguments)
        prefix = common_prefix_length(running.ids[:, :, :length])  # (1,)
        not_ended = candidates.scores + NEG_INF * candidates.ended
        running = replace(candidates, scores=not_ended).gather(not_ended.topk(beams).indices)
        if observer is not None:
            observer(length + 1, candidates, complete, running)
        can_improve = can_improve & may_improve(running, complete, max_length - prompt_length, arguments)
        unfinished = (can_improve & ~stops_early(complete, arguments))[:, 0]
        # The only device synchronization of a step.
        *still_unfinished, any_failed, prefix_length = torch.cat(
            [unfinished.long(), failed.any(0, keepdim=True).long(), prefix]
        ).tolist()
        if any_failed:
            raise search_error(state, arguments, ids, logits, failed.repeat_interleave(beams))
        if length + 1 == max_length or not state.drop_finished(still_unfinished):
            break
        state.reorder(running.parents, prefix_length)
        logits = state(running.ids[:, :, length].reshape(-1, 1))

    returned = arguments.num_return_sequences
    if not complete.ended[:, 0].all():  # an empty slot has a better score than every hypothesis
        causes = arguments.changed(["length_penalty", *PROCESSOR_ARGUMENTS])
        raise arguments.error(
            f"all hypotheses have a score below {NEG_INF:g}, because of {', '.join(causes)}"
        )
    longest = int(complete.new_tokens[:, :returned].max())
    return complete.ids[:, :returned, : prompt_length + longest].flatten(0, 1)


def common_prefix_length(ids: Tensor) -> Tensor:
    """Number of leading tokens, (1,), in which the hypotheses of each source agree; `ids` is (B, N, T)."""
    agree = (ids == ids[:, :1]).all(1).all(0)  # (T,)
    return agree.cumprod(0).sum(0, keepdim=True)


def propose(
    running: Hypotheses,
    log_probs: Tensor,
    length: int,
    max_length: int,
    eos_ids: Tensor,
    arguments: Arguments,
    generator: torch.Generator | None = None,
) -> Hypotheses:
    """The K candidates of each source: running beams plus one token, with `log_probs` (R, V).

    K is large enough for N candidates without EOS. They are sorted by score or, when sampling, as drawn.
    """
    sources, beams = running.scores.shape
    vocabulary = log_probs.shape[-1]
    totals = running.scores[:, :, None] + log_probs.view(sources, beams, vocabulary)  # (B, N, V)
    totals = totals.flatten(1)  # (B, N * V): the beams of a source compete
    count = min(beams * max(2, 1 + len(eos_ids)), totals.shape[1])
    chosen = draw(totals, count, generator) if arguments.do_sample else totals.topk(count).indices  # (B, K)
    parents, tokens = chosen // vocabulary, chosen % vocabulary
    candidates = running.gather(parents)
    candidates.ids[:, :, length] = tokens
    return replace(
        candidates,
        scores=totals.gather(1, chosen),
        ended=torch.isin(tokens, eos_ids) | (length + 1 == max_length),
        new_tokens=candidates.new_tokens + 1,
        parents=parents,
    )


def best_complete(
    complete: Hypotheses, candidates: Hypotheses, can_improve: Tensor, arguments: Arguments
) -> Hypotheses:
    """The N best of the complete hypotheses and of the candidates that have ended.

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


def stops_early(complete: Hypotheses, arguments: Arguments) -> Tensor:
    """(B, 1) bool: with early_stopping=True, N complete hypotheses are enough."""
    return complete.ended.all(1, keepdim=True) & (arguments.early_stopping is True)


def may_improve(running: Hypotheses, complete: Hypotheses, most_new: int, arguments: Arguments) -> Tensor:
    """(B, 1) bool: could the best running beam still beat the worst complete hypothesis?

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


# Inputs


def checked_source(
    model: Any, arguments: Arguments, input_ids: Tensor, attention_mask: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """`input_ids` and its mask on the model's device; the mask is None without padding."""
    input_ids = checked_ids(input_ids, "input_ids", device)
    pad, decoder_only = arguments.pad_token_id, not model.config.is_encoder_decoder
    if attention_mask is None and decoder_only and pad is not None and pad not in arguments.eos_ids:
        attention_mask = input_ids.ne(pad)
    if attention_mask is None:
        return input_ids, None
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, expected that of input_ids,"
            f" {tuple(input_ids.shape)}"
        )
    attention_mask = attention_mask.to(device).ne(0).long()
    if bool(attention_mask.all()):
        return input_ids, None
    if decoder_only and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt ends in padding, by its attention_mask or, without one, by pad_token_id, and cannot be"
            " continued there: pad GPT-2's prompts on the left"
        )
    return input_ids, attention_mask


def decoder_prompt(
    model: Any, arguments: Arguments, prefix: Tensor | None, sources: int, device: torch.device
) -> Tensor:
    """T5's first decoder inputs (B, T): the start token, and the caller's prefix."""
    if not 0 <= arguments.start_id < model.config.vocab_size:
        name = "bos_token_id" if arguments.decoder_start_token_id is None else "decoder_start_token_id"
        highest = model.config.vocab_size - 1
        raise arguments.error(f"{name} is {arguments.start_id}, expected a token id from 0 to {highest}")
    start = torch.full((sources, 1), arguments.start_id, device=device)
    if prefix is None:
        return start
    prefix = checked_ids(prefix, "decoder_input_ids", device)
    if len(prefix) != sources:
        raise ValueError(f"decoder_input_ids has {len(prefix)} rows, expected {sources}, as in input_ids")
    return prefix if bool((prefix[:, 0] == arguments.start_id).any()) else torch.cat([start, prefix], 1)


def checked_ids(ids: Tensor, name: str, device: torch.device) -> Tensor:
    """Token ids (B, T) on the model's device. The model itself checks them against its vocabulary."""
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(
            f"{name} must be a tensor of token ids with the shape (rows, tokens), at least one of each,"
            f" but is {ids.dtype} with the shape {tuple(ids.shape)}"
        )
    return ids.to(device, torch.long)
