"""Find the mistake in an attention layer that you wrote.

    python examples/study/wrong_attention.py

A student has written GPT-2's attention. It runs, its shapes are correct and its loss would even decrease, but
the numbers are wrong. ftcore's attention is the reference: both get the same weights and the same input, and
`compare_modules` reports where they diverge and why.
"""

import torch
from torch import Tensor, nn

from ftcore.models import GPT2Config
from ftcore.models.gpt2 import Conv1D, GPT2Attention
from ftcore.study import assert_same_as_reference, compare_modules, randomize_weights


class StudentAttention(nn.Module):
    """Causal multi-head self-attention: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Conv1D(width, 3 * width)  # GPT-2 computes q, k and v in one projection
        self.out = Conv1D(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        per_head = (rows, length, self.heads, width // self.heads)
        q, k, v = (part.view(per_head).transpose(1, 2) for part in self.qkv(hidden).split(width, dim=-1))
        weights = self.weights(self.scores(q, k))  # (B, H, T, S)
        return self.out((weights @ v).transpose(1, 2).reshape(rows, length, width))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1)

    def weights(self, scores: Tensor) -> Tensor:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(dim=-1)


class FixedAttention(StudentAttention):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


def main() -> None:
    # With fresh weights every softmax is nearly uniform, whatever its scale.
    reference = randomize_weights(GPT2Attention(GPT2Config(n_embd=48, n_head=4), layer=0))
    hidden = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(0))  # (B, T, D)
    options = {
        "reference_inputs": (hidden, None, None),  # also takes a mask and a cache
        "rename": {"qkv": "c_attn", "out": "c_proj"},  # the student's names
        "copy_weights": True,
    }

    print("As the student wrote it:\n")
    report = compare_modules(StudentAttention(48, 4), reference, hidden, **options)
    print(report)

    print("\nWith the scores divided by sqrt(d):\n")
    fixed = FixedAttention(48, 4)
    print(compare_modules(fixed, reference, hidden, **options))

    assert_same_as_reference(fixed, reference, hidden, **options)  # the same as a unit test


if __name__ == "__main__":
    main()
