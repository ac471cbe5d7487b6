"""Step 6: GPT-2.

    ids (B, T) -> wte[id] + wpe[position] -> block 0 -> ... -> block N-1 -> ln_f -> head -> logits
                        (B, T, D)                                                   (B, T, V)

- Text comes as ids: a tokenizer numbers the V words and parts of words, its tokens.
- wte is a table of V vectors, one for each token; wpe one for each position 0, 1, 2, ...: attention
  alone would not know the order (step 2, question 2). Their sum is the stream's first value.
- The head asks how much the last vector resembles the vector of each token: its weight, (V, D), is
  wte's own. The two are tied: one parameter.
- The logits at position t are the scores of the token at t + 1.

To write, take the most likely next token, append it, and run the model again: greedy search.

In GPT-2's files all names begin with "transformer.": transformer.wte.weight, transformer.wpe.weight,
transformer.h.0.ln_1.weight, ..., transformer.ln_f.bias. The head has none, since it is wte.
"""

from typing import Any

import torch
from torch import Tensor, nn

from step03_masks import causal_mask
from step05_gpt2_block import Block, LayerNorm


class GPT2(nn.Module):
    """GPT-2: ids of tokens -> scores of the next token at each position."""

    def __init__(self, config: Any):
        """config has vocab_size (V), n_positions, n_embd (D), n_head (H) and n_layer (N)."""
        super().__init__()
        self.transformer = nn.Module()
        # self.transformer.wte, wpe: nn.Embedding; h: an nn.ModuleList of N blocks; ln_f: a LayerNorm
        # self.lm_head: an nn.Linear without bias, whose weight is then set to wte's
        raise NotImplementedError

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits. Each position sees itself and those before it."""
        raise NotImplementedError


def write(model: nn.Module, ids: list[int], count: int) -> list[int]:
    """The `count` most likely next tokens, one after the other.

    Args:
        model: ids (B, T) -> logits (B, T, V), such as a GPT2.
        ids: the text so far.

    Returns:
        The new ids only.
    """
    raise NotImplementedError


# region Hint
# `torch.arange(T)` counts positions. wte and wpe are called like functions: wte(input_ids).
# `nn.ModuleList(Block(D, H) for _ in range(N))` holds N different blocks.
# `self.lm_head.weight = self.transformer.wte.weight` ties the two.
# In `write`, `torch.tensor([ids])` is a batch of one; the last position's logits are logits[0, -1].
# endregion

# Questions
# 1. The same text is run again for each new token. What is computed twice?
# 2. How many parameters does the tied head save in GPT-2 (V = 50257, D = 768)?
#
# region Answers
# 1. Everything of the tokens before: no position sees later ones, so its vectors stay the same. Step
#    11 keeps their keys and values.
# 2. 50257 * 768 = 38.6 million, of 124 million.
# endregion
