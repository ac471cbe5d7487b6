import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels != -100
    shifted = logits[kept] - logits[kept].amax(dim=-1, keepdim=True)
    log_probabilities = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()
    return -log_probabilities.gather(-1, labels[kept][:, None]).mean()
