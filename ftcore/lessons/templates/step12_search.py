"""Step 12: which token comes next? Greedy search and beam search.

Both only need a function `logits`: ids (N, T) -> (N, T, V). GPT-2 is one; T5 with a fixed source is another.

Greedy search takes the most likely token at every step, and cannot know that a slightly worse one leads to a
better sequence. Beam search keeps the N best beginnings, the *beams*. A sequence's score is the sum of the
log-probabilities of its new tokens:

    N = 2           step 1                 step 2
                                         .- the cat    -1.3   kept
                  .- the      -0.4  -----+- the dog    -2.1
    prompt  ------+                      '- the end    -4.0
                  '- a        -1.1  -----+- a </s>     -1.6   among the N best and complete: set aside
                                         '- a cat      -1.9   kept

One step:

1. Score all N * V continuations: the beam's score plus log_softmax of the logits at the last position.
2. Take the 2N best of all of them, best first. (They hold at least N without the end token.)
3. A candidate that ends in `eos_id` is complete. If it is among the first N, set it aside, with the final
   score: sum / number_of_new_tokens ** length_penalty. If it is not, drop it.
4. The N best that do not end are the next beams, with their plain sums.

After max_new_tokens the beams still running are complete too. The answer is the complete sequence with the
best final score. A sum falls with every token; without the division the shortest sequence would often win.
At the first step there is a single beam: the prompt.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]  # (N, T) -> (N, T, V)


def greedy_search(logits: Logits, prompt: Tensor, max_new_tokens: int, eos_id: int) -> Tensor:
    """Prompt (1, T) -> (1, up to T + max_new_tokens); ends after `eos_id`."""
    raise NotImplementedError


def beam_search(
    logits: Logits,
    prompt: Tensor,
    max_new_tokens: int,
    eos_id: int,
    num_beams: int,
    length_penalty: float = 1.0,
) -> Tensor:
    """The best sequence: prompt (1, T) -> (1, up to T + max_new_tokens)."""
    raise NotImplementedError
