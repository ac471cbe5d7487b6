"""A compiled decoding step generates equal ids for every length, compiled once."""

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

from ftcore.decoding import generate, prepare_for_decoding
from ftcore.decoding.state import DecoderState
from ftcore.fast import compiled_step
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

pytestmark = pytest.mark.usefixtures("compilations")


def random_ids(r: random.Random, rows: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, with left padding in all rows but the first."""
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
def test_ids_of_every_length_are_equal(
    config: Any, rows: list[int], search: dict[str, Any], compilations: Any
) -> None:
    """Also for every number of rows above FEW_ROWS, which decreases as sources finish."""
    model = random_model(config)
    compiled = prepare_for_decoding(model, compile=True)
    for seed in range(6):
        r = random.Random(seed)
        ids, mask = random_ids(r, rows[seed % len(rows)])
        arguments = {"max_new_tokens": r.randrange(3, 40), "eos_token_id": EOS, "pad_token_id": PAD} | search
        want, got = (generate(lm, ids, mask, **arguments) for lm in (model, compiled))
        assert got.tolist() == want.tolist()
    assert compilations() == 1


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 2])
def test_sizes_that_were_equal_may_differ_later(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler unifies equal sizes: here, of source and cache, and of rows and source."""
    monkeypatch.setattr(compiled_step, "AUTOTUNED", compiled_step.FREEZING)
    model = random_model(T5)
    compiled = prepare_for_decoding(model, compile=True)
    for length, new_tokens in ((6, 5), (6, 9), (9, 5)):  # the cache has one position more
        ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))
        arguments: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_token_id": None}
        assert torch.equal(generate(compiled, ids, **arguments), generate(model, ids, **arguments))


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_other_dtypes_multiply_in_their_dtype(dtype: torch.dtype, rows: int, compilations: Any) -> None:
    """The weights are equal; sums are rounded to bfloat16 at different places."""
    model = random_model(GPT2)
    ids = torch.randint(3, VOCAB, (rows, 30), generator=torch.Generator().manual_seed(1))
    states = [
        DecoderState(prepare_for_decoding(model, dtype, compile=compile), ids, None, 30)
        for compile in (False, True)
    ]
    with torch.inference_mode():
        for tokens in (ids[:, :5], *ids[:, 5:].split(1, dim=1)):
            want, got = (state(tokens) for state in states)
            assert (got - want).abs().max() < 2**-5 * want.abs().max()
    assert compilations() == 1


def test_a_hooked_model_runs_uncompiled(compilations: Any) -> None:
    compiled = prepare_for_decoding(random_model(GPT2), compile=True)
    ids, _ = random_ids(random.Random(0), 1)
    with record(compiled, "pattern.0") as acts:
        generate(compiled, ids, max_new_tokens=5, eos_token_id=None)
    assert acts["pattern.0"].shape[-1] == ids.shape[1] + 4
    assert compilations() == 0


def test_only_guards_on_inputs_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thousands of guards on the frozen model took a fifteenth of a step of GPT-2."""
    checked: list[str] = []

    def recording(guards: Any) -> list[bool]:
        kept = guards_on_inputs(guards)
        checked.extend(guard.name for guard, keep in zip(guards, kept, strict=True) if keep)
        return kept

    monkeypatch.setattr(compiled_step, "AUTOTUNED", compiled_step.FREEZING)
    monkeypatch.setattr(compiled_step, "guards_on_inputs", recording)
    ids, _ = random_ids(random.Random(0), 1)
    generate(prepare_for_decoding(random_model(T5), compile=True), ids, max_new_tokens=5, eos_token_id=None)
    assert set(checked) == {"", "new_ids", "mask", "encoder_output", "encoder_mask"}


def test_models_are_compiled_separately(compilations: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are constants of the compiled code, which must not serve another model of the same shape."""
    monkeypatch.setattr(compiled_step, "AUTOTUNED", compiled_step.FREEZING)
    first = random_model(T5)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.lm_head.weight.copy_(second.lm_head.weight.flip(0))
    ids, _ = random_ids(random.Random(0), 1)
    arguments: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None}
    for model in (first, second):
        compiled = prepare_for_decoding(model, compile=True)
        assert torch.equal(generate(compiled, ids, **arguments), generate(model, ids, **arguments))
    assert compilations() == 2


def test_a_prepared_model_can_be_copied_and_pickled() -> None:
    compiled = prepare_for_decoding(random_model(GPT2), compile=True)
    assert copy.deepcopy(compiled).fast_step is not compiled.fast_step
    assert isinstance(pickle.loads(pickle.dumps(compiled)).fast_step, compiled_step.CompiledStep)


def test_a_missing_compiler_is_named() -> None:
    no_compiler = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with no_compiler, pytest.raises(ValueError, match=r"C\+\+ compiler"):
        prepare_for_decoding(random_model(GPT2), compile=True)
