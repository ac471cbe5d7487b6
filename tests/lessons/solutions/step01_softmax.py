import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    has_label = labels != -100
    logits, labels = logits[has_label], labels[has_label]
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    log_p = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()
    return -log_p[torch.arange(len(labels)), labels].mean()
