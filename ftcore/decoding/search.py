"""Generation: greedy search, sampling (sampling.py) and beam search (beam_search.py).

A search does not call the model. It passes tokens to a `DecoderState`, which returns the logits of the next
token, applies the logits processors, and chooses. The ids equal Hugging Face's, with one exception: rows that
end early are always filled with the pad token, where its beam search fills T5's with EOS.

Letters: B sources, N rows or beams of each, R = B * N rows in all, K candidates of each source, V vocabulary,
T tokens so far, L maximum length.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import arguments_for, position_limit
from ftcore.decoding.beam_search import BeamObserver, beam_search
from ftcore.decoding.diverse_beam_search import diverse_beam_search
from ftcore.decoding.inputs import checked_source, decoder_prompt, emptied_on_error, fit_cache
from ftcore.decoding.processors import processors_for
from ftcore.decoding.sampling import Generators, ScoredIds, check_generators, sample
from ftcore.decoding.state import DecoderState, eval_mode
from ftcore.decoding.stopping import EndOfRow
from ftcore.models import KVCache, Model


def generate(
    model: Model,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    return_scores: bool = False,
    decoder_input_ids: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
    cache: KVCache | None = None,
    tokenizer: Tokenizer | None = None,
    generator: Generators | None = None,
    streamer: Callable[[Tensor], None] | None = None,
    observer: BeamObserver | None = None,
    **arguments: Any,
) -> Any:
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
        cache: empty, or with the beginning of the prompt (T5: of the decoder's), which is not computed again.
            Afterwards it holds the returned ids without the last; with beams or several sequences per prompt,
            the prompt. Several consecutive prompts may share a row. After an error it is empty.
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
    if observer is not None and (chosen.num_beams == 1 or chosen.num_beam_groups > 1):
        raise ValueError("observer needs num_beams above 1 and num_beam_groups=1: it observes beam search")
    input_ids, attention_mask = checked_source(model, chosen, input_ids, attention_mask)
    prompt, prompt_mask = input_ids, attention_mask
    if model.config.is_encoder_decoder:
        prompt, prompt_mask = decoder_prompt(
            model, chosen, decoder_input_ids, decoder_attention_mask, input_ids
        )
    elif decoder_input_ids is not None or decoder_attention_mask is not None:
        raise ValueError(
            "decoder_input_ids and decoder_attention_mask are for T5; pass GPT-2's whole prompt as input_ids"
        )
    check_generators(generator, len(input_ids))
    min_length, max_length = chosen.lengths(prompt.shape[1], position_limit(model))
    processors = processors_for(
        chosen,
        source_ids=input_ids,
        prompt_length=prompt.shape[1],
        min_length=min_length,
        max_length=max_length,
        prompt_mask=prompt_mask,
    )
    end_of_row = EndOfRow(chosen, tokenizer, input_ids.device)
    if cache is not None:
        fit_cache(model, cache, prompt, input_ids, max_length)
    with eval_mode(model), torch.inference_mode(), emptied_on_error(cache):
        state = DecoderState(model, input_ids, attention_mask, max_length - 1, prompt_mask, cache)
        if chosen.num_beam_groups > 1:
            result = diverse_beam_search(state, prompt, processors, end_of_row, chosen, max_length)
        elif chosen.num_beams > 1:
            result = beam_search(
                state, prompt, processors, end_of_row, chosen, max_length, generator, observer
            )
        else:
            result = sample(
                state, prompt, processors, end_of_row, chosen, max_length, return_scores, generator, streamer
            )
    result = ScoredIds(*(tensor.clone() for tensor in result))  # outside of inference mode, for autograd
    if cache is not None:
        one_per_prompt = result.ids[:: len(result.ids) // len(prompt)]
        cache.ids = one_per_prompt[:, : cache.length].clone()  # the caller may change those returned
        cache.source_ids = input_ids.clone() if model.config.is_encoder_decoder else None
    return result if return_scores else result.ids
