"""Checks of steps 1 to 4: softmax, attention, masks, heads."""

from types import ModuleType

import torch
import torch.nn.functional as F

from ftcore.lessons.step import same


def softmax(module: ModuleType) -> None:
    for shape in ((5,), (3, 4), (2, 3, 3)):
        scores = torch.randn(shape)
        mistakes = {
            f"The sum runs over dimension {dim}. Softmax is over the last one: dim=-1.": scores.softmax(dim)
            for dim in range(len(shape) - 1)
        }
        same(f"softmax of scores {tuple(shape)}", module.softmax(scores), scores.softmax(-1), mistakes)
    large = torch.tensor([[1000.0, 999.0, 0.0]])
    overflow = {
        "exp(1000) is infinite. Subtract the largest score of each row first.": large.exp()
        / large.exp().sum(-1)
    }
    same("softmax([[1000, 999, 0]])", module.softmax(large), large.softmax(-1), overflow)
    logits, labels = torch.randn(4, 7), torch.tensor([3, 0, -100, 6])
    same(
        "cross_entropy(logits, labels)", module.cross_entropy(logits, labels), F.cross_entropy(logits, labels)
    )
