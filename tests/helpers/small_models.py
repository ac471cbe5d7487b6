"""Small random models of both families, inputs and search options, for the tests of fast decoding."""

import copy
import random
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcore.decoding import generate
from ftcore.models import (
    GPT2Config,
    GPT2LMHeadModel,
    KVCache,
    MT5Config,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
)

VOCAB, EOS, PAD = 41, 1, 2
T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
MODELS: dict[str, Any] = {
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=24, n_head=3, n_layer=2, n_positions=64),
    "gpt2, scores by depth": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_head=2, n_layer=2, scale_attn_by_inverse_layer_idx=True, n_inner=50
    ),
    "t5, relu, tied": T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **T5),
    "t5, gated, untied": T5Config(
        vocab_size=VOCAB,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        **T5,
    ),
    "mt5": MT5Config(vocab_size=VOCAB, decoder_start_token_id=0, **T5),
    "umt5": UMT5Config(vocab_size=VOCAB, decoder_start_token_id=0, **T5),
}


@cache
def model_of(name: str) -> Any:
    return random_model(MODELS[name])


def random_model(config: Any) -> Any:
    """With weights large enough that some tokens are much more likely than others."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config) if isinstance(config, GPT2Config) else T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter if parameter.dim() == 1 else 0))
    return model.eval()


def inputs(r: random.Random) -> tuple[Tensor, Tensor]:
    """Ids and mask of one to three rows with left padding."""
    rows, length = r.choice([1, 2, 3]), r.choice([1, 4, 9])
    ids = torch.tensor([[r.randrange(3, VOCAB) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : r.randrange(length // 2 + 1)] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def allow_a_third(batch_id: int, ids: Tensor) -> list[int]:
    return [*range((batch_id + len(ids)) % 3, VOCAB, 3)]


def prefer_new_tokens(ids: Tensor, scores: Tensor) -> Tensor:
    return scores.scatter_add_(1, ids, torch.full(ids.shape, -0.5, device=ids.device))


def ends_at_multiples_of_seven(ids: Tensor, scores: None) -> Tensor:
    return ids[:, -1] % 7 == 0


FUNCTIONS: dict[str, Any] = {
    "prefix_allowed_tokens_fn": allow_a_third,
    "logits_processor": [prefer_new_tokens],
    "stopping_criteria": [ends_at_multiples_of_seven],
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, many EOS": {"eos_token_id": [*range(1, 9)]},
    "constraints": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "bad_words_ids": [[5], [6, 7]]},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": [*range(1, 9)]},
    "early_stopping=never": {"num_beams": 4, "early_stopping": "never", "length_penalty": 2.0},
    "early_stopping=True": {"num_beams": 4, "early_stopping": True, "eos_token_id": [*range(1, 9)]},
    "functions of the caller": FUNCTIONS,
    "beams, functions of the caller": FUNCTIONS | {"num_beams": 3},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "length_penalty": 0.0},
    "sampled beams": {"num_beams": 2, "do_sample": True, "temperature": 2.0},
}


def assert_same_ids(name: str, prepared: Any, search: str) -> None:
    """A prepared model generates the ids of the model, on its device."""
    device = next(prepared.parameters()).device
    model = copy.deepcopy(model_of(name)).to(device)
    for seed in range(4):
        ids, mask = inputs(random.Random(seed))
        options = {"max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": PAD} | SEARCHES[search]
        if "t5" in name and seed % 2:
            options["decoder_input_ids"] = torch.tensor([[5, 9, 4]] * len(ids))
            options["decoder_attention_mask"] = torch.tensor([[0, seed // 2, 1]] * len(ids))
        want, got = (
            generate(lm, ids, mask, generator=torch.Generator(device).manual_seed(seed), **options)
            for lm in (model, prepared)
        )
        assert got.tolist() == want.tolist()


def assert_same_ids_with_a_kept_cache(name: str, prepared: Any) -> None:
    """Calls that continue and branch, with a cache kept between them: the ids of the model without it."""
    model, cache = model_of(name), KVCache(40)
    prompt, source = (
        "decoder_input_ids" if "t5" in name else "input_ids",
        torch.tensor([[5, 6, 7], [8, 9, 10]]),
    )
    rows = torch.tensor([[0, 3, 4], [0, 5, 6]])
    stop = iter([None, None])
    with pytest.raises(StopIteration):  # in the third step of the first call
        generate(prepared, **{"input_ids": source, prompt: rows}, cache=cache, streamer=lambda _: next(stop))
    for number in range(8):
        if number % 3 == 2:  # with fewer positions, or more, than the graph had last
            rows = torch.cat([rows[:, :-4], rows[:, 1:3]], 1)
            cache.crop(min(cache.length, rows.shape[1] - 2))
        arguments = {
            "input_ids": source,
            prompt: rows,
            "max_new_tokens": 3 + number % 2,
            "eos_token_id": None,
        }
        arguments |= {"num_beams": 1 + number % 2}
        want = generate(model, **arguments)
        assert generate(prepared, **arguments, cache=cache).tolist() == want.tolist()
        rows = torch.cat([want, torch.tensor([[7], [8]])], 1)
