from collections.abc import Iterable

import torch
from step01_softmax import cross_entropy
from torch import Tensor, nn


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm


class AdamW:
    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        self.parameters = list(parameters)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.mean_squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        for weight, mean, mean_square in zip(self.parameters, self.means, self.mean_squares, strict=True):
            mean += (1 - beta1) * (weight.grad - mean)
            mean_square += (1 - beta2) * (weight.grad**2 - mean_square)
            corrected = mean / (1 - beta1**self.steps)
            corrected_square = mean_square / (1 - beta2**self.steps)
            weight -= lr * self.weight_decay * weight
            weight -= lr * corrected / (corrected_square.sqrt() + self.eps)


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / (total - warmup)


def training_step(
    model: nn.Module, optimizer: AdamW, input_ids: Tensor, labels: Tensor, lr: float, max_norm: float
) -> float:
    model.zero_grad()
    loss = next_token_loss(model(input_ids), labels)
    loss.backward()
    clip_gradients(model.parameters(), max_norm)
    optimizer.step(lr)
    return loss.item()
