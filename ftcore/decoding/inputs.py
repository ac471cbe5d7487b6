"""What `generate` is given: tensors, checked and on the model's device, and results of functions."""

from reprlib import repr as shown
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.decoding.arguments import Arguments


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


def wrong_result(argument: str, function: Any, returned: Any, expected: str) -> ValueError:
    """The error of a function of the caller that returned something else than `expected`."""
    name = getattr(function, "__name__", type(function).__name__)
    kind = shown(returned)
    if isinstance(returned, Tensor):
        kind = f"{returned.dtype} of the shape {tuple(returned.shape)}"
    return ValueError(f"{argument}: {name} returned {kind}, expected {expected}")
