"""A compiled decoding step generates equal ids for every length, and one program serves many models."""

import copy
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

from ftcore.decoding import generate, prepare_for_decoding
from ftcore.decoding.state import DecoderState
from ftcore.fast import compiled_step, program_cache
from ftcore.fast.compiled_step import CompiledStep, program_name
from ftcore.fast.packed import Int8Linear
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

pytestmark = pytest.mark.usefixtures("kept_programs")


@pytest.fixture(scope="module")
def kept_programs(compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the programs, which all tests of this file share: compiling one takes ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(compiled_step, "SETTINGS", {"pattern_matcher": False})  # faster: precompiled headers
        yield Path()


@pytest.fixture
def compiled_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs compiled during a test."""
    names: list[str] = []
    compile_program = program_cache._compile

    def recorded(path: Path, compile: Any) -> Any:
        names.append(path.stem)
        return compile_program(path, compile)

    monkeypatch.setattr(program_cache, "_compile", recorded)  # not compile_step: kept programs depend on it
    return names


def random_ids(r: random.Random, rows: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, with left padding in all rows but the first."""
    length = r.randrange(1, 12)
    ids = torch.tensor([[r.randrange(3, VOCAB) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : r.randrange(length)] = 0
    return ids.masked_fill(mask == 0, PAD), mask


@pytest.mark.parametrize(
    ("config", "rows", "search", "program"),
    [
        (GPT2, [1], {"no_repeat_ngram_size": 2}, "one-row"),
        (GPT2, [5, 2, 20, 33], {"no_repeat_ngram_size": 2}, "rows"),
        (T5, [1], {}, "one-row"),
        (T5, [4, 2, 9], {}, "rows"),
        (T5, [1], {"num_beams": 3}, "beams-of-one-source"),
        (T5, [4, 2, 9], {"num_beams": 5}, "beams"),
    ],
    ids=["gpt2, text", "gpt2, texts", "t5, text", "t5, texts", "t5, beams", "t5, beams of texts"],
)
def test_ids_of_every_length_are_equal(
    config: Any, rows: list[int], search: dict[str, Any], program: str, compiled_names: list[str]
) -> None:
    """Also for every number of rows, which decreases as sources finish, and with or without padding."""
    model = random_model(config)
    compiled = prepare_for_decoding(model, compile=True)
    for seed in range(8):
        r = random.Random(seed)
        ids, mask = random_ids(r, rows[seed % len(rows)])
        arguments = {"max_new_tokens": r.randrange(3, 40), "eos_token_id": EOS, "pad_token_id": PAD} | search
        arguments["attention_mask"] = mask if seed % 2 else None
        want, got = (generate(lm, ids, **arguments) for lm in (model, compiled))
        assert got.tolist() == want.tolist()
    assert compiled_names == [program]


@pytest.mark.parametrize(("config", "dtype", "rows"), [(GPT2, torch.int8, 6), (T5, torch.bfloat16, 1)])
def test_other_dtypes_multiply_in_their_dtype(config: Any, dtype: torch.dtype, rows: int) -> None:
    """The weights are equal; sums are rounded to bfloat16, and inputs to integers, at different places."""
    for want, got in logits_of_steps(config, dtype, rows):
        assert (got - want).abs().max() < 2**-5 * want.abs().max()


def test_int8_of_one_row_multiplies_unrounded_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(layer: Int8Linear, inputs: Tensor, matrix: Tensor, *, packed: bool) -> Tensor:
        assert not packed
        return inputs @ (matrix * layer.scale[:, None]).T

    monkeypatch.setattr(Int8Linear, "product", exact)
    for want, got in logits_of_steps(GPT2, torch.int8, 1):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def logits_of_steps(config: Any, dtype: torch.dtype, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of 20 steps, uncompiled and compiled, of prepared models with equal weights."""
    model = random_model(config)
    ids = torch.randint(3, VOCAB, (rows, 20), generator=torch.Generator().manual_seed(1))
    states = [
        DecoderState(prepare_for_decoding(model, dtype, compile=compile), ids, None, 30)
        for compile in (False, True)
    ]
    with torch.inference_mode():
        for tokens in ids.split(1, dim=1):
            yield states[0](tokens), states[1](tokens)


def test_a_program_serves_other_models_of_its_shape(compiled_names: list[str]) -> None:
    """In this process and in others, since weights are no part of it."""
    first = random_model(T5)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.lm_head.weight.copy_(second.lm_head.weight.flip(0))
        second.decoder.final_layer_norm.weight.neg_()
    ids, mask = random_ids(random.Random(0), 3)
    arguments: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": None}
    for model in (first, second):
        compiled = prepare_for_decoding(model, compile=True)
        want, got = (generate(lm, ids, mask, **arguments) for lm in (model, compiled))
        assert got.tolist() == want.tolist()
    assert set(compiled_names) <= {"rows"} and len(compiled_names) < 2


def test_prompts_may_pack_matrices_between_steps() -> None:
    """A program for one row reads plain matrices only."""
    model = random_model(T5)
    compiled = prepare_for_decoding(model, compile=True)
    r = random.Random(0)
    for rows, new_tokens in ((1, 9), (3, 1), (1, 9), (3, 9), (1, 1), (3, 9), (1, 9)):
        ids, _ = random_ids(r, rows)
        arguments: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_token_id": None}
        assert torch.equal(generate(compiled, ids, **arguments), generate(model, ids, **arguments))


def test_threads_with_different_numbers_of_rows_may_share_a_model() -> None:
    compiled = prepare_for_decoding(random_model(T5), compile=True)
    inputs = [random_ids(random.Random(seed), rows)[0] for seed, rows in enumerate([1, 3] * 6)]

    def answer(ids: Tensor) -> list[list[int]]:
        return generate(compiled, ids, max_new_tokens=12, eos_token_id=None).tolist()

    want = [answer(ids) for ids in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, inputs)) == want


def test_a_hooked_model_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_step, "compile_step", None)
    compiled = prepare_for_decoding(random_model(GPT2), compile=True)
    ids, _ = random_ids(random.Random(0), 1)
    with record(compiled, "pattern.0") as acts:
        generate(compiled, ids, max_new_tokens=5, eos_token_id=None)
    assert acts["pattern.0"].shape[-1] == ids.shape[1] + 4


def test_a_search_does_not_change_its_program() -> None:
    """Which would be loaded, or compiled, in the middle of it."""
    step = CompiledStep(prepare_for_decoding(random_model(T5)))
    names = {(r, s): program_name(r, s) for s in range(1, 5) for r in range(s, 9, s)}
    for (rows, sources), name in names.items():
        for left in range(1, sources):
            left_rows = left * rows // sources
            assert not step.supports(left, left_rows) or names[left_rows, left] == name


def test_a_prepared_model_can_be_copied_and_pickled() -> None:
    compiled = prepare_for_decoding(random_model(GPT2), compile=True)
    ids, _ = random_ids(random.Random(3), 2)
    want = generate(compiled, ids, max_new_tokens=5, eos_token_id=None).tolist()
    for copied in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert isinstance(copied.fast_step, CompiledStep) and copied.fast_step is not compiled.fast_step
        assert generate(copied, ids, max_new_tokens=5, eos_token_id=None).tolist() == want


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no program is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    no_compiler = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with no_compiler, pytest.raises(ValueError, match=r"C\+\+ compiler"):
        prepare_for_decoding(random_model(GPT2), compile=True)
