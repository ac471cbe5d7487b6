"""Step 12: greedy search and beam search.

Given is a function `logits`: ids (N, T) -> scores of the next token (N, T, V). GPT-2 is one.

Greedy search takes the most likely token each time. It never finds out that a less likely one leads to
a better text. Beam search keeps the N best texts so far, the beams, with their scores:

    score = sum of log p of the new tokens            p = softmax(logits), so log p <= 0

    N = 2          step 1                step 2, all candidates, best first
                                          1.  the cat   -1.3    next beam
    start ---+--- the   -0.4   ---+---    2.  a </s>    -1.6    complete: set aside
             +--- a     -1.1   ---+---    3.  a cat     -1.9    next beam
                                          4.  the dog   -2.1

A step:

1. A candidate is a beam and one more token: N * V of them. Its score is the beam's plus log p.
2. Take the 2N best. At least N of them do not end, since a beam has only one candidate with `end`.
3. Those that end are complete. Among the first N of the 2N they are set aside, with their final score,
   score / (number of new tokens) ** length_penalty; further down they are dropped.
4. The N best that do not end are the next beams.

At first there is one beam, the prompt, with score 0. After `most` steps the beams that are left are
complete too. The result is the complete text with the best final score. The division is there because
a sum of log p gets smaller with each token, which would favour short texts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]  # (N, T) -> (N, T, V)


def greedy_search(logits: Logits, ids: list[int], most: int, end: int) -> list[int]:
    """The most likely token, again and again, until it is `end`.

    Args:
        ids: the prompt.
        most: the largest number of new tokens.

    Returns:
        The new ids only; `end` is the last one, unless `most` was reached before.
    """
    raise NotImplementedError


def beam_search(
    logits: Logits, ids: list[int], most: int, end: int, beams: int, length_penalty: float = 1.0
) -> list[int]:
    """The best complete text; arguments and result as in greedy_search, with N = `beams`."""
    raise NotImplementedError


# region Hint
# Keep beams as (n, T) ids and their scores (n,): n is 1 at first and `beams` later.
# `scores[:, None] + log_p` adds (n, 1) and (n, V). `.flatten().topk(k)` returns values and indices of
# the k best of all; index // V is the beam, index % V the token.
# endregion

# Questions
# 1. A beam search with 4 beams finds a text with a worse score than greedy search. Is that possible?
# 2. Could the search stop before `most` steps and still return the same text?
#
# region Answers
# 1. Yes: the greedy text may be pushed out of the beams at one step by four better ones, all of which
#    turn out badly later.
# 2. Yes, when no beam can still win: its sum can only fall. Libraries stop there or earlier.
# endregion
