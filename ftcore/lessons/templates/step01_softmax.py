"""Step 1: softmax and cross-entropy.

A language model answers with a score for each of the V words it could say next: the logits.
Softmax turns the scores of a row into probabilities, which are positive and have the sum 1:

    p[i] = exp(s[i]) / (exp(s[0]) + exp(s[1]) + ...)

      scores            exp              divided by their sum
    [2, 1, 0]  ->  [7.39, 2.72, 1]  ->  [0.67, 0.24, 0.09]

exp(100) is infinite in float32. Subtract the largest score of the row from all its scores
first: the result is the same (question 1), and no exponent is above 0.

Cross-entropy is the loss of a model that is trained to predict a label, the right next word:

    loss = -log p[label]        0 if p[label] is 1, large if it is small

p may be so small that float32 rounds it to 0, and log(0) is -inf. So take the logarithm by hand:

    log p[i] = s[i] - m - log(exp(s[0] - m) + exp(s[1] - m) + ...)        m: the largest score

Write both with exp, log, max, sum and mean, without torch.softmax and F.cross_entropy.
"""

import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    """Scores -> probabilities over the last dimension.

    Args:
        scores: any shape, such as (V,) or (B, T, V).

    Returns:
        The same shape.
    """
    raise NotImplementedError


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of the rows with a label.

    Args:
        logits: (N, V), a row of scores for each of N predictions.
        labels: (N,), the index of the right word; -100 for rows that do not count, such as padding.

    Returns:
        One number, a tensor of shape ().
    """
    raise NotImplementedError


# region Hint
# `scores.max(dim=-1, keepdim=True).values` keeps the last dimension with size 1, so that it can be
# subtracted from `scores`; sum takes keepdim=True too.
# `labels != -100` is a mask that selects rows: logits[mask], labels[mask].
# `table[torch.arange(len(table)), index]` picks one number from each row.
# endregion

# Questions
# 1. Why does subtracting the same number from all scores of a row not change the probabilities?
# 2. A model that has learned nothing gives all V words the same probability. What is its loss?
#
# region Answers
# 1. exp(s - m) = exp(s) / exp(m): numerator and denominator are both divided by exp(m).
# 2. -log(1/V) = log V: 10.8 for GPT-2's 50257 words. A first loss far above it means a mistake.
# endregion
