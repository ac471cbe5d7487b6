import torch
from step08_t5_encoder import Encoder
from step09_t5_decoder import Decoder
from torch import Tensor, nn

from ftcore.models import T5Config


class T5(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config, self.shared)
        self.decoder = Decoder(config, self.shared)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.shared.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        source = self.encoder(input_ids, attention_mask)
        hidden = self.decoder(decoder_input_ids, source, attention_mask)
        return self.lm_head(hidden * self.config.d_model**-0.5)


def shift_right(labels: Tensor, start_id: int = 0, pad_id: int = 0) -> Tensor:
    start = torch.full_like(labels[:, :1], start_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad_id)


@torch.no_grad()
def answer(model: nn.Module, input_ids: Tensor, max_new_tokens: int, start_id: int = 0, eos_id: int = 1) -> Tensor:
    attention_mask = torch.ones_like(input_ids)
    decoder_ids = torch.full_like(input_ids[:, :1], start_id)
    for _ in range(max_new_tokens):
        logits = model(input_ids, attention_mask, decoder_ids)
        next_id = logits[:, -1].argmax(-1, keepdim=True)
        decoder_ids = torch.cat([decoder_ids, next_id], dim=1)
        if next_id.item() == eos_id:
            break
    return decoder_ids
