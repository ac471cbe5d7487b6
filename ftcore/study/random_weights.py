"""Random weights under which mistakes show."""

from typing import cast

import torch
from torch import nn


@torch.no_grad()
def randomize_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights under which mistakes show; returns the module.

    Freshly initialised layers hide mistakes: biases are 0, norms are 1, and scores are so small that every
    softmax gives nearly the same weights, whatever its scale and mask. Here biases and norms vary, embeddings
    are normal, and matrices keep the size of what they are given. T5's q is smaller by 1/sqrt(K), because its
    attention does not divide by that: scores that are too large make a softmax choose one key alone.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[nn.Parameter] = set()
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight in done:
                continue  # a tied head stays the embedding
            done.add(weight)
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            if weight.dim() < 2:
                weight.add_(0.2 * noise)
            elif isinstance(part, nn.Embedding):
                weight.copy_(noise)
            else:
                stored_in_out = type(part).__name__ == "Conv1D" and name == "weight"
                weight.copy_(noise * weight.shape[0 if stored_in_out else 1] ** -0.5)
    for part in module.modules():
        if type(part).__name__ == "T5Attention":
            q, heads = cast(nn.Linear, part.q), getattr(part, "num_heads", None) or part.n_heads
            q.weight.mul_((q.out_features // cast(int, heads)) ** -0.5)
    return module
