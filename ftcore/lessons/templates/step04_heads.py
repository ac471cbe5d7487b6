"""Step 4: heads.

One attention has one set of weights, so a position looks for one thing at a time. Models use H of
them side by side, the heads. The D numbers of a position are cut into H parts of width K = D / H,
one for each head:

    position:  [ 0 1 2 3 | 4 5 6 7 | 8 9 10 11 ]        D = 12, H = 3, K = 4
                 head 0    head 1    head 2

    split:  (B, T, D)  ->  (B, T, H, K)  ->  (B, H, T, K)
    merge:  the way back

The heads are in front of the positions, so that step 3's attention treats each head alone.

Self-attention computes q, k and v from the same vectors, with weights that are learned:

    hidden (B, T, D) --c_attn--> (B, T, 3D), cut into q, k, v, each (B, T, D)
                     --split, attention of each head, merge--> (B, T, D)
                     --c_proj--> (B, T, D)

The names c_attn and c_proj are those in GPT-2's files. Keep them, and step 6 can load GPT-2.
"""

import torch
from torch import Tensor, nn

from step03_masks import masked_attention


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, K), with H = heads"""
    raise NotImplementedError


def merge_heads(states: Tensor) -> Tensor:
    """(B, H, T, K) -> (B, T, D)"""
    raise NotImplementedError


class Conv1D(nn.Module):
    """GPT-2's linear layer, complete: like nn.Linear, but its weight is stored (in, out)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight + self.bias


class SelfAttention(nn.Module):
    """GPT-2's self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        # c_attn: a Conv1D from D to 3D; c_proj: a Conv1D from D to D
        raise NotImplementedError

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """One layer of attention.

        Args:
            hidden: (B, T, D)
            visible: bool, broadcastable to (B, H, T, T): step 3's masks.

        Returns:
            (B, T, D)
        """
        raise NotImplementedError


# region Hint
# `states.view(B, T, heads, K)` cuts the last dimension in parts; `.transpose(1, 2)` swaps T and H.
# Going back, transpose first. After it, `.reshape` works where `.view` does not.
# `x.chunk(3, dim=-1)` returns three equal parts.
# endregion

# Questions
# 1. Why not `states.view(B, heads, T, K)` directly? It has the right shape.
# 2. Which K does the scale 1 / sqrt(K) see, and who takes care of it?
#
# region Answers
# 1. `view` does not move numbers, it counts them off in order: head 0 would get all numbers of the
#    first T / H positions, in place of the first K numbers of all positions.
# 2. The width of one head, D / H. Step 3 takes it from the last dimension of the query.
# endregion
