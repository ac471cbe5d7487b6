"""generate(cache=...): equal to a call without it, and to transformers with past_key_values; errors."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcore.decoding import generate
from ftcore.models import KVCache
from tests.helpers.search_cases import EOS, FAMILIES, PAD, START, VOCAB, cases, inputs, pair

ENDS = [EOS, 7, 9, 12]
SEARCHES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"do_sample": True},
    {"do_sample": True, "num_return_sequences": 2},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2},
]
# The names of the prompt and of its mask.
PROMPT = {"gpt2": ("input_ids", "attention_mask"), "t5": ("decoder_input_ids", "decoder_attention_mask")}


def first_call(family: str, r: random.Random) -> dict[str, Tensor]:
    """Inputs of one to three rows, prompts padded on the left."""
    ids, mask = inputs(r, family)
    given = {"input_ids": ids, "attention_mask": mask}
    if family == "t5":
        prefix = torch.tensor([[START] + [r.randrange(3, VOCAB) for _ in range(3)] for _ in ids])
        prefix_mask = torch.ones_like(prefix)
        prefix_mask[-1, : r.randrange(3)] = 0
        given |= {"decoder_input_ids": prefix, "decoder_attention_mask": prefix_mask}
    return given


def next_call(family: str, given: dict[str, Tensor], rows: Tensor, r: random.Random) -> dict[str, Tensor]:
    """Inputs that continue the returned rows by one or three tokens. Padding may be masked."""
    name, mask_name = PROMPT[family]
    repeats = len(rows) // len(given[name])
    given = {key: value.repeat_interleave(repeats, 0) for key, value in given.items()}
    new = rows[:, given[name].shape[1] :]
    is_end = torch.isin(new, torch.tensor(ENDS)).long() * r.choice([0, 1])
    more = torch.tensor([[r.randrange(3, VOCAB) for _ in range(r.choice([1, 3]))]] * len(rows))
    masks = [given[mask_name], (is_end.cumsum(1) - is_end == 0).long(), torch.ones_like(more)]
    return given | {name: torch.cat([rows, more], 1), mask_name: torch.cat(masks, 1)}


def both(model: Any, given: dict[str, Tensor], o: dict[str, Any], cache: KVCache) -> tuple[Tensor, Tensor]:
    """The ids without the cache and with it."""
    o = {"eos_token_id": ENDS, "pad_token_id": PAD} | o
    want, got = (
        generate(model, **given, **o, generator=torch.Generator().manual_seed(0), **kept)
        for kept in ({}, {"cache": cache})
    )
    return want, got


@pytest.mark.parametrize("family", FAMILIES)
def test_three_calls_with_one_cache_equal_three_without(family: str) -> None:
    for _, model, r in cases(family, 40):
        given, cache = first_call(family, r), KVCache(48)
        for _ in range(3):
            o = r.choice(SEARCHES) | {"max_new_tokens": r.choice([1, 4])}
            want, got = both(model, given, o, cache)
            assert got.tolist() == want.tolist(), o
            given = next_call(family, given, want, r)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_call_gives_the_ids_of_transformers_with_its_cache(family: str) -> None:
    for reference, model, r in cases(family, 100):
        given, cache = first_call(family, r), KVCache(48)
        o = {"eos_token_id": ENDS, "pad_token_id": PAD, "max_new_tokens": 4}
        first = reference.generate(**given, **o, use_cache=True, return_dict_in_generate=True)
        assert generate(model, **given, **o, cache=cache).tolist() == first.sequences.tolist()
        given = next_call(family, given, first.sequences, r)
        kept = first.past_key_values
        want = reference.generate(**given, **o, use_cache=True, past_key_values=kept)
        assert generate(model, **given, **o, cache=cache).tolist() == want.tolist()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_branches_from_a_cropped_cache(family: str, search: dict[str, Any]) -> None:
    for _, model, r in cases(family, 5):
        given, cache = first_call(family, r), KVCache(48)
        name, mask_name = PROMPT[family]
        rows = both(model, given, {"max_new_tokens": 6}, cache)[1]
        shared = r.randrange(cache.length)
        cache.crop(shared)
        branch = torch.randint(
            3, VOCAB, (len(rows), 2), generator=torch.Generator().manual_seed(r.randrange(99))
        )
        ids = torch.cat([rows[:, :shared], branch], 1)
        mask = torch.cat([given[mask_name], torch.ones_like(rows)], 1)[:, :shared]
        given |= {name: ids, mask_name: torch.cat([mask, torch.ones_like(branch)], 1)}
        want, got = both(model, given, search | {"max_new_tokens": 4}, cache)
        assert got.tolist() == want.tolist()


def fed_positions(model: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the ids that the decoder receives. (A hook would keep finished rows.)"""
    shapes: list[tuple[int, ...]] = []
    decoder = model.transformer if family == "gpt2" else model.decoder
    forward = decoder.forward

    def counted(ids: Tensor, *inputs: Any, **options: Any) -> Tensor:
        shapes.append(tuple(ids.shape))
        return forward(ids, *inputs, **options)

    monkeypatch.setattr(decoder, "forward", counted)
    return shapes


@pytest.mark.parametrize(
    ("search", "held", "fed"),
    [
        ({}, 4 + 4, [(2, 1), (2, 1), (2, 1), (2, 1)]),
        ({"num_beams": 2}, 4, [(2, 5), (4, 1), (4, 1), (4, 1)]),
        ({"do_sample": True, "num_return_sequences": 3}, 4, [(2, 5), (6, 1), (6, 1), (6, 1)]),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_positions_outside_of_the_cache_are_computed(
    family: str, search: dict[str, Any], held: int, fed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds the result but its last token or, of several sequences per source, the prompt."""
    _, model = pair(family, 1)
    prompt = torch.tensor([[START, 6, 7, 8], [START, 10, 11, 12]])
    given = {"input_ids": prompt} if family == "gpt2" else {"input_ids": prompt, "decoder_input_ids": prompt}
    o = search | {"eos_token_id": None}
    cache = KVCache(30)
    rows = generate(model, **given, **o, max_new_tokens=5, cache=cache)
    assert cache.length == held
    assert cache.ids is not None and cache.ids.tolist() == rows[:: len(rows) // 2, :held].tolist()
    given[PROMPT[family][0]] = rows[:: len(rows) // 2]
    with monkeypatch.context() as patch:
        shapes = fed_positions(model, family, patch)
        generate(model, **given, **o, max_new_tokens=4, cache=cache)
    assert shapes == fed


def test_t5_does_not_encode_the_source_of_a_kept_cache_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, cache = filled("t5")
    want = generate(model, **given, max_new_tokens=4)
    monkeypatch.setattr(model.encoder, "forward", None)
    assert generate(model, **given, max_new_tokens=4, cache=cache).tolist() == want.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_equally_share_a_row(family: str) -> None:
    _, model = pair(family, 1)
    prefixes, cache = torch.tensor([[START, 6, 7], [START, 9, 3]]), KVCache(20)
    given = {"input_ids": prefixes}
    if family == "t5":
        mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
        given = {"input_ids": prefixes + 5, "attention_mask": mask, "decoder_input_ids": prefixes}
    _, returned = both(model, given, {"max_new_tokens": 1}, cache)
    returned.fill_(0)  # its memory is not the cache's
    more = torch.tensor([[30], [31], [32], [33], [34], [35]])
    given = {key: value.repeat_interleave(3, 0) for key, value in given.items()}
    given[PROMPT[family][0]] = torch.cat([prefixes.repeat_interleave(3, 0), more], 1)
    want, got = both(model, given, {"max_new_tokens": 4}, cache)
    assert got.tolist() == want.tolist()
    per_source = [tensor for tensor in (cache.source_ids, cache.encoder_output) if tensor is not None]
    assert {len(tensor) for tensor in (got, *per_source)} == {6}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_can_be_called_with_the_cache_afterwards(family: str) -> None:
    """Also where gradients are on: the buffers are no inference tensors."""
    _, model = pair(family, 1)
    source, cache, next_token = torch.tensor([[5, 6, 7]]), KVCache(20), torch.tensor([[9]])
    ids = generate(model, source, cache=cache, max_new_tokens=4, eos_token_id=None)
    with torch.no_grad():
        if family == "gpt2":
            want, got = (
                model(torch.cat([ids, next_token], 1)),
                model(torch.cat([ids[:, -1:], next_token], 1), cache=cache),
            )
        else:
            output = model.encode(source)
            want = model.decode(torch.cat([ids, next_token], 1), output)
            got = model.decode(torch.cat([ids[:, -1:], next_token], 1), output, cache=cache)
    torch.testing.assert_close(got[:, -1], want[:, -1])


def filled(family: str, length: int = 20) -> tuple[Any, dict[str, Tensor], KVCache]:
    """A model, inputs, and a cache with all but the last token of their prompts."""
    _, model = pair(family, 1)
    prompt, cache = torch.tensor([[START, 6, 7, 8], [START, 10, 11, 12]]), KVCache(length)
    given = (
        {"input_ids": prompt} if family == "gpt2" else {"input_ids": prompt + 9, "decoder_input_ids": prompt}
    )
    generate(model, **given, cache=cache, max_new_tokens=1)
    cache.crop(3)
    return model, given, cache


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda ids: ids[:, :3],
            r"holds 3 tokens, expected fewer than the 3 of the prompt, .* cache.crop\(2\)",
        ),
        (
            lambda ids: ids.roll(1, 0).repeat(2, 1)[:3],
            "holds 2 rows, expected the 3 of the prompt, or a divisor",
        ),
        (
            lambda ids: ids.where(ids != 11, 5),
            r"holds other tokens than the prompt from position 2 on: .*crop\(2\)",
        ),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_that_does_not_fit_is_refused(family: str, change: Any, message: str) -> None:
    model, given, cache = filled(family)
    name = PROMPT[family][0]
    changed = change(given[name])
    sources = given["input_ids"][:1].repeat(len(changed), 1) if len(changed) != 2 else given["input_ids"]
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, **given | {"input_ids": sources, name: changed}, cache=cache, max_new_tokens=2)
    assert "\n" not in str(caught.value)
    assert cache.length == 3 and len(cache.layers[0].key) == 2
    assert (
        generate(model, **given, cache=cache, max_new_tokens=2).tolist()
        == generate(model, **given, max_new_tokens=2).tolist()
    )


def test_the_cache_of_another_model_source_or_size_is_refused() -> None:
    _, given, cache = filled("gpt2")
    with pytest.raises(
        ValueError, match=r"another model: .* are \(1, 3, 8, 'cpu'\), expected \(2, 3, 8, 'cpu'\)"
    ):
        generate(pair("gpt2", 0)[1], **given, cache=cache, max_new_tokens=2)
    model, given, cache = filled("t5")
    hook = model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="cache needs a model without hooks"):
        generate(model, **given, cache=cache, max_new_tokens=2)
    hook.remove()
    with pytest.raises(ValueError, match="belongs to other input_ids"):
        generate(
            model,
            given["input_ids"] + 1,
            decoder_input_ids=given["decoder_input_ids"],
            cache=cache,
            max_new_tokens=2,
        )
    with pytest.raises(ValueError, match="has 20 positions, expected at least 23"):
        generate(model, **given, cache=cache, max_new_tokens=20)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_call_empties_the_cache(family: str) -> None:
    model, given, cache = filled(family)

    def interrupt(tokens: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, **given, cache=cache, max_new_tokens=9, streamer=interrupt)
    assert cache.length == 0
    other = {key: value[:1] for key, value in given.items()}
    assert (
        generate(model, **other, cache=cache, max_new_tokens=2).tolist()
        == generate(model, **other, max_new_tokens=2).tolist()
    )


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}])
def test_a_cache_that_was_filled_with_gradients(search: dict[str, Any]) -> None:
    _, model = pair("gpt2", 1)
    ids, cache = torch.tensor([[5, 6, 7, 8]]), KVCache(20)
    model(ids[:, :3], cache=cache)
    want, got = both(model, {"input_ids": ids}, search | {"max_new_tokens": 4}, cache)
    assert got.tolist() == want.tolist()
