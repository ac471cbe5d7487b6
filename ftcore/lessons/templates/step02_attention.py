"""Step 2: attention.

A text is a row of T positions, each a vector. Attention is how a position takes over information
from others. It asks with a query q; each position answers with a key k and offers a value v, all
vectors of width K. The more q resembles k, the more of v is taken:

    scores  = q . k / sqrt(K)        for each query and each key
    weights = softmax(scores)        of a query, over all keys: their sum is 1
    output  = sum of weights * v     for each query: a mix of the values

                 key 0  key 1  key 2                        key 0  key 1  key 2
    query 0   [   2.0    1.0    0.0 ]    softmax of    [     0.67   0.24   0.09 ]
    query 1   [   0.0    3.0    0.0 ]    each row      [     0.05   0.91   0.05 ]

    output of query 1 = 0.05 * v0 + 0.91 * v1 + 0.05 * v2

Why sqrt(K)? A product q . k is a sum of K numbers. If these are random with variance 1, the sum has
variance K; divided by sqrt(K), variance 1 again. Larger scores would make softmax pick one key, and
its gradient vanish.

Letters: T is the number of queries, S of keys, K the width. B and H, in front, are there to have
many attentions at once; a matrix product with @ treats all of them alike.
"""

import torch
from torch import Tensor

from step01_softmax import softmax


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (..., T, K), where ... is any number of dimensions, such as (B, H).
        key: (..., S, K)
        value: (..., S, K)

    Returns:
        (..., T, K)
    """
    raise NotImplementedError


# region Hint
# All products q . k at once are a matrix product: (T, K) @ (K, S) -> (T, S).
# `key.transpose(-2, -1)` swaps the last two dimensions.
# endregion

# Questions
# 1. All keys are equal. What is the output?
# 2. The positions of keys and values are shuffled together. What happens to the output?
#
# region Answers
# 1. All scores of a query are equal, so all weights are 1/S: the mean of the values.
# 2. Nothing: a sum does not depend on its order. Attention alone does not know positions. GPT-2
#    adds them to its input (step 6), T5 to the scores (step 7).
# endregion
