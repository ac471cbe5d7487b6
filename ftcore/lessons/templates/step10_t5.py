"""Step 10: T5, whole. It reads the weights of this project and answers a question.

    input_ids (B, S) -> encoder -> source (B, S, D)
                                      |
    decoder_input_ids (B, T) ----> decoder -> (B, T, D) -> * D^-0.5 -> lm_head -> logits (B, T, V)

One matrix, `shared` (V, D), is the embedding of both halves and the head as well: it is *tied*. As an
embedding its numbers are about 1 in size, so a product of D of them would be about sqrt(D) too large: hence
the factor D^-0.5 before the head (`scale_decoder_outputs` in config.json).

During training the decoder sees the right answer, moved one position to the right, and predicts at every
position the token that it will see next:

    labels              The  cat  sat  </s>           -100 marks positions without a label (padding)
    decoder input       <s>  The  cat  sat            T5's start token <s> is the pad token, id 0

When answering there is no right answer to see. The decoder begins with the start token, and each token that
it chooses is appended to its input, until it chooses the end token </s>, id 1.
"""

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
        """(B, S), (B, S), (B, T) -> logits of the next token at every decoder position, (B, T, V)."""
        raise NotImplementedError


def shift_right(labels: Tensor, start_id: int = 0, pad_id: int = 0) -> Tensor:
    """Labels (B, T) -> decoder_input_ids (B, T). A label of -100 becomes the pad id."""
    raise NotImplementedError


@torch.no_grad()
def answer(
    model: nn.Module, input_ids: Tensor, max_new_tokens: int, start_id: int = 0, eos_id: int = 1
) -> Tensor:
    """Greedy: (1, S) -> (1, up to 1 + max_new_tokens), the start token, the answer and its end token.

    `model(input_ids, attention_mask, decoder_input_ids)` returns logits; take the most likely token.
    """
    raise NotImplementedError
