"""Logits processors: each equals transformers' bit for bit, and together they have its order."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from ftcore.decoding import processors as ours
from ftcore.decoding.arguments import Arguments

transformers.logging.set_verbosity_error()

VOCAB = 13
MODELS = {
    False: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=1)
    ),
    True: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCAB, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, decoder_start_token_id=0
        )
    ),
}
quick = settings(max_examples=60, deadline=None)


@st.composite
def texts(draw: st.DrawFn, longest: int = 9) -> tuple[Tensor, Tensor]:
    """Tokens so far (R, T) and scores (R, V), some of them equal and some already -inf."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, longest))
    ids = torch.tensor(
        draw(
            st.lists(
                st.lists(st.integers(0, 4), min_size=length, max_size=length), min_size=rows, max_size=rows
            )
        )
    )
    scores = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    if draw(st.booleans()):
        scores = scores.log_softmax(-1)
    if draw(st.booleans()):
        scores = (2 * scores).round() / 2
    if draw(st.booleans()):
        scores[:, draw(st.integers(0, VOCAB - 1))] = -math.inf
    return ids, scores


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


keeps = st.integers(1, 3)


@quick
@given(texts(), st.sampled_from([0.5, 1.3, 2.0]), st.booleans(), st.data())
def test_penalize_repetition(
    text: tuple[Tensor, Tensor], penalty: float, padded: bool, data: st.DataObject
) -> None:
    ids, scores = text
    first_token = None
    if padded:
        first_token = torch.tensor([data.draw(st.integers(0, ids.shape[1] - 1)) for _ in ids])
    want = theirs.RepetitionPenaltyLogitsProcessor(penalty, first_token)(ids, scores.clone())
    assert_same(ours.penalize_repetition(ids, scores, penalty=penalty, first_token=first_token), want)


@quick
@given(texts(), st.integers(1, 4))
def test_forbid_repeated_ngrams(text: tuple[Tensor, Tensor], size: int) -> None:
    ids, scores = text
    want = theirs.NoRepeatNGramLogitsProcessor(size)(ids, scores)
    assert_same(ours.forbid_repeated_ngrams(ids, scores, size=size), want)


@quick
@given(texts(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.data())
def test_forbid_ngrams_of_source(
    text: tuple[Tensor, Tensor], size: int, length: int, beams: int, data: st.DataObject
) -> None:
    ids, scores = (tensor.repeat_interleave(beams, 0) for tensor in text)
    rows = st.lists(st.integers(0, 4), min_size=length, max_size=length)
    source_ids = torch.tensor([data.draw(rows) for _ in text[0]])
    want = theirs.EncoderNoRepeatNGramLogitsProcessor(size, source_ids)(ids, scores)
    assert_same(ours.forbid_ngrams_of_source(ids, scores, source_ids=source_ids, size=size), want)


@quick
@given(texts(), st.integers(1, 3), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), st.data())
def test_keep_allowed(
    text: tuple[Tensor, Tensor], beams: int, tokens: list[int], data: st.DataObject
) -> None:
    """Also where all of them are impossible already."""
    ids, scores = (tensor.repeat_interleave(beams, 0) for tensor in text)
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1)))
    scores[torch.tensor(rows, dtype=torch.long)[:, None], torch.tensor(tokens)] = -math.inf

    def function(batch_id: int, ids: Tensor) -> list[int]:
        return tokens if batch_id else [*tokens, int(ids[-1])]

    want = theirs.PrefixConstrainedLogitsProcessor(function, beams)(ids, scores)
    assert_same(ours.keep_allowed(ids, scores, function=function, beams=beams), want)


@quick
@given(texts(), st.lists(st.integers(0, VOCAB + 2), min_size=1, max_size=4), st.integers(0, 9))
def test_suppress(text: tuple[Tensor, Tensor], tokens: list[int], length: int) -> None:
    ids, scores = text
    want = theirs.SuppressTokensLogitsProcessor(tokens)(ids, scores)
    assert_same(ours.suppress(ids, scores, tokens=tokens), want)
    want = theirs.SuppressTokensAtBeginLogitsProcessor(tokens, length)(ids, scores)
    assert_same(ours.suppress(ids, scores, tokens=tokens, length=length), want)


@quick
@given(
    texts(),
    st.integers(-2, 9),
    st.sampled_from([0.5, 1.0, 1.01, 1.5, -2.0, 1e6]),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3, unique=True),
)
def test_favor_end(text: tuple[Tensor, Tensor], start: int, factor: float, eos: list[int]) -> None:
    ids, scores = text
    want = theirs.ExponentialDecayLengthPenalty((start, factor), torch.tensor(eos), 0)(ids, scores.clone())
    assert_same(ours.favor_end(ids, scores, start=start, factor=factor, eos_ids=eos), want)


@quick
@given(texts())
def test_renormalize(text: tuple[Tensor, Tensor]) -> None:
    ids, scores = text
    assert_same(ours.renormalize(ids, scores), theirs.LogitNormalization()(ids, scores))


@quick
@given(texts(), st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=6))
def test_forbid_words(text: tuple[Tensor, Tensor], words: list[list[int]]) -> None:
    ids, scores = text
    before = scores.clone()
    want = theirs.NoBadWordsLogitsProcessor(words)(ids, scores)
    assert_same(ours.forbid_words(ids, scores, words=words), want)
    assert_same(scores, before)


@quick
@given(texts(), st.integers(0, 10), st.lists(st.integers(0, VOCAB + 2), min_size=1, max_size=3))
def test_forbid_early_end(text: tuple[Tensor, Tensor], length: int, eos: list[int]) -> None:
    ids, scores = text
    want = theirs.MinLengthLogitsProcessor(length, eos)(ids, scores)
    assert_same(ours.forbid_early_end(ids, scores, min_length=length, eos_ids=eos), want)


@quick
@given(texts(), st.integers(1, 10), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3))
def test_force_at(text: tuple[Tensor, Tensor], length: int, tokens: list[int]) -> None:
    ids, scores = text
    want = theirs.ForcedEOSTokenLogitsProcessor(length + 1, tokens)(ids, scores)
    assert_same(ours.force_at(ids, scores, length=length, tokens=tokens), want)
    want = theirs.ForcedBOSTokenLogitsProcessor(tokens[0])(ids, scores)
    assert_same(ours.force_at(ids, scores, length=1, tokens=tokens[:1]), want)


@quick
@given(
    texts(),
    st.sampled_from([0.3, 1.7]),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.999]),
    keeps,
)
def test_sampling_processors(
    text: tuple[Tensor, Tensor], temperature: float, k: int, p: float, keep: int
) -> None:
    ids, scores = text
    for got, want in (
        (
            ours.apply_temperature(ids, scores, temperature=temperature),
            theirs.TemperatureLogitsWarper(temperature),
        ),
        (ours.keep_top_k(ids, scores, k=k), theirs.TopKLogitsWarper(k)),
        (ours.keep_top_p(ids, scores, p=p, keep=keep), theirs.TopPLogitsWarper(p, min_tokens_to_keep=keep)),
        (ours.keep_min_p(ids, scores, p=p, keep=keep), theirs.MinPLogitsWarper(p, min_tokens_to_keep=keep)),
    ):
        assert_same(got, want(ids, scores))
    if p > 0:
        want = theirs.TypicalLogitsWarper(p, min_tokens_to_keep=keep)(ids, scores)
        assert_same(ours.keep_typical(ids, scores, mass=p, keep=keep), want)


every_option = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "encoder_no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.just([[1], [2, 3], [4]]),
        "suppress_tokens": st.just([5, 7]),
        "begin_suppress_tokens": st.just([6, 8]),
        "exponential_decay_length_penalty": st.sampled_from([(0, 1.5), (1, 1.01), [-3, 2.0]]),
        "renormalize_logits": st.booleans(),
        "forced_bos_token_id": st.integers(0, 4),
        "forced_eos_token_id": st.sampled_from([1, [1, 2]]),
        "do_sample": st.just(True),
        "num_beams": st.just(2),
        "temperature": st.sampled_from([0.5, 1.5]),
        "top_k": st.integers(0, 9),
        "top_p": st.sampled_from([0.4, 0.8]),
        "min_p": st.sampled_from([0.05, 0.3]),
        "typical_p": st.sampled_from([0.4, 0.8]),
        "eos_token_id": st.sampled_from([1, [1, 2], [2, 3, 4]]),
    },
)


@pytest.mark.parametrize("encoder_decoder", [False, True])
@settings(max_examples=150, deadline=None)
@given(texts(), every_option, st.integers(1, 9), st.integers(0, 8), st.integers(9, 12), st.booleans())
def test_all_processors_apply_in_the_order_of_transformers(
    encoder_decoder: bool,
    text: tuple[Tensor, Tensor],
    given_options: dict[str, Any],
    prompt_length: int,
    min_length: int,
    max_length: int,
    padded: bool,
) -> None:
    ids, scores = text
    mask = torch.ones_like(ids)
    if padded and not encoder_decoder:
        mask[:, : ids.shape[1] // 2] = 0
    if "exponential_decay_length_penalty" in given_options:  # needs an EOS within the vocabulary
        given_options.setdefault("eos_token_id", 1)
    source_ids = ids.flip(1) if encoder_decoder else ids
    prompt_length = min(prompt_length, ids.shape[1])
    config = transformers.GenerationConfig(**given_options, min_length=min_length, max_length=max_length)
    model = MODELS[encoder_decoder]
    config, _ = model._prepare_generation_config(config)
    model._prepare_special_tokens(config, True, device="cpu")
    chain = model._get_logits_processor(
        config,
        input_ids_seq_length=prompt_length,
        encoder_input_ids=source_ids,
        model_kwargs={} if encoder_decoder else {"attention_mask": mask},
    )
    options = Arguments(**{"eos_token_id": model.generation_config.eos_token_id} | given_options)
    processors = ours.processors_for(
        options,
        source_ids=source_ids,
        prompt_length=prompt_length,
        min_length=min_length,
        max_length=max_length,
        prompt_mask=mask if padded and not encoder_decoder else None,
    )
    assert_same(ours.apply_processors(processors, ids, scores), chain(ids, scores.clone()))
