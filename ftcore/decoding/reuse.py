"""A cache that several calls of `generate` share: does it fit the prompt?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ftcore.decoding.state import is_hooked
from ftcore.models import KVCache


def fit_cache(model: Any, cache: KVCache, prompt: Tensor, source_ids: Tensor, max_length: int) -> None:
    """Check that a cache holds the beginning of the prompt; repeat its rows where several prompts share one.

    Args:
        prompt: (B, T) GPT-2's prompts or T5's decoder prefixes.
        source_ids: (B, S) GPT-2's prompts or T5's encoder inputs.
        max_length: of a row, prompt included.

    Raises:
        ValueError: hooks, too few positions, or the cache of another model, batch, prompt or source.
    """
    rows, length = prompt.shape
    if is_hooked(model):
        raise ValueError("cache needs a model without hooks, which would miss the positions in the cache")
    if cache.max_length < max_length - 1:
        raise ValueError(
            f"cache has {cache.max_length} positions, expected at least {max_length - 1}, for the prompt and"
            " all new tokens but the last"
        )
    if cache.length == 0:
        return
    if cache.length >= length:
        raise ValueError(
            f"cache holds {cache.length} tokens, expected fewer than the {length} of the prompt, whose last"
            f" one must be computed: call cache.crop({length - 1})"
        )
    key: Any = cache.layers[0].key  # (rows, H, positions, K)
    found, expected = (len(cache.layers), key.shape[1], key.shape[3], str(key.device)), expected_shape(model)
    if found != expected:
        names = "layers, heads, width per head and device"
        raise ValueError(f"cache is of another model: its {names} are {found}, expected {expected}")
    if rows % len(key):
        raise ValueError(f"cache holds {len(key)} rows, expected the {rows} of the prompt, or a divisor")
    per_row = rows // len(key)
    check_tokens(cache, prompt, source_ids, per_row)
    if per_row > 1:
        index = torch.arange(len(key), device=key.device).repeat_interleave(per_row)
        cache.reorder(index)
        cache.select_sources(index)


def expected_shape(model: Any) -> tuple[int, int, int, str]:
    """Decoder layers, heads, width per head, and device of the keys."""
    config, device = model.config, str(next(model.parameters()).device)
    if config.is_encoder_decoder:
        return config.num_decoder_layers or config.num_layers, config.num_heads, config.d_kv, device
    return config.n_layer, config.n_head, config.n_embd // config.n_head, device


def check_tokens(cache: KVCache, prompt: Tensor, source_ids: Tensor, per_row: int) -> None:
    """Raise ValueError if `generate` filled the cache, and with other tokens.

    Each row of the cache is compared with `per_row` rows of the prompt (B, T) and of T5's source_ids (B, S).
    """
    if cache.source_ids is not None:
        cached = cache.source_ids.repeat_interleave(per_row, 0)
        if not torch.equal(cached, source_ids):
            raise ValueError("cache belongs to other input_ids: call cache.crop(0)")
    if cache.ids is not None:
        cached = cache.ids.repeat_interleave(per_row, 0)
        differs = (cached != prompt[:, : cached.shape[1]]).any(0)
        if bool(differs.any()):
            position = int(differs.long().argmax())
            raise ValueError(
                f"cache holds other tokens than the prompt from position {position} on: call"
                f" cache.crop({position})"
            )


@contextmanager
def emptied_on_error(cache: KVCache | None) -> Iterator[None]:
    """Empty the cache if the search fails or is interrupted, which leaves it with unknown tokens."""
    try:
        yield
    except BaseException:
        if cache is not None:
            cache.crop(0)
        raise
