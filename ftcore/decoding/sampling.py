"""Greedy search and sampling. The letters of shapes are those of search.py."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ftcore.decoding.arguments import PROCESSOR_ARGUMENTS, Arguments
from ftcore.decoding.processors import LogitsProcessor, apply_processors
from ftcore.decoding.state import DecoderState
from ftcore.decoding.stopping import EndOfRow
from ftcore.models.non_finite import find_non_finite

Generators = torch.Generator | Sequence[torch.Generator]  # one for all rows, or one per source


class ScoredIds(NamedTuple):
    """What a search returns, in R rows."""

    ids: Tensor  # (R, length) prompt, new tokens, then pad
    token_scores: Tensor  # (R, length - T) log-probability of each new token; 0 after the end
    sequence_scores: Tensor  # (R,) their sum; of beams, that / new_tokens ** length_penalty


def sample(
    state: DecoderState,
    prompt: Tensor,
    processors: list[LogitsProcessor],
    end_of_row: EndOfRow,
    arguments: Arguments,
    max_length: int,
    return_scores: bool,
    generator: Generators | None = None,
    streamer: Callable[[Tensor], None] | None = None,
) -> ScoredIds:
    """Greedy search or sampling until every row has ended: `prompt` (B, T) -> ids (R, up to L).

    Scores are 0 without `return_scores`: they take a softmax over the vocabulary in every step.
    """
    sources, prompt_length = prompt.shape
    rows_per_source = arguments.num_return_sequences
    logits = state.prefill(prompt, rows_per_source)  # (R, V)
    ids = prompt.new_full((sources * rows_per_source, max_length), arguments.pad_id)  # (R, L)
    ids[:, :prompt_length] = prompt.repeat_interleave(rows_per_source, 0)
    token_scores = torch.zeros(ids.shape, device=ids.device)  # (R, L)
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for length in range(prompt_length, max_length):
        scores = apply_processors(processors, ids[:, :length], logits)
        failed = running & ~scores.amax(-1).isfinite()  # (R,)
        # Finished rows sample too, so that the random numbers of the others do not depend on them.
        chosen = draw(scores, 1, generator)[:, 0] if arguments.do_sample else scores.argmax(-1)  # (R,)
        tokens = torch.where(running, chosen, arguments.pad_id)
        ids[:, length] = tokens
        if return_scores:
            token_scores[:, length] = torch.where(running, log_prob(scores, chosen), 0.0)
        running = running & ~end_of_row(ids[:, : length + 1])
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
        # Finished rows are fed pad, which may be out of vocabulary; their logits are ignored.
        logits = state(tokens.clamp(max=scores.shape[-1] - 1)[:, None])
    end = length + 1
    return ScoredIds(ids[:, :end], token_scores[:, prompt_length:end], token_scores.sum(1))


def check_generators(generator: Generators | None, sources: int) -> None:
    """Raise ValueError unless a list of generators has one per source."""
    if isinstance(generator, Sequence) and len(generator) != sources:
        raise ValueError(f"generator is a list of {len(generator)}, expected {sources}, one for each source")


def draw(scores: Tensor, count: int, generator: Generators | None) -> Tensor:
    """Draw `count` columns of each row, without replacement: (R, V) -> (R, count)."""
    # Rows that are not finite are drawn from too, and refused afterwards with the others of the step.
    probabilities = scores.softmax(-1).nan_to_num(1.0)
    if not isinstance(generator, Sequence):
        return torch.multinomial(probabilities, count, generator=generator)
    of_sources = zip(probabilities.chunk(len(generator)), generator, strict=True)
    return torch.cat([torch.multinomial(rows, count, generator=own) for rows, own in of_sources])


def log_prob(scores: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token of each row, by the softmax of `scores`: (R, V), (R,) -> (R,)."""
    return scores.gather(1, tokens[:, None])[:, 0] - scores.logsumexp(-1)


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
