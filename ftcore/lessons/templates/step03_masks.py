"""Step 3: masks.

Not every key may be seen.

- GPT-2 predicts each word from those before it. A position that saw the next one would only copy the
  answer: position t sees positions 0 to t, itself included. This is the causal mask.
- The texts of a batch have different lengths, and the shorter ones are filled with padding, which
  must not be seen.

    causal, T = 4            padding, a text of 3 words in a row of 4

          key 0  1  2  3           key 0  1  2  3
    query 0   x  .  .  .     query 0   x  x  x  .
          1   x  x  .  .           1   x  x  x  .          x  True, may be seen
          2   x  x  x  .           2   x  x  x  .          .  False
          3   x  x  x  x           3   x  x  x  .

The weight of a key that may not be seen must be 0, and the others must still have the sum 1. So its
score becomes -inf before the softmax: exp(-inf) = 0.

A mask here is a tensor of bools, True where a query may see a key. Two masks are combined with &.
"""

import torch
from torch import Tensor

from step01_softmax import softmax


def causal_mask(length: int) -> Tensor:
    """Which keys the queries of a text may see: (T, T), bool, with T = length."""
    raise NotImplementedError


def padding_mask(attention_mask: Tensor) -> Tensor:
    """Which keys of a batch are words.

    Args:
        attention_mask: (B, S), 1 for a word and 0 for padding, as tokenizers return it.

    Returns:
        (B, 1, 1, S), bool: it fits scores (B, H, T, S), whatever H and T are.
    """
    raise NotImplementedError


def masked_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Step 2's attention, to visible keys only.

    Args:
        query: (B, H, T, K)
        key, value: (B, H, S, K)
        visible: bool, broadcastable to (B, H, T, S). Each query sees one key or more.

    Returns:
        (B, H, T, K)
    """
    raise NotImplementedError


# region Hint
# `torch.ones(4, 4, dtype=torch.bool).tril()` keeps the lower triangle.
# `mask[:, None]` adds a dimension of size 1; it is stretched to any size when two tensors meet.
# `scores.masked_fill(mask, number)` writes a number where the mask is True; ~mask is its opposite.
# endregion

# Questions
# 1. Why not set the weights to 0 after the softmax?
# 2. What if a query may see no key at all?
#
# region Answers
# 1. The rest would no longer have the sum 1, and the masked scores would still have had a say in it.
# 2. softmax of -inf alone is 0 / 0 = NaN. This happens with padding on the left of a text. Libraries
#    use a large negative number in place of -inf, or let such a query see everything; its output
#    is not used.
# endregion
