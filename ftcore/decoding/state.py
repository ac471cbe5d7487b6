"""A model with its cache during decoding: new tokens in, logits of the next token out."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftcore.models import KVCache
from ftcore.models.attention import has_hooks, is_plain


class FastStep(Protocol):
    """Replacement of `next_logits` for steps of one new token per row, in a model's attribute `fast_step`.

    Models from `prepare_for_decoding` have one. It is not used while the model has hooks.
    """

    def __call__(self, *arguments: Any) -> Tensor:
        """The logits (R, V), from the arguments of `next_logits`."""
        ...

    def supports(self, sources: int, rows: int) -> bool:
        """Whether the batch may shrink to this size in the middle of a search."""
        ...


class DecoderState:
    """Runs a model over R = B * N rows of tokens, one or more positions at a time.

    B are the sources (GPT-2's prompts, T5's encoder inputs) and N the rows of each, 1 at first. Row b * N + n
    is the n-th of source b. T5's encoder runs once per source; its output and the keys and values of
    cross-attention are shared by the N rows.

    `drop_finished` removes sources from the batch that the model sees. Callers still pass and receive R rows;
    rows of dropped sources get their last logits again.

    Args:
        model: a model of ftcore.models, or one with the same methods.
        source_ids: (B, S) GPT-2's prompts, or T5's encoder inputs.
        source_mask: (B, S) 1 at tokens, 0 at padding; None without padding.
        max_length: maximum number of positions of a row.
        prompt_mask: (B, T) of the prompt; None without padding.
        cache: the caller's, see `generate`; None: a new one.
    """

    def __init__(
        self,
        model: Any,
        source_ids: Tensor,
        source_mask: Tensor | None,
        max_length: int,
        prompt_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> None:
        self.model, self.prompt_mask = model, prompt_mask
        self.source_ids, self.source_mask = source_ids, source_mask
        self.encoder_mask = source_mask  # (B', S)
        capacity = max_length + 1  # never full, which torch.compile would compile as a special case
        self.cache = KVCache(capacity) if cache is None else cache
        self.is_callers_cache = cache is not None
        self.is_encoder_decoder = model.config.is_encoder_decoder
        self.rows_per_source = 1  # N
        self.sources = torch.arange(len(source_ids), device=source_ids.device)  # (B',) those in the batch
        self.rows: Tensor | None = None  # (R',) the rows of these sources, ascending; None for all
        self.logits: Tensor | None = None  # (R, V) the last logits of each row
        self.mask = extended(prompt_mask, capacity)  # (R', capacity)
        self.fast_step: FastStep | None = None if is_hooked(model) else getattr(model, "fast_step", None)
        if self.is_encoder_decoder and self.cache.encoder_output is None:
            self.cache.encoder_output = model.encode(source_ids, source_mask)

    def __call__(self, new_ids: Tensor) -> Tensor:
        """`next_logits` of every row: (R, T) -> (R, V)."""
        if self.rows is not None:
            new_ids = new_ids[self.rows]
        mask = None if self.mask is None else self.mask[:, : self.cache.length + new_ids.shape[1]]
        is_one_token = new_ids.shape[1] == 1 and self.logits is not None
        step = self.fast_step if self.fast_step and is_one_token else next_logits
        logits = step(self.model, new_ids, self.cache, mask, self.cache.encoder_output, self.encoder_mask)
        if self.rows is not None and self.logits is not None:
            logits = self.logits.index_copy(0, self.rows, logits)
        self.logits = logits
        return logits

    def run_again(self, ids: Tensor) -> None:
        """Feed all tokens so far, `ids` (R, T), without the cache, for `find_non_finite`."""
        source_ids, source_mask, mask = (
            None if tensor is None else tensor.repeat_interleave(self.rows_per_source, 0)
            for tensor in (self.source_ids, self.source_mask, self.prompt_mask)
        )
        ids = ids.clamp(max=self.model.config.vocab_size - 1)  # rows that have ended may hold other pad ids
        mask = extended(mask, ids.shape[1])
        if self.is_encoder_decoder:
            self.model(source_ids, source_mask, ids, mask)
        else:
            self.model(ids, mask)

    def prefill(self, prompt: Tensor, rows_per_source: int) -> Tensor:
        """Feed the prompt (B, T) except for cached positions, then repeat each row: -> (B * N, V)."""
        logits = self(prompt[:, self.cache.length :])
        if rows_per_source == 1:
            return logits
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(rows_per_source)
        if self.is_callers_cache:  # which keeps the prompt alone
            self.cache, self.is_callers_cache = self.cache.resized(rows), False
        else:
            self.cache.reorder(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        self.rows_per_source = rows_per_source
        self.logits = logits[rows]
        return self.logits

    def reorder(self, parents: Tensor, start: int) -> None:
        """Row n of source b becomes its former row `parents[b, n]`; `parents` is (B, N).

        Positions < start are identical in all rows of a source (common beam prefix) and are not copied.
        """
        parents = parents[self.sources]
        first_rows = torch.arange(len(parents), device=parents.device)[:, None] * self.rows_per_source
        self.cache.reorder((first_rows + parents).flatten(), start=start)

    def drop_finished(self, unfinished: list[int]) -> int:
        """Drop the sources for which `unfinished` is 0 from the batch; returns how many are left to decode.

        None are dropped while the model has hooks, so that hooks see all rows in every step, from the
        caller's cache, nor where the fast step does not support the smaller batch.
        """
        left = [source for source, is_unfinished in enumerate(unfinished) if is_unfinished]
        if 0 < len(left) < len(self.sources) and self._can_shrink(len(left)):
            kept = self.sources.new_tensor(left)
            index = torch.searchsorted(self.sources, kept)  # (B',) positions within the batch
            self.sources, self.rows = kept, self._rows_of(kept)
            self.cache.reorder(self._rows_of(index))
            self.cache.select_sources(index)
            if self.encoder_mask is not None:
                self.encoder_mask = self.encoder_mask[index]
            if self.mask is not None:
                self.mask = self.mask[self._rows_of(index)]
        return len(left)

    def _can_shrink(self, sources: int) -> bool:
        if is_hooked(self.model) or self.is_callers_cache:
            return False
        return self.fast_step is None or self.fast_step.supports(sources, sources * self.rows_per_source)

    def _rows_of(self, sources: Tensor) -> Tensor:
        offsets = torch.arange(self.rows_per_source, device=sources.device)
        return (sources[:, None] * self.rows_per_source + offsets).flatten()


def next_logits(
    model: Any,
    new_ids: Tensor,
    cache: KVCache,
    mask: Tensor | None,
    encoder_output: Tensor | None,
    encoder_mask: Tensor | None,
) -> Tensor:
    """Feed the next tokens of every row, (R, T) -> fp32 logits of the token after, (R, V).

    Args:
        mask: (R, T so far) 1 at tokens, 0 at padding; None without padding.
        encoder_output, encoder_mask: (B, S, D) and (B, S), T5's.
    """
    if encoder_output is not None:
        hidden = model.decode_hidden(new_ids, encoder_output, encoder_mask, mask, cache)
    else:
        hidden = model.last_hidden(new_ids, mask, cache=cache)
    return head_logits(model.lm_head, hidden[:, -1:])[:, -1].float()


def head_logits(head: Any, hidden: Tensor) -> Tensor:
    """`head(hidden)` at one position of each row, (R, 1, D) -> (R, 1, V).

    The head is the widest matrix of all. For few rows in float32 on a CPU, MKL computes W @ x.T two to five
    times as fast as x @ W.T, but one column slower than two, so a single row is repeated.
    """
    is_matrix = is_plain(head, nn.Linear) and head.bias is None
    if not is_matrix or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return head(hidden)
    rows = hidden[:, 0] if len(hidden) > 1 else hidden[:, 0].repeat_interleave(2, 0)
    columns = head.weight @ rows.T  # (V, R)
    return columns.T[: len(hidden), None].contiguous()


def extended(mask: Tensor | None, length: int) -> Tensor | None:
    """A mask (R, T) for `length` positions, of which none after the prompt is padding; None stays None."""
    return None if mask is None else F.pad(mask, (0, length - mask.shape[1]), value=1)


def is_hooked(model: nn.Module) -> bool:
    """Whether any module of the model has a hook."""
    return any(map(has_hooks, model.modules()))


# Of each model in `eval_mode`: how many threads or nested contexts use it, and its modules in train mode.
_in_eval_mode: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode; after the last of concurrent uses every module is in its former mode."""
    with _lock:
        uses, training = _in_eval_mode.get(model, (0, []))
        _in_eval_mode[model] = uses + 1, training + [module for module in model.modules() if module.training]
        model.eval()
    try:
        yield
    finally:
        with _lock:
            uses, training = _in_eval_mode.pop(model)
            if uses > 1:
                _in_eval_mode[model] = uses - 1, training
            else:
                for module in training:
                    module.training = True
