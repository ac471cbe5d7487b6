"""Choosing tokens: greedy search, sampling and beam search.

A search never sees the model. It hands tokens to a `DecoderState`, gets scores of the next token, applies the
rules of `processors.py`, and chooses. The results are Hugging Face's, id for id, with one exception: rows
that end early are filled with the pad token always, where its beam search fills T5's with EOS.

Letters: B sources, N rows or beams of each, R = B * N rows in all, K candidates of each source, V vocabulary,
T tokens so far, L maximum length.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ftcore.decoding.arguments import Arguments, arguments_for, position_limit
from ftcore.decoding.processors import Rule, apply_rules, rules
from ftcore.decoding.state import DecoderState
from ftcore.models import GPT2LMHeadModel, T5ForConditionalGeneration

# A score no real hypothesis reaches, yet finite, so that even such hypotheses keep an order among themselves.
HOPELESS = -1e9


def generate(
    model: GPT2LMHeadModel | T5ForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    decoder_input_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
    streamer: Callable[[Tensor], None] | None = None,
    observer: "BeamObserver | None" = None,
    **arguments: Any,
) -> Tensor:
    """Continue GPT-2's prompts, or answer T5's inputs, token by token.

    Args:
        model: `GPT2LMHeadModel` or `T5ForConditionalGeneration`. It runs in eval mode and gets its mode back.
        input_ids: (B, S) GPT-2's prompts, padded on the left, or T5's encoder inputs, padded anywhere.
        attention_mask: (B, S) 1 at tokens, 0 at padding. Without one, T5 sees every position, and GPT-2 takes
            pad tokens for padding unless the pad token is an EOS.
        decoder_input_ids: (B, T) what T5's answers begin with. The start token is put in front if missing.
        generator: the source of chance in sampling, on the model's device; None for torch's global one.
        streamer: called with every step's new tokens (R,), on the model's device. Not with beams.
        observer: called after every step of a beam search; see `BeamObserver`.
        arguments: the fields of `ftcore.decoding.arguments.Arguments`: max_new_tokens=20, num_beams=1,
            length_penalty=1.0, no_repeat_ngram_size=0, do_sample=False, temperature=1.0, top_k=50, ...

    Returns:
        LongTensor (B * num_return_sequences, length): GPT-2's prompt and continuation, or T5's decoder ids
        with the start token. A source's sequences follow one another, with beams best first. Rows that ended
        early are filled with the pad token.

    Raises:
        ValueError: an argument, shape, token id or length that cannot work, before the model runs.
    """
    chosen = arguments_for(model, arguments)
    if streamer is not None and chosen.num_beams > 1:
        raise ValueError("streamer needs num_beams=1: beam search knows its answer only at the end")
    if observer is not None and chosen.num_beams == 1:
        raise ValueError("observer needs num_beams above 1: without beams there is nothing but the answer")
    device = next(model.parameters()).device
    input_ids, attention_mask = checked_source(model, chosen, input_ids, attention_mask, device)
    if model.config.is_encoder_decoder:
        prompt = decoder_prompt(model, chosen, decoder_input_ids, len(input_ids), device)
        first_real = None
    elif decoder_input_ids is not None:
        raise ValueError("decoder_input_ids is for T5; a GPT-2 prompt is all in input_ids")
    else:
        prompt = input_ids
        first_real = None if attention_mask is None else attention_mask.argmax(1)
    min_length, max_length = chosen.lengths(prompt.shape[1], position_limit(model))

    rows_per_source = max(chosen.num_beams, chosen.num_return_sequences)
    if first_real is not None:
        first_real = first_real.repeat_interleave(rows_per_source)
    score_rules = rules(chosen, min_length=min_length, max_length=max_length, first_real=first_real)
    with evaluating(model), torch.inference_mode():
        stepper = DecoderState(model, input_ids, attention_mask, max_length - 1)
        if chosen.num_beams > 1:
            ids = beam_search(stepper, prompt, score_rules, chosen, max_length, generator, observer)
        else:
            ids = sample(stepper, prompt, score_rules, chosen, max_length, generator, streamer)
    return ids.clone()  # outside of inference mode, so that the caller may train on it


# Greedy search and sampling


def sample(
    stepper: DecoderState,
    prompt: Tensor,
    score_rules: list[Rule],
    arguments: Arguments,
    max_length: int,
    generator: torch.Generator | None = None,
    streamer: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Take the best next token, or draw one, until every row has ended: `prompt` (B, T) -> (R, up to L)."""
    sources, prompt_length = prompt.shape
    several = arguments.num_return_sequences
    eos_ids = prompt.new_tensor(arguments.eos_ids)
    logits = stepper.multiply(stepper(prompt), several)  # (R, V)
    ids = prompt.new_full((sources * several, max_length), arguments.pad_id)  # (R, L)
    ids[:, :prompt_length] = prompt.repeat_interleave(several, 0)
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for length in range(prompt_length, max_length):
        scores = apply_rules(score_rules, ids[:, :length], logits)
        if arguments.do_sample:
            # Drawn for rows that ended too: so the others' luck does not depend on them.
            chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]  # (R,)
        else:
            chosen = scores.argmax(-1)
        tokens = torch.where(running, chosen, arguments.pad_id)
        ids[:, length] = tokens
        running = running & ~torch.isin(tokens, eos_ids)
        if streamer is not None:
            streamer(tokens)
        if length + 1 == max_length:
            break
        # The one look at the device in a step.
        wanted = running.view(sources, several).any(1).tolist()
        if not stepper.keep(wanted):
            break
        # A row that ended is fed what it would have said: nobody reads on, and its pad may have no embedding.
        logits = stepper(chosen[:, None])
    return ids[:, : length + 1]


# Beam search


@dataclass
class Hypotheses:
    """M sequences of each of B sources."""

    ids: Tensor  # (B, M, L) prompt and tokens, then pad up to the maximum length
    scores: Tensor  # (B, M) sum of log-probabilities; of complete ones, that / new_tokens ** length_penalty
    ended: Tensor  # (B, M) bool: the last token is an EOS, or the maximum length is reached
    new_tokens: Tensor  # (B, M) how many were generated, EOS included
    parents: Tensor  # (B, M) the running beam, 0 to N - 1, that it continues

    def take(self, index: Tensor) -> "Hypotheses":
        """Those at `index` (B, M') of each source."""
        return Hypotheses(
            ids=self.ids.take_along_dim(index[:, :, None], 1),
            scores=self.scores.gather(1, index),
            ended=self.ended.gather(1, index),
            new_tokens=self.new_tokens.gather(1, index),
            parents=self.parents.gather(1, index),
        )

    def beside(self, other: "Hypotheses") -> "Hypotheses":
        """Both sets as one, these first."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Hypotheses(*(torch.cat(pair, 1) for pair in pairs))


# Is shown every step: the length of its candidates, them, and the complete and running that came of them.
BeamObserver = Callable[[int, Hypotheses, Hypotheses, Hypotheses], None]


def beam_search(
    stepper: DecoderState,
    prompt: Tensor,
    score_rules: list[Rule],
    arguments: Arguments,
    max_length: int,
    generator: torch.Generator | None = None,
    observer: BeamObserver | None = None,
) -> Tensor:
    """Keep the N likeliest beginnings, extend them all, and return the best of those that came to an end.

    Every source has two sets of N hypotheses: the `running` beams, which still grow, and the best `complete`
    ones so far. A step proposes K candidates, the best one-token extensions of the running beams. Those that
    end compete for a place among the complete; the best of the others are the next running beams.

    `prompt` (B, T) -> (B * num_return_sequences, up to L).
    """
    sources, prompt_length = prompt.shape
    beams = arguments.num_beams
    eos_ids = prompt.new_tensor(arguments.eos_ids)
    running, complete = first_beams(prompt, beams, max_length, arguments.pad_id)
    # Whether a source's running beams may still beat its complete ones. Once not, its answers are settled.
    unsettled = torch.ones(sources, 1, dtype=torch.bool, device=prompt.device)
    logits = stepper.multiply(stepper(prompt), beams)  # (R, V)
    for length in range(prompt_length, max_length):
        ids = running.ids[:, :, :length].flatten(0, 1)  # (R, T)
        # Rules change log-probabilities without renormalising: a forbidden token's share goes to nobody.
        log_probs = apply_rules(score_rules, ids, logits.log_softmax(-1))
        candidates = propose(running, log_probs, length, max_length, eos_ids, arguments, generator)
        complete = best_complete(complete, candidates, unsettled, arguments)
        agree = shared_length(running.ids[:, :, :length])  # (1,)
        running = best_running(candidates, beams)
        if observer is not None:
            observer(length + 1, candidates, complete, running)
        unsettled = unsettled & may_improve(running, complete, max_length - prompt_length, arguments)
        enough = complete.ended.all(1, keepdim=True) & (arguments.early_stopping is True)  # (B, 1)
        if length + 1 == max_length:
            break
        undecided = (unsettled & ~enough)[:, 0]  # (B,)
        # The one look at the device in a step.
        *wanted, agreed = torch.cat([undecided.long(), agree]).tolist()
        if not stepper.keep(wanted):
            break
        stepper.select(running.parents, agreed)
        logits = stepper(running.ids[:, :, length].reshape(-1, 1))

    several = arguments.num_return_sequences
    longest = int(complete.new_tokens[:, :several].max())
    return complete.ids[:, :several, : prompt_length + longest].flatten(0, 1)


def first_beams(prompt: Tensor, beams: int, max_length: int, pad_id: int) -> tuple[Hypotheses, Hypotheses]:
    """The running beams before the first step, and as many free places for complete hypotheses."""
    sources, prompt_length = prompt.shape
    ids = prompt.new_full((sources, beams, max_length), pad_id)
    ids[:, :, :prompt_length] = prompt[:, None]
    none = torch.zeros(sources, beams, dtype=torch.long, device=prompt.device)
    hopeless = torch.full((sources, beams), HOPELESS, device=prompt.device)
    complete = Hypotheses(ids, hopeless, ended=none.bool(), new_tokens=none, parents=none)
    # All beams of a source begin alike, and with equal scores would stay alike: only the first one counts.
    first = hopeless.clone()
    first[:, 0] = 0.0
    return replace(complete, scores=first), complete


def shared_length(ids: Tensor) -> Tensor:
    """With how many tokens all hypotheses of every source begin alike, (1,); `ids` is (B, N, T)."""
    alike = (ids == ids[:, :1]).all(1).all(0)  # (T,)
    return alike.cumprod(0).sum(0, keepdim=True)


def propose(
    running: Hypotheses,
    log_probs: Tensor,
    length: int,
    max_length: int,
    eos_ids: Tensor,
    arguments: Arguments,
    generator: torch.Generator | None = None,
) -> Hypotheses:
    """The K candidates of each source: running beams with one more token, whose `log_probs` are (R, V).

    K is large enough for N candidates without EOS. They come best first or, when sampling, as drawn.
    """
    sources, beams = running.scores.shape
    vocabulary = log_probs.shape[-1]
    totals = running.scores[:, :, None] + log_probs.view(sources, beams, vocabulary)  # (B, N, V)
    totals = totals.flatten(1)  # (B, N * V): the beams of a source compete with one another
    count = beams * max(2, 1 + len(eos_ids))
    if arguments.do_sample:
        chosen = torch.multinomial(totals.softmax(-1), count, generator=generator)  # (B, K)
    else:
        chosen = totals.topk(count).indices  # (B, K)
    parents, tokens = chosen // vocabulary, chosen % vocabulary
    candidates = running.take(parents)
    candidates.ids[:, :, length] = tokens
    return Hypotheses(
        ids=candidates.ids,
        scores=totals.gather(1, chosen),
        ended=torch.isin(tokens, eos_ids) | (length + 1 == max_length),
        new_tokens=candidates.new_tokens + 1,
        parents=parents,
    )


def best_running(candidates: Hypotheses, beams: int) -> Hypotheses:
    """The N best candidates that go on."""
    scores = candidates.scores + HOPELESS * candidates.ended
    best = scores.topk(beams).indices
    return replace(candidates, scores=scores).take(best)


def best_complete(
    complete: Hypotheses, candidates: Hypotheses, unsettled: Tensor, arguments: Arguments
) -> Hypotheses:
    """The N best of the complete hypotheses and of the candidates that ended.

    A sum of log-probabilities only ever falls, which favours the shortest, so it is divided by the number of
    new tokens to the power of `length_penalty` (Wu et al. 2016, section 7, with a divisor of their own).
    """
    beams = complete.scores.shape[1]
    # An end counts only among the N best; the ranks beyond are there to keep enough beams running.
    rank = torch.arange(candidates.scores.shape[1], device=unsettled.device)
    ended = candidates.ended & (rank < beams)
    full = complete.ended.all(1, keepdim=True) & (arguments.early_stopping is True)  # (B, 1)
    barred = (~ended).float() + (~unsettled).float() + full.float()  # how many reasons keep a candidate out
    scores = candidates.scores / candidates.new_tokens**arguments.length_penalty + HOPELESS * barred
    both = complete.beside(replace(candidates, scores=scores, ended=ended))
    return both.take(both.scores.topk(beams).indices)


def may_improve(running: Hypotheses, complete: Hypotheses, most_new: int, arguments: Arguments) -> Tensor:
    """(B, 1) bool: could the best running beam still beat the worst complete hypothesis?

    Its log-probability can only fall, but the length that divides it can grow. "never" therefore grants it
    the maximum length. Otherwise it is judged at its present length: sooner done, but the best may be missed.
    """
    length: Tensor | int = running.new_tokens[:, :1]
    if arguments.early_stopping == "never" and arguments.length_penalty > 0:
        length = most_new
    best = running.scores[:, :1] / length**arguments.length_penalty  # (B, 1)
    # A free place is beaten by anything.
    worst = torch.where(complete.ended, complete.scores.amin(1, keepdim=True), HOPELESS)  # (B, N)
    return (best > worst).any(1, keepdim=True)


# What goes in


def checked_source(
    model: Any, arguments: Arguments, input_ids: Tensor, attention_mask: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """`input_ids` and its mask on the model's device, the mask None where nothing is padded."""
    input_ids = checked_ids(input_ids, "input_ids", device)
    pad, continues = arguments.pad_token_id, not model.config.is_encoder_decoder
    if attention_mask is None and continues and pad is not None and pad not in arguments.eos_ids:
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
    if continues and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt ends in padding, by its attention_mask or, without one, by pad_token_id, and cannot be"
            " continued there: pad GPT-2's prompts on the left"
        )
    return input_ids, attention_mask


def decoder_prompt(
    model: Any, arguments: Arguments, prefix: Tensor | None, sources: int, device: torch.device
) -> Tensor:
    """(B, T) what a decoder starts from: the start token, and what the caller wants answers to begin with."""
    start = torch.full((sources, 1), arguments.start_id, device=device)
    if prefix is None:
        return start
    prefix = checked_ids(prefix, "decoder_input_ids", device)
    if len(prefix) != sources:
        raise ValueError(f"decoder_input_ids has {len(prefix)} rows, expected {sources}, as input_ids has")
    return prefix if bool((prefix[:, 0] == arguments.start_id).any()) else torch.cat([start, prefix], 1)


def checked_ids(ids: Tensor, name: str, device: torch.device) -> Tensor:
    """Token ids (B, T) on the model's device. The model itself refuses ids that it has no embedding for."""
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(
            f"{name} must be a tensor of token ids with the shape (rows, tokens), at least one of each,"
            f" but is {ids.dtype} with the shape {tuple(ids.shape)}"
        )
    return ids.to(device, torch.long)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards every module has its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
