"""Step 10: T5.

    input_ids (B, S) --> encoder --> source (B, S, D)
                                        |
    decoder_input_ids (B, T) -----> decoder --> (B, T, D) --> times D^-0.5 --> lm_head --> logits
                                                                                          (B, T, V)

One table, shared (V, D), is the embedding of both halves and the weight of the head: they are tied, as
in GPT-2. But T5's embedding has numbers around 1, not 0.02, so a sum of D products would be about
sqrt(D) too large. The decoder's output is therefore multiplied by D^-0.5 before the head.

To learn, the decoder gets the right answer as its input, moved to the right by one position: at each
position it sees the tokens before, and predicts the next one.

    labels               cats   sleep  </s>   -100      -100: no label here, padding
    decoder_input_ids    start  cats   sleep  </s>      the start token is the pad token, id 0

To answer, it starts with the start token alone. The most likely next token is appended to its input,
again and again, until that token is </s>, the end of the answer, id 1.
"""

import torch
from ftcore.models import T5Config
from torch import Tensor, nn

from step08_t5_encoder import Encoder
from step09_t5_decoder import Decoder


class T5(nn.Module):
    """Both halves and the head; complete but for forward."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.width = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config, self.shared)
        self.decoder = Decoder(config, self.shared)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.shared.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Scores of the next token at each position of the answer.

        Args:
            input_ids: (B, S)
            attention_mask: (B, S), 1 for a token and 0 for padding.
            decoder_input_ids: (B, T)

        Returns:
            (B, T, V)
        """
        raise NotImplementedError


def shift_right(labels: Tensor, start: int = 0, pad: int = 0) -> Tensor:
    """Labels (B, T) -> decoder_input_ids (B, T), where -100 becomes `pad`."""
    raise NotImplementedError


def answer(model: nn.Module, ids: list[int], most: int, start: int = 0, end: int = 1) -> list[int]:
    """Greedy search.

    Args:
        model: such as a T5, called with (input_ids, attention_mask, decoder_input_ids).
        ids: the source, without padding.
        most: the largest number of tokens in the answer.
        start, end: the start token, and the token that ends the answer.

    Returns:
        The answer's ids, without `start`; `end` is the last one, unless `most` was reached before.
    """
    raise NotImplementedError


# region Hint
# `torch.cat([a, b], dim=1)` joins (B, 1) and (B, T - 1); labels[:, :-1] is all but the last column.
# In `answer`, the source is a batch of one: torch.tensor([ids]); its mask has ones everywhere.
# endregion

# Questions
# 1. `answer` calls the whole model for each token. What need it compute only once?
# 2. During training the decoder always sees the right answer so far. What does it see later?
#
# region Answers
# 1. The encoder: the source does not change. ftcore's T5 has `encode` and `decode` for that, and a
#    cache (step 11) for the rest.
# 2. Its own answer so far, mistakes included, which it was never trained on.
# endregion
