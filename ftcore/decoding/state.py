"""A model and its cache as the searches see them: new tokens go in, scores of the next token come out."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ftcore.models import KVCache
from ftcore.models.attention import has_hooks


class FastStep(Protocol):
    """`next_logits` of a prepared model, for one new token of each row: made ready once, at some expense."""

    def __call__(
        self,
        model: Any,
        new_ids: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        encoder_output: Tensor | None,
    ) -> Tensor: ...

    def suits(self, sources: int, rows: int) -> bool:
        """Whether what is ready is good for so few too, when others have ended."""
        ...


class DecoderState:
    """Runs a model over R rows of tokens, a few positions at a time.

    There are B sources (GPT-2's prompts, T5's encoder inputs) and N rows of each, source-major: row b * N + n
    is the n-th of source b. N is 1 at first. T5's encoder runs once per source, and neither its output nor
    the cross-attention's keys are ever copied per row.

    Sources that are done leave, and the model goes on with fewer rows. Searches know nothing of that: they go
    on with R rows, and those that left have the logits they had.

    Args:
        model: a model of ftcore.models, or one with the same methods.
        source_ids: (B, S) GPT-2's prompts, which the first call must feed, or T5's encoder inputs.
        source_mask: (B, S) 1 at tokens, 0 at padding; None where nothing is padded.
        max_length: how many positions a row will be fed at most.
    """

    def __init__(self, model: Any, source_ids: Tensor, source_mask: Tensor | None, max_length: int) -> None:
        self.model = model
        room = max_length + 1  # never full: the compiler would take that for a case of its own
        self.cache = KVCache(room)
        self.is_encoder_decoder = model.config.is_encoder_decoder
        self.rows_per_source = 1  # N
        self.present = torch.arange(len(source_ids), device=source_ids.device)  # (B',) sources in the batch
        self.rows: Tensor | None = None  # (R',) their rows, in ascending order; None while they are all
        self.logits: Tensor | None = None  # (R, V) the last of every row
        self.mask = source_mask
        # Of some prepared models. Whoever watches the model watches its own page of code.
        self.fast_step: FastStep | None = None if is_hooked(model) else getattr(model, "fast_step", None)
        if self.is_encoder_decoder:
            self.encoder_output = model.encode(source_ids, source_mask)  # (B', S, D)
        elif source_mask is not None:
            # GPT-2's mask covers all positions so far; after the prompt none is padding.
            self.mask = F.pad(source_mask, (0, room - source_ids.shape[1]), value=1)  # (R', room)

    def __call__(self, new_ids: Tensor) -> Tensor:
        """Feed the next tokens of every row, `new_ids` (R, T) -> fp32 logits of the one after, (R, V)."""
        if self.rows is not None:
            new_ids = new_ids[self.rows]
        mask, encoder_output = self.mask, None
        if self.is_encoder_decoder:
            encoder_output = self.encoder_output
        elif mask is not None:
            mask = mask[:, : self.cache.length + new_ids.shape[1]]
        one_more = new_ids.shape[1] == 1 and self.cache.length > 0
        step = self.fast_step if self.fast_step and one_more else next_logits
        logits = step(self.model, new_ids, self.cache, mask, encoder_output)
        if self.rows is not None and self.logits is not None:
            logits = self.logits.index_copy(0, self.rows, logits)
        self.logits = logits
        return logits

    def multiply(self, logits: Tensor, rows_per_source: int) -> Tensor:
        """Repeat every row that many times, in the cache and in its `logits`: (B, V) -> (B * N, V)."""
        if rows_per_source == 1:
            return logits
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(rows_per_source)
        self.cache.reorder(rows)
        if self.mask is not None and not self.is_encoder_decoder:
            self.mask = self.mask[rows]
        self.rows_per_source = rows_per_source
        self.logits = logits[rows]
        return self.logits

    def select(self, parents: Tensor, agree: int) -> None:
        """Let row n of source b go on from what row `parents[b, n]` of it was; `parents` is (B, N).

        The first `agree` positions of a source's rows are the same tokens, and need not move.
        """
        parents = parents[self.present]
        first_rows = torch.arange(len(parents), device=parents.device)[:, None] * self.rows_per_source
        self.cache.reorder((first_rows + parents).flatten(), start=agree)

    def keep(self, wanted: list[int]) -> int:
        """Let all of the B sources leave for good but those `wanted`, a 1 each; return how many that are.

        If somebody watches, all stay: whoever records or changes activations counts on the rows there were.
        So they do where for another number of rows a step would have to be made anew.
        """
        staying = [source for source, is_wanted in enumerate(wanted) if is_wanted]
        if 0 < len(staying) < len(self.present) and self._may_leave(len(staying)):
            kept = self.present.new_tensor(staying)
            places = torch.searchsorted(self.present, kept)  # (B',) where they are among those present
            self.present, self.rows = kept, self._rows_of(kept)
            self.cache.reorder(self._rows_of(places))
            self.cache.select_sources(places)
            if self.is_encoder_decoder:
                self.encoder_output = self.encoder_output[places]
            if self.mask is not None:
                self.mask = self.mask[places if self.is_encoder_decoder else self._rows_of(places)]
        return len(staying)

    def _may_leave(self, staying: int) -> bool:
        if is_hooked(self.model):
            return False
        return self.fast_step is None or self.fast_step.suits(staying, staying * self.rows_per_source)

    def _rows_of(self, sources: Tensor) -> Tensor:
        of_one = torch.arange(self.rows_per_source, device=sources.device)
        return (sources[:, None] * self.rows_per_source + of_one).flatten()


def is_hooked(model: Any) -> bool:
    """Whether any part of the model has a hook."""
    return any(has_hooks(part) for part in model.modules())


def next_logits(
    model: Any, new_ids: Tensor, cache: KVCache, mask: Tensor | None, encoder_output: Tensor | None
) -> Tensor:
    """The next tokens of every row, (R, T), go in, fp32 logits of the one after come out, (R, V)."""
    if encoder_output is not None:
        hidden = model.decode_hidden(new_ids, encoder_output, mask, cache=cache)
    else:
        hidden = model.last_hidden(new_ids, mask, cache=cache)
    # The head is the widest matrix of all, and only the last position's logits are of use.
    return model.lm_head(hidden[:, -1:])[:, -1].float()
