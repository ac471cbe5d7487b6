"""A compiled step says what the model's own page says, for every length, from one program."""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

from ftcore.decoding import generate, prepare_for_decoding
from ftcore.decoding.state import DecoderState
from ftcore.fast import compiled_step as compiled_page
from ftcore.fast.compiled_step import guards_on_inputs
from ftcore.fast.packed import FEW_ROWS
from ftcore.models import GPT2Config, T5Config
from ftcore.study import record
from tests.helpers.small_models import EOS, PAD, VOCAB, random_model

GPT2 = GPT2Config(vocab_size=VOCAB, n_embd=32, n_head=2, n_layer=1, n_positions=64)
T5 = T5Config(
    vocab_size=VOCAB,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_heads=4,
    num_layers=1,
    decoder_start_token_id=0,
)

pytestmark = pytest.mark.usefixtures("programs")


def random_ids(r: random.Random, rows: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, the rows behind the first padded on the left."""
    length = r.randrange(2, 12)
    ids = torch.tensor([[r.randrange(3, VOCAB) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : r.randrange(1, length)] = 0
    return ids.masked_fill(mask == 0, PAD), mask


@pytest.mark.parametrize(
    ("config", "rows", "search"),
    [
        (GPT2, [3], {"no_repeat_ngram_size": 2}),
        (T5, [1], {"num_beams": 3}),
        (GPT2, [5, 7, 20, 33], {"no_repeat_ngram_size": 2}),
        (T5, [4, 2, 9], {"num_beams": 5}),
    ],
    ids=["three texts, greedy", "one text, three beams", "many texts, greedy", "many texts, five beams"],
)
def test_one_program_writes_the_models_ids_of_every_length(
    config: Any, rows: list[int], search: dict[str, Any], programs: Any
) -> None:
    """And of every number of rows above FEW_ROWS, which falls as texts come to their ends."""
    model = random_model(config)
    compiled = prepare_for_decoding(model, compile=True)
    for seed in range(6):
        r = random.Random(seed)
        ids, mask = random_ids(r, rows[seed % len(rows)])
        arguments = {"max_new_tokens": r.randrange(3, 40), "eos_token_id": EOS, "pad_token_id": PAD} | search
        want, got = (generate(lm, ids, mask, **arguments) for lm in (model, compiled))
        assert got.tolist() == want.tolist()
    assert programs() == 1


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 2])
def test_sizes_that_were_equal_by_chance_may_differ(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal sizes the compiler takes for one: here, of the source and the cache, and of rows and source."""
    monkeypatch.setattr(compiled_page, "OWN_PRODUCTS", compiled_page.FROZEN)
    model = random_model(T5)
    compiled = prepare_for_decoding(model, compile=True)
    for length, new_tokens in ((6, 5), (6, 9), (9, 5)):  # the cache has room for one more than are new
        ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))
        arguments: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_token_id": None}
        assert torch.equal(generate(compiled, ids, **arguments), generate(model, ids, **arguments))


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_other_types_are_multiplied_in_their_type(dtype: torch.dtype, rows: int, programs: Any) -> None:
    """The same rounded matrices: what is apart is where sums are rounded, a few times in bfloat16."""
    model = random_model(GPT2)
    ids = torch.randint(3, VOCAB, (rows, 30), generator=torch.Generator().manual_seed(1))
    steppers = [
        DecoderState(prepare_for_decoding(model, dtype, compile=compile), ids, None, 30)
        for compile in (False, True)
    ]
    with torch.inference_mode():
        for tokens in (ids[:, :5], *ids[:, 5:].split(1, dim=1)):
            want, got = (stepper(tokens) for stepper in steppers)
            assert (got - want).abs().max() < 2**-5 * want.abs().max()
    assert programs() == 1


def test_watchers_take_the_models_own_page(programs: Any) -> None:
    compiled = prepare_for_decoding(random_model(GPT2), compile=True)
    ids, _ = random_ids(random.Random(0), 1)
    with record(compiled, "pattern.0") as acts:
        generate(compiled, ids, max_new_tokens=5, eos_token_id=None)
    assert acts["pattern.0"].shape[-1] == ids.shape[1] + 4
    assert programs() == 0


def test_a_step_asks_its_inputs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conditions on the frozen model are thousands, and took a fifteenth of a step of GPT-2."""
    asked: list[str] = []

    def listening(guards: Any) -> list[bool]:
        kept = guards_on_inputs(guards)
        asked.extend(guard.name for guard, keep in zip(guards, kept, strict=True) if keep)
        return kept

    monkeypatch.setattr(compiled_page, "OWN_PRODUCTS", compiled_page.FROZEN)
    monkeypatch.setattr(compiled_page, "guards_on_inputs", listening)
    ids, _ = random_ids(random.Random(0), 1)
    generate(prepare_for_decoding(random_model(T5), compile=True), ids, max_new_tokens=5, eos_token_id=None)
    assert set(asked) == {"", "new_ids", "mask", "encoder_output"}


def test_every_model_has_a_program_of_its_own(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program holds its model's weights: it must not be taken for another model of the same shape."""
    monkeypatch.setattr(compiled_page, "OWN_PRODUCTS", compiled_page.FROZEN)
    first = random_model(T5)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.lm_head.weight.copy_(second.lm_head.weight.flip(0))
    ids, _ = random_ids(random.Random(0), 1)
    arguments: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None}
    for model in (first, second):
        compiled = prepare_for_decoding(model, compile=True)
        assert torch.equal(generate(compiled, ids, **arguments), generate(model, ids, **arguments))
    assert programs() == 2


def test_a_prepared_copy_may_be_copied() -> None:
    compiled = prepare_for_decoding(random_model(GPT2), compile=True)
    assert copy.deepcopy(compiled).fast_step is not compiled.fast_step


def test_without_a_compiler_it_says_so() -> None:
    none = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with none, pytest.raises(ValueError, match=r"C\+\+ compiler"):
        prepare_for_decoding(random_model(GPT2), compile=True)
