from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def greedy_search(logits: Logits, prompt: Tensor, max_new_tokens: int, eos_id: int) -> Tensor:
    ids = prompt
    for _ in range(max_new_tokens):
        next_id = logits(ids)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, next_id], dim=1)
        if next_id.item() == eos_id:
            break
    return ids


def beam_search(
    logits: Logits,
    prompt: Tensor,
    max_new_tokens: int,
    eos_id: int,
    num_beams: int,
    length_penalty: float = 1.0,
) -> Tensor:
    beams, scores = prompt, torch.zeros(1)
    finished: list[tuple[float, Tensor]] = []
    for length in range(1, max_new_tokens + 1):
        log_probs = logits(beams)[:, -1].log_softmax(-1)
        totals = scores[:, None] + log_probs
        best = totals.flatten().topk(min(2 * num_beams, totals.numel()))
        running = []
        for rank, (total, index) in enumerate(zip(best.values, best.indices, strict=True)):
            beam, token = divmod(index.item(), totals.shape[1])
            ids = torch.cat([beams[beam], torch.tensor([token])])
            if token != eos_id:
                running.append((total, ids))
            elif rank < num_beams:
                finished.append((total.item() / length**length_penalty, ids))
        running = running[:num_beams]
        scores = torch.stack([total for total, _ in running])
        beams = torch.stack([ids for _, ids in running])
    finished += [(total.item() / max_new_tokens**length_penalty, ids) for total, ids in running]
    return max(finished, key=lambda hypothesis: hypothesis[0])[1][None]
