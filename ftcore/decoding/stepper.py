"""A model and its cache as the searches see them: new tokens go in, scores of the next token come out."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ftcore.models import KVCache


class Stepper:
    """Runs a model over R rows of tokens, a few positions at a time.

    There are B sources (GPT-2's prompts, T5's encoder inputs) and N rows of each, source-major: row b * N + n
    is the n-th of source b. N is 1 at first. T5's encoder runs once per source, and neither its output nor
    the cross-attention's keys are ever copied per row.

    Args:
        model: a model of ftcore.models, or one with the same methods.
        source_ids: (B, S) GPT-2's prompts, which the first call must feed, or T5's encoder inputs.
        source_mask: (B, S) 1 at tokens, 0 at padding; None where nothing is padded.
        max_length: how many positions a row will be fed at most.
    """

    def __init__(self, model: Any, source_ids: Tensor, source_mask: Tensor | None, max_length: int) -> None:
        self.model = model
        self.cache = KVCache(max_length)
        self.is_encoder_decoder = model.config.is_encoder_decoder
        self.mask = source_mask
        if self.is_encoder_decoder:
            self.encoder_output = model.encode(source_ids, source_mask)  # (B, S, D)
        elif source_mask is not None:
            # GPT-2's mask covers all positions so far; after the prompt none is padding.
            self.mask = F.pad(source_mask, (0, max_length - source_ids.shape[1]), value=1)  # (R, max_length)

    def __call__(self, new_ids: Tensor) -> Tensor:
        """Feed the next tokens of every row, `new_ids` (R, T) -> fp32 logits of the one after, (R, V)."""
        if self.is_encoder_decoder:
            hidden = self.model.decode_hidden(new_ids, self.encoder_output, self.mask, cache=self.cache)
        else:
            so_far = self.cache.length + new_ids.shape[1]
            mask = None if self.mask is None else self.mask[:, :so_far]
            hidden = self.model.last_hidden(new_ids, mask, cache=self.cache)
        # The head is the widest matrix of all, and only the last position's logits are of use.
        return self.model.lm_head(hidden[:, -1:])[:, -1].float()

    def select(self, rows: Tensor) -> None:
        """Go on with `rows`, indices of present rows that may repeat, vanish or grow in number.

        Every source keeps equally many rows, and they stay source-major.
        """
        self.cache.reorder(rows)
        if self.mask is not None and not self.is_encoder_decoder:
            self.mask = self.mask[rows]

    def multiply(self, logits: Tensor, rows_per_source: int) -> Tensor:
        """Repeat every row that many times, in the cache and in its `logits`: (B, V) -> (B * N, V)."""
        if rows_per_source == 1:
            return logits
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(rows_per_source)
        self.select(rows)
        return logits[rows]
