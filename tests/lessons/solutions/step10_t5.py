import torch
from step08_t5_encoder import Encoder
from step09_t5_decoder import Decoder
from torch import Tensor, nn

from ftcore.models import T5Config


class T5(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.width = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config, self.shared)
        self.decoder = Decoder(config, self.shared)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.shared.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        source = self.encoder(input_ids, attention_mask)
        hidden = self.decoder(decoder_input_ids, source, attention_mask)
        return self.lm_head(hidden * self.width**-0.5)


def shift_right(labels: Tensor, start: int = 0, pad: int = 0) -> Tensor:
    first = torch.full_like(labels[:, :1], start)
    shifted = torch.cat([first, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad)


@torch.no_grad()
def answer(model: nn.Module, ids: list[int], most: int, start: int = 0, end: int = 1) -> list[int]:
    source = torch.tensor([ids])
    found = [start]
    while len(found) <= most and (len(found) == 1 or found[-1] != end):
        logits = model(source, torch.ones_like(source), torch.tensor([found]))
        found.append(int(logits[0, -1].argmax()))
    return found[1:]
