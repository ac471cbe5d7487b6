"""What `generate` is given: tensors, checked and on the model's device, a cache, and results of functions."""

from collections.abc import Iterator
from contextlib import contextmanager
from reprlib import repr as shown
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.decoding.arguments import Arguments
from ftcore.decoding.state import is_hooked
from ftcore.models import KVCache


def checked_source(
    model: Any, arguments: Arguments, input_ids: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`input_ids` (B, S) and its mask on the model's device, by default BOS; no mask without padding.

    Raises:
        ValueError: ids or mask of another shape, or a prompt that ends in padding.
    """
    device = next(model.parameters()).device
    if input_ids is None:
        input_ids, attention_mask = torch.tensor([[bos_id(model, arguments)]]), torch.ones(1, 1)
    input_ids = checked_ids(input_ids, "input_ids", device)
    pad, decoder_only = arguments.pad_token_id, not model.config.is_encoder_decoder
    if attention_mask is None and decoder_only and pad is not None and pad not in arguments.eos_ids:
        attention_mask = input_ids.ne(pad)
    if attention_mask is None:
        return input_ids, None
    attention_mask = checked_mask(attention_mask, "attention_mask", input_ids)
    if attention_mask is not None and decoder_only and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt ends in padding, by its attention_mask or, without one, by pad_token_id, and cannot be"
            " continued there: pad GPT-2's prompts on the left"
        )
    return input_ids, attention_mask


def decoder_prompt(
    model: Any, arguments: Arguments, prefix: Tensor | None, mask: Tensor | None, source_ids: Tensor
) -> tuple[Tensor, Tensor | None]:
    """T5's first decoder inputs (B, T), the start token and the caller's prefix, and their mask.

    Raises:
        ValueError: a start token outside of the vocabulary, a prefix with other rows or padded at its end.
    """
    if not 0 <= arguments.start_id < model.config.vocab_size:
        name = "bos_token_id" if arguments.decoder_start_token_id is None else "decoder_start_token_id"
        highest = model.config.vocab_size - 1
        raise arguments.error(f"{name} is {arguments.start_id}, expected a token id from 0 to {highest}")
    start = source_ids.new_full((len(source_ids), 1), arguments.start_id)
    if prefix is None:
        if mask is not None:
            raise ValueError("decoder_attention_mask needs decoder_input_ids, whose padding it marks")
        return start, None
    prefix = checked_ids(prefix, "decoder_input_ids", source_ids.device)
    if len(prefix) != len(start):
        raise ValueError(f"decoder_input_ids has {len(prefix)} rows, expected {len(start)}, as in input_ids")
    mask = None if mask is None else checked_mask(mask, "decoder_attention_mask", prefix)
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("decoder_input_ids ends in padding, by decoder_attention_mask: pad it on the left")
    if bool((prefix[:, 0] == arguments.start_id).any()):
        return prefix, mask
    mask = None if mask is None else F.pad(mask, (1, 0), value=1)
    return torch.cat([start, prefix], 1), mask


def checked_mask(mask: Tensor, name: str, ids: Tensor) -> Tensor | None:
    """An attention mask (B, T) of 0 and 1 on the device of its ids; None without padding.

    Raises:
        ValueError: not the shape of the ids.
    """
    if mask.shape != ids.shape:
        ids_name = name.replace("attention_mask", "input_ids")
        raise ValueError(
            f"{name} has the shape {tuple(mask.shape)}, expected that of {ids_name}, {tuple(ids.shape)}"
        )
    mask = mask.to(ids.device).ne(0).long()
    return None if bool(mask.all()) else mask


def checked_ids(ids: Tensor, name: str, device: torch.device) -> Tensor:
    """Token ids (B, T) on the model's device. The model itself checks them against its vocabulary.

    Raises:
        ValueError: not integers, or not (rows, tokens).
    """
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"{name} is {shown(ids)}, expected a tensor of token ids with the shape (rows, tokens); "
            "generate_texts takes texts"
        )
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(
            f"{name} must be a tensor of token ids with the shape (rows, tokens), at least one of each,"
            f" but is {ids.dtype} with the shape {tuple(ids.shape)}"
        )
    return ids.to(device, torch.long)


def bos_id(model: Any, arguments: Arguments) -> int:
    """The token that an empty prompt is replaced by. Raises ValueError if the model has none."""
    token, vocab_size = arguments.bos_token_id, model.config.vocab_size
    if token is None or not 0 <= token < vocab_size:
        raise arguments.error(
            f"the prompt is empty, and bos_token_id, which would begin it, is {token},"
            f" expected a token id from 0 to {vocab_size - 1}"
        )
    return token


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


def wrong_result(argument: str, function: Any, returned: Any, expected: str) -> ValueError:
    """The error of a function of the caller that returned something else than `expected`."""
    name = getattr(function, "__name__", type(function).__name__)
    kind = shown(returned)
    if isinstance(returned, Tensor):
        kind = f"{returned.dtype} of the shape {tuple(returned.shape)}"
    return ValueError(f"{argument}: {name} returned {kind}, expected {expected}")
