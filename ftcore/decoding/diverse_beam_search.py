"""Diverse beam search (Vijayakumar et al. 2018): groups of beams that avoid each other's tokens.

The beams of a source are divided into groups. Each group is a beam search of its own, except that in every
step the groups choose one after another, and a token costs a group `diversity_penalty` for every beam of
the earlier groups that has just chosen it (the paper's Hamming diversity). Read beam_search.py first.
"""

from functools import reduce

import torch
from torch import Tensor

from ftcore.decoding.arguments import Arguments
from ftcore.decoding.beam_search import (
    Hypotheses,
    best_complete,
    best_running,
    cannot_continue,
    common_prefix_length,
    first_hypotheses,
    may_improve,
    propose,
    returned_hypotheses,
    stops_early,
)
from ftcore.decoding.processors import LogitsProcessor, apply_processors
from ftcore.decoding.sampling import ScoredIds, search_error
from ftcore.decoding.state import DecoderState
from ftcore.decoding.stopping import EndOfRow


def diverse_beam_search(
    state: DecoderState,
    prompt: Tensor,
    processors: list[LogitsProcessor],
    end_of_row: EndOfRow,
    arguments: Arguments,
    max_length: int,
) -> ScoredIds:
    """Diverse beam search: `prompt` (B, T) -> ids (B * num_return_sequences, up to L).

    G groups have N / G beams each. Row b * N + g * N / G + n is beam n of group g of source b.
    """
    sources, prompt_length = prompt.shape
    groups = range(arguments.num_beam_groups)
    beams = arguments.num_beams // len(groups)
    first, empty = first_hypotheses(prompt, beams, max_length, arguments.pad_id)
    running, complete = [first for _ in groups], [empty for _ in groups]
    can_improve = [torch.ones(sources, 1, dtype=torch.bool, device=prompt.device) for _ in groups]
    unfinished = [improves[:, 0] for improves in can_improve]  # G of (B,)
    logits = state.prefill(prompt, arguments.num_beams)  # (R, V)
    for length in range(prompt_length, max_length):
        log_probs = logits.log_softmax(-1).view(sources, len(groups), beams, -1)
        all_ids = torch.cat([group.ids[:, :, :length] for group in running], 1)  # (B, N, T)
        failed = torch.zeros_like(unfinished[0])  # (B,)
        chosen = torch.zeros_like(log_probs[:, 0, :1])  # (B, 1, V) how many beams have chosen each token
        for g in groups:
            ids = running[g].ids[:, :, :length].flatten(0, 1)  # (B * N / G, T)
            diverse = (log_probs[:, g] - arguments.diversity_penalty * chosen).flatten(0, 1)
            scores = apply_processors(processors, ids, diverse)
            failed = failed | unfinished[g] & cannot_continue(running[g], complete[g], scores)
            candidates = propose(running[g], scores, length, max_length, end_of_row, arguments)
            complete[g] = best_complete(complete[g], candidates, can_improve[g], arguments)
            running[g] = best_running(candidates, beams)
            # Groups that are done choose no tokens. At the maximum length all candidates have ended.
            choice = running[g] if length + 1 < max_length else candidates
            counts = unfinished[g][:, None, None].expand(-1, 1, beams).to(chosen.dtype)
            chosen = chosen.scatter_add(2, choice.ids[:, None, :beams, length], counts)
            can_improve[g] = can_improve[g] & may_improve(
                running[g], complete[g], max_length - prompt_length, arguments
            )
            unfinished[g] = (can_improve[g] & ~stops_early(complete[g], arguments))[:, 0]
            unfinished[g] = unfinished[g] & ~candidates.ended.all()
        # The only device synchronization of a step.
        *still_unfinished, any_failed, prefix_length = torch.cat(
            [
                torch.stack(unfinished).any(0).long(),
                failed.any(0, keepdim=True).long(),
                common_prefix_length(all_ids),
            ]
        ).tolist()
        if any_failed:
            rows = failed.repeat_interleave(arguments.num_beams)
            raise search_error(state, arguments, all_ids.flatten(0, 1), logits, rows)
        if not state.drop_finished(still_unfinished):
            break
        state.reorder(torch.cat([running[g].parents + g * beams for g in groups], 1), prefix_length)
        logits = state(torch.cat([group.ids[:, :, length] for group in running], 1).reshape(-1, 1))
    both = reduce(Hypotheses.cat, complete)  # (B, N)
    best = both.gather(both.scores.topk(arguments.num_beams).indices)
    return returned_hypotheses(best, prompt_length, arguments)
