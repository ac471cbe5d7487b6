from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def greedy_search(logits: Logits, ids: list[int], most: int, end: int) -> list[int]:
    new: list[int] = []
    while len(new) < most and end not in new:
        new.append(int(logits(torch.tensor([ids + new]))[0, -1].argmax()))
    return new


@torch.no_grad()
def beam_search(
    logits: Logits, ids: list[int], most: int, end: int, beams: int, length_penalty: float = 1.0
) -> list[int]:
    running, scores = torch.tensor([ids]), torch.zeros(1)
    complete: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        log_p = logits(running)[:, -1].log_softmax(dim=-1)
        candidates = scores[:, None] + log_p
        best, index = candidates.flatten().topk(2 * beams)
        parent, token = index // log_p.shape[1], index % log_p.shape[1]
        texts = torch.cat([running[parent], token[:, None]], dim=1)
        for rank in range(beams):
            if token[rank] == end:
                complete.append((float(best[rank]) / length**length_penalty, texts[rank].tolist()))
        goes_on = token != end
        running, scores = texts[goes_on][:beams], best[goes_on][:beams]
    for score, text in zip(scores, running, strict=True):
        complete.append((float(score) / most**length_penalty, text.tolist()))
    _, text = max(complete)
    return text[len(ids) :]
