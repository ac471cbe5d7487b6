from typing import Any

import torch
from step03_masks import causal_mask
from step05_gpt2_block import Block, LayerNorm
from torch import Tensor, nn


class GPT2(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        width = config.n_embd
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(config.vocab_size, width)
        self.transformer.wpe = nn.Embedding(config.n_positions, width)
        self.transformer.h = nn.ModuleList(Block(width, config.n_head) for _ in range(config.n_layer))
        self.transformer.ln_f = LayerNorm(width)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        hidden = self.transformer.wte(input_ids) + self.transformer.wpe(torch.arange(length))
        for block in self.transformer.h:
            hidden = block(hidden, causal_mask(length))
        return self.lm_head(self.transformer.ln_f(hidden))


@torch.no_grad()
def write(model: nn.Module, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        logits = model(torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]
