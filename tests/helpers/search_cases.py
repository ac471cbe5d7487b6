"""Random models in transformers and in ftcore, random inputs and arguments of `generate`, compared."""

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ftcore.decoding import generate
from tests.helpers.oracle import BOUND, gpt2_pair, t5_pair

VOCAB = 41  # small, so that repetitions and EOS are frequent
START, EOS, PAD = 0, 1, 2  # with a pad id of 0 transformers fills finished beams with EOS
FAMILIES = ("t5", "gpt2")


@cache
def pair(family: str, seed: int) -> tuple[Any, Any]:
    """A random model of transformers, and ours with the same weights."""
    r = random.Random(seed)
    # A tied head mostly repeats the last token, so most models are untied.
    common = {"vocab_size": VOCAB, "tie_word_embeddings": seed == 0}
    if family == "t5":
        layers = r.choice([1, 2])
        settings = {"num_layers": layers, "num_decoder_layers": layers, "d_model": 24, "d_kv": 8, "d_ff": 40}
        settings |= {"num_heads": 3, "feed_forward_proj": r.choice(["relu", "gated-gelu"])}
        reference, model = t5_pair(settings | common, seed)
    else:
        settings = {"n_embd": 24, "n_head": 3, "n_layer": r.choice([1, 2]), "n_positions": 64}
        reference, model = gpt2_pair(settings | common, seed)
    with torch.no_grad():
        for lm in (reference, model):
            lm.lm_head.weight *= 1.0 if seed == 0 else 2.0  # peaked distributions, like a trained model's
    return reference, model


def inputs(r: random.Random, family: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of one to three rows, with GPT-2's padding on the left, T5's on either side."""
    rows, length = r.choice([1, 2, 3]), r.choice([1, 4, 9])
    ids = torch.tensor([[r.randrange(3, VOCAB) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    left = family == "gpt2" or r.random() < 0.5
    for row in range(1, rows):
        cut = r.randrange(length // 2 + 1)
        if left:
            mask[row, :cut] = 0
        elif cut:
            mask[row, -cut:] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def random_options(r: random.Random) -> dict[str, Any]:
    """Any valid combination of options of greedy and beam search."""
    new = r.choice([1, 6, 16])
    o: dict[str, Any] = {"max_new_tokens": new, "num_beams": r.choice([1, 2, 2, 4, 4]), "pad_token_id": PAD}
    o["eos_token_id"] = r.choice([EOS, [EOS, 7], [EOS, 3, 5, 11, 13], [*range(1, 12)]])
    if o["num_beams"] > 1:
        o["early_stopping"] = r.choice([True, False, "never"])
        o["length_penalty"] = r.choice([0.6, 1.0, 2.0, 0.0, -1.0])
        o["num_return_sequences"] = r.choice([1, 2, o["num_beams"]])
    if r.random() < 0.3:
        o["no_repeat_ngram_size"] = r.choice([2, 2, 1, 3])
    if r.random() < 0.3:
        o["repetition_penalty"] = r.choice([1.3, 1.3, 0.8])
    if r.random() < 0.3 and new > 1:
        o[r.choice(["min_new_tokens", "min_length"])] = r.choice([3, 5])
    if r.random() < 0.2:
        o["bad_words_ids"] = [[r.randrange(VOCAB)], [r.randrange(VOCAB), r.randrange(VOCAB)], [5, 6, 7]]
    if r.random() < 0.1:
        o["forced_bos_token_id"] = r.randrange(2, VOCAB)
    if r.random() < 0.2:
        o["forced_eos_token_id"] = r.choice([EOS, [EOS, 9]])
    if r.random() < 0.2:
        o["encoder_no_repeat_ngram_size"] = r.choice([1, 2, 3])
    if r.random() < 0.2:
        o[r.choice(["suppress_tokens", "begin_suppress_tokens"])] = [r.randrange(VOCAB) for _ in range(5)]
    if r.random() < 0.2:
        o["exponential_decay_length_penalty"] = (r.choice([0, 3]), r.choice([1.05, 1.5]))
    if r.random() < 0.3:
        o["renormalize_logits"] = True
    return o


def sampling_options(r: random.Random) -> dict[str, Any]:
    o = {
        "do_sample": True,
        "max_new_tokens": 8,
        "pad_token_id": PAD,
        "eos_token_id": r.choice([EOS, [1, 2, 3]]),
    }
    for name, values in {
        "temperature": [0.7, 1.5],
        "top_k": [0, 5, None],
        "top_p": [0.3, 0.9, 0.0],
        "min_p": [0.05, 0.3],
        "typical_p": [0.3, 0.9],
        "repetition_penalty": [1.3],
        "num_return_sequences": [2],
        "renormalize_logits": [True],
        "suppress_tokens": [[5, 9, 30]],
        "exponential_decay_length_penalty": [(1, 1.3)],
    }.items():
        if r.random() < 0.4:
            o[name] = r.choice(values)
    return o


def cases(family: str, count: int) -> Iterator[tuple[Any, Any, random.Random]]:
    for seed in range(count):
        yield *pair(family, seed % 5), random.Random(seed)


def up_to_end(rows: Tensor, eos: list[int]) -> list[list[int]]:
    """New tokens up to the first EOS."""
    ends = [next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in rows.tolist()]
    return [row[:end] for row, end in zip(rows.tolist(), ends, strict=True)]


def prompt_length(family: str, ids: Tensor) -> int:
    return 1 if family == "t5" else ids.shape[1]


def assert_equal_to_transformers(
    reference: Any, model: Any, ids: Tensor, mask: Tensor, o: dict[str, Any], **inputs: Tensor
) -> None:
    """Equal ids, and equal scores of tokens and sequences, with the same random seed."""
    torch.manual_seed(5)
    want = reference.generate(
        ids,
        attention_mask=mask,
        use_cache=True,
        return_dict_in_generate=True,
        output_scores=True,
        **inputs,
        **o,
    )
    torch.manual_seed(5)
    got = generate(model, ids, mask, return_scores=True, **inputs, **o)
    assert got.ids.tolist() == want.sequences.tolist(), o
    if "num_beams" in o and o["num_beams"] > 1:
        indices, sums = want.beam_indices, want.sequences_scores
        scores = reference.compute_transition_scores(want.sequences, want.scores, indices)
    else:
        scores = reference.compute_transition_scores(want.sequences, want.scores, normalize_logits=True)
        # Of finished rows transformers returns the pad token's score.
        is_end = torch.isin(want.sequences[:, -scores.shape[1] :], torch.tensor(o["eos_token_id"]))
        scores = scores.masked_fill(is_end.cumsum(1) - is_end.long() > 0, 0.0)
        sums = scores.sum(1)
    for mine, theirs in ((got.token_scores, scores), (got.sequence_scores, sums)):
        assert mine.shape == theirs.shape
        # A forced token scores 0, so all of them may.
        assert (mine - theirs).abs().max() <= BOUND[torch.float32] * theirs.abs().max(), o
