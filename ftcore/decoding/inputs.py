"""Generation: greedy search, sampling (sampling.py) and beam search (beam_search.py).

A search does not call the model. It passes tokens to a `DecoderState`, which returns the logits of the next
token, applies the logits processors, and chooses. The ids equal Hugging Face's, with one exception: rows that
end early are always filled with the pad token, where its beam search fills T5's with EOS.

Letters: B sources, N rows or beams of each, R = B * N rows in all, K candidates of each source, V vocabulary,
T tokens so far, L maximum length.
"""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import Arguments, arguments_for, bos_id, position_limit
from ftcore.decoding.beam_search import BeamObserver, beam_search
from ftcore.decoding.processors import processors_for
from ftcore.decoding.sampling import Generators, ScoredIds, check_generators, sample
from ftcore.decoding.state import DecoderState, eval_mode
from ftcore.decoding.stopping import EndOfRow
from ftcore.models import Model


@overload
def generate(
    model: Model,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    return_scores: Literal[False] = False,
    **arguments: Any,
) -> Tensor: ...


@overload
def generate(
    model: Model,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    return_scores: Literal[True],
    **arguments: Any,
) -> ScoredIds: ...


def generate(
    model: Model,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    return_scores: bool = False,
    decoder_input_ids: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
    tokenizer: Tokenizer | None = None,
    generator: Generators | None = None,
    streamer: Callable[[Tensor], None] | None = None,
    observer: BeamObserver | None = None,
    **arguments: Any,
) -> Tensor | ScoredIds:
    """Continue GPT-2's prompts, or answer T5's inputs.

    Args:
        model: GPT-2 or T5. It runs in eval mode; its former mode is restored.
        input_ids: (B, S) GPT-2's prompts, padded on the left, or T5's encoder inputs, padded anywhere. By
            default one row that holds the BOS token.
        attention_mask: (B, S) 1 at tokens, 0 at padding. By default T5 attends to every position, and GPT-2
            to all but pad tokens, unless the pad token is an EOS.
        decoder_input_ids: (B, T) prefix of T5's answers. The start token is prepended if no row has it there.
        decoder_attention_mask: (B, T) 1 at its tokens, 0 at its padding on the left. By default T5 attends to
            every position.
        return_scores: return the scores of tokens and sequences too.
        tokenizer: the model's, needed by `stop_strings`.
        generator: random number generator of sampling, on the model's device, or B of them, one per source,
            whose samples then do not depend on the rest of the batch; default: torch's global one.
        streamer: called in every step with the new tokens (R,), on the model's device. Not with beams.
        observer: called in every step of a beam search; see `BeamObserver`.
        arguments: the fields of `ftcore.decoding.arguments.Arguments`: max_new_tokens=20, num_beams=1,
            length_penalty=1.0, no_repeat_ngram_size=0, do_sample=False, temperature=1.0, top_k=50, ...

    Returns:
        LongTensor (B * num_return_sequences, length): GPT-2's prompt and continuation, or T5's decoder ids
        with the start token. Sequences of a source are consecutive, with beams best first. Rows that ended
        early are filled with the pad token. With return_scores=True a `ScoredIds`: these ids; token_scores
        (B * num_return_sequences, new tokens), the log-probability of each new token after the logits
        processors, 0 after the end; and sequence_scores (B * num_return_sequences,), their sum or, of beams,
        the score that ranks them. Greedy search and sampling normalize the scores; beam search does not.

    Raises:
        ValueError: an argument, shape, token id or length that cannot work, before the model runs; or
            arguments that leave no token to choose, in the middle of the search.
        FloatingPointError: logits that are not finite; the message names the first such weight or module.
    """
    chosen = arguments_for(model, arguments)
    if streamer is not None and chosen.num_beams > 1:
        raise ValueError("streamer needs num_beams=1: the answer of a beam search is known only at the end")
    if observer is not None and chosen.num_beams == 1:
        raise ValueError("observer needs num_beams above 1: it observes beam search")
    device = next(model.parameters()).device
    if input_ids is None:
        input_ids, attention_mask = torch.tensor([[bos_id(model, chosen)]]), torch.ones(1, 1)
    input_ids, attention_mask = checked_source(model, chosen, input_ids, attention_mask, device)
    check_generators(generator, len(input_ids))
    if model.config.is_encoder_decoder:
        prompt, prompt_mask = decoder_prompt(
            model, chosen, decoder_input_ids, decoder_attention_mask, len(input_ids), device
        )
    elif decoder_input_ids is not None or decoder_attention_mask is not None:
        raise ValueError(
            "decoder_input_ids and decoder_attention_mask are for T5; pass GPT-2's whole prompt as input_ids"
        )
    else:
        prompt, prompt_mask = input_ids, attention_mask
    first_token = None
    if prompt_mask is not None:
        rows_per_source = max(chosen.num_beams, chosen.num_return_sequences)
        first_token = prompt_mask.argmax(1).repeat_interleave(rows_per_source)
    min_length, max_length = chosen.lengths(prompt.shape[1], position_limit(model))
    processors = processors_for(
        chosen,
        source_ids=input_ids,
        prompt_length=prompt.shape[1],
        min_length=min_length,
        max_length=max_length,
        first_token=first_token,
    )
    end_of_row = EndOfRow(chosen, tokenizer, device)
    with eval_mode(model), torch.inference_mode():
        state = DecoderState(model, input_ids, attention_mask, max_length - 1, prompt_mask)
        if chosen.num_beams > 1:
            result = beam_search(
                state, prompt, processors, end_of_row, chosen, max_length, generator, observer
            )
        else:
            result = sample(state, prompt, processors, end_of_row, chosen, max_length, generator, streamer)
    result = ScoredIds(*(tensor.clone() for tensor in result))  # outside of inference mode, for autograd
    return result if return_scores else result.ids


def checked_source(
    model: Any, arguments: Arguments, input_ids: Tensor, attention_mask: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """`input_ids` and its mask on the model's device; the mask is None without padding."""
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
    model: Any,
    arguments: Arguments,
    prefix: Tensor | None,
    mask: Tensor | None,
    sources: int,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """T5's first decoder inputs (B, T), the start token and the caller's prefix, and their mask."""
    if not 0 <= arguments.start_id < model.config.vocab_size:
        name = "bos_token_id" if arguments.decoder_start_token_id is None else "decoder_start_token_id"
        highest = model.config.vocab_size - 1
        raise arguments.error(f"{name} is {arguments.start_id}, expected a token id from 0 to {highest}")
    start = torch.full((sources, 1), arguments.start_id, device=device)
    if prefix is None:
        if mask is not None:
            raise ValueError("decoder_attention_mask needs decoder_input_ids, whose padding it marks")
        return start, None
    prefix = checked_ids(prefix, "decoder_input_ids", device)
    if len(prefix) != sources:
        raise ValueError(f"decoder_input_ids has {len(prefix)} rows, expected {sources}, as in input_ids")
    mask = None if mask is None else checked_mask(mask, "decoder_attention_mask", prefix)
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("decoder_input_ids ends in padding, by decoder_attention_mask: pad it on the left")
    if bool((prefix[:, 0] == arguments.start_id).any()):
        return prefix, mask
    mask = None if mask is None else F.pad(mask, (1, 0), value=1)
    return torch.cat([start, prefix], 1), mask


def checked_mask(mask: Tensor, name: str, ids: Tensor) -> Tensor | None:
    """An attention mask (B, T) of 0 and 1 on the device of its ids; None without padding."""
    if mask.shape != ids.shape:
        ids_name = name.replace("attention_mask", "input_ids")
        raise ValueError(
            f"{name} has the shape {tuple(mask.shape)}, expected that of {ids_name}, {tuple(ids.shape)}"
        )
    mask = mask.to(ids.device).ne(0).long()
    return None if bool(mask.all()) else mask


def checked_ids(ids: Tensor, name: str, device: torch.device) -> Tensor:
    """Token ids (B, T) on the model's device. The model itself checks them against its vocabulary."""
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(
            f"{name} must be a tensor of token ids with the shape (rows, tokens), at least one of each,"
            f" but is {ids.dtype} with the shape {tuple(ids.shape)}"
        )
    return ids.to(device, torch.long)
