"""Decoding steps as CUDA graphs generate equal ids. No GPU needed: tape.py replaces CUDA's graphs."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ftcore.data import load_tokenizer
from ftcore.decoding import generate, prepare_for_decoding
from ftcore.decoding.state import DecoderState
from ftcore.fast import cuda_graph
from ftcore.fast.cuda_graph import LENGTH_MULTIPLE, MAX_UNUSED, GraphStep
from ftcore.fast.decoding import use_graphs
from ftcore.lora.lora import merge_lora
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.study import record
from tests.helpers import tape
from tests.helpers.small_models import (
    MODELS,
    PAD,
    SEARCHES,
    VOCAB,
    assert_same_ids,
    assert_same_ids_with_a_kept_cache,
    model_of,
)

FAMILIES = ["gpt2", "t5, relu, tied"]


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry per captured graph."""
    made: list[Any] = []

    def counted(*arguments: Any) -> Any:
        made.append(tape.capture(*arguments))
        return made[-1]

    monkeypatch.setattr(cuda_graph, "capture", counted)
    return made


def graphed(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """As `prepare_for_decoding` on a GPU."""
    return use_graphs(merge_lora(model_of(name)).eval(), dtype)


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_equal(name: str, search: str, captures: list[Any]) -> None:
    assert_same_ids(name, graphed(name), search)
    assert captures


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_ids_are_those_of_the_model_in_bfloat16(name: str) -> None:
    prepared, model = graphed(name, torch.bfloat16), copy.deepcopy(model_of(name)).bfloat16()
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None}
    assert torch.equal(
        generate(prepared, some_ids(2, 5), **options), generate(model, some_ids(2, 5), **options)
    )
    assert {parameter.dtype for parameter in model_of(name).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", FAMILIES)
def test_stop_strings_and_generators_of_single_sources(
    name: str, tmp_path: Path, captures: list[Any]
) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    tokenizer = load_tokenizer(tmp_path)  # of the tokens below VOCAB, control characters
    prepared = graphed(name)
    options: dict[str, Any] = {
        "do_sample": True,
        "max_new_tokens": 12,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }
    options |= {"tokenizer": tokenizer, "stop_strings": [chr(token - 3) for token in range(20, 26)]}
    answers = [
        lm.generate(some_ids(3, 5), generator=[torch.Generator().manual_seed(n) for n in range(3)], **options)
        for lm in (model_of(name), prepared)
    ]
    assert answers[0].tolist() == answers[1].tolist()
    assert captures and (answers[0] == PAD).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_may_be_kept_between_calls(name: str, captures: list[Any]) -> None:
    prepared = graphed(name)
    assert_same_ids_with_a_kept_cache(name, prepared)
    assert len(captures) <= 4


@pytest.mark.parametrize("name", FAMILIES)
def test_similar_lengths_share_a_graph(name: str, captures: list[Any]) -> None:
    model, prepared = model_of(name), graphed(name)
    for seed, new_tokens in enumerate((9, 30, LENGTH_MULTIPLE - 9)):
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_token_id": None}
        ids = some_ids(2, 7, seed)
        assert torch.equal(generate(prepared, ids, **options), generate(model, ids, **options))
    assert len(captures) == 1


def test_a_graph_has_no_more_positions_than_the_model(captures: list[Any]) -> None:
    config = GPT2Config(vocab_size=VOCAB, n_embd=24, n_head=3, n_layer=1, n_positions=LENGTH_MULTIPLE + 5)
    prepared = use_graphs(GPT2LMHeadModel(config).eval(), torch.float32)
    ids = generate(prepared, some_ids(1, 3), max_length=LENGTH_MULTIPLE + 5, eos_token_id=None)
    assert ids.shape == (1, LENGTH_MULTIPLE + 5)
    [(_, logits)] = captures
    assert prepared.fast_step.graphs[0].visible.shape == (1, LENGTH_MULTIPLE + 5)
    assert logits.shape == (1, VOCAB)


@pytest.mark.parametrize("name", FAMILIES)
def test_nested_calls_use_separate_graphs(name: str, captures: list[Any]) -> None:
    model, prepared = model_of(name), graphed(name)
    options: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None}
    inner: list[Tensor] = []

    def interrupting(_: Tensor) -> None:
        inner.append(generate(prepared, some_ids(2, 5, seed=1), **options))

    outer = generate(prepared, some_ids(2, 5), streamer=interrupting, **options)
    assert torch.equal(outer, generate(model, some_ids(2, 5), **options))
    want = generate(model, some_ids(2, 5, seed=1), **options)
    assert len(inner) == 8 and all(torch.equal(ids, want) for ids in inner)
    assert len(captures) == 2


def test_threads_may_share_a_prepared_model() -> None:
    prepared, model = graphed("gpt2"), model_of("gpt2")
    rows = [some_ids(1, 7, seed) for seed in range(8)]
    options: dict[str, Any] = {"max_new_tokens": 15, "eos_token_id": None}
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda ids: generate(prepared, ids, **options), rows * 3))
    for ids, got in zip(rows * 3, at_once, strict=True):
        assert torch.equal(got, generate(model, ids, **options))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reused_graph_does_not_depend_on_the_previous_call(name: str) -> None:
    """Infinity in unused positions would become NaN: 0 * inf."""
    model, prepared = model_of(name), graphed(name)
    options: dict[str, Any] = {"eos_token_id": None, "pad_token_id": PAD}
    ids, mask = some_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    generate(prepared, some_ids(2, 9, seed=1), mask.flip(0), max_new_tokens=30, **options)
    [only] = prepared.fast_step.graphs
    with torch.inference_mode():
        for layer in only.cache.layers:
            for states in (layer.key, layer.value, *(layer.cross or ())):
                states.fill_(torch.inf)
    got = generate(prepared, ids, mask, max_new_tokens=20, **options)
    assert torch.equal(got, generate(model, ids, mask, max_new_tokens=20, **options))
    assert prepared.fast_step.graphs == [only]


def test_returned_logits_are_not_overwritten() -> None:
    stepper = DecoderState(graphed("gpt2"), some_ids(1, 4), None, 10)
    with torch.inference_mode():
        for new_ids in (some_ids(1, 4), some_ids(1, 1, seed=1)):
            logits = stepper(new_ids)
        before = logits.clone()
        assert not torch.equal(stepper(some_ids(1, 1, seed=2)), before)
    assert torch.equal(logits, before)


def test_the_least_recently_used_graphs_are_dropped(captures: list[Any]) -> None:
    prepared = graphed("gpt2")
    for rows in (*range(1, MAX_UNUSED + 3), MAX_UNUSED):  # the last one is captured already
        generate(prepared, some_ids(rows, 3), max_new_tokens=3, eos_token_id=None)
    assert len(captures) == MAX_UNUSED + 2
    graphs = prepared.fast_step.graphs
    assert [graph.sizes.rows for graph in graphs] == [3, 4, 5, 6, 7, 9, 10, 8]
    assert all(graph.owner() is None for graph in graphs)


def test_a_converted_model_is_captured_again(captures: list[Any]) -> None:
    """A graph reads the addresses that the weights had at its capture."""
    prepared = graphed("gpt2")
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None}
    generate(prepared, some_ids(2, 5), **options)
    want = generate(copy.deepcopy(model_of("gpt2")).bfloat16(), some_ids(2, 5), **options)
    assert torch.equal(generate(prepared.bfloat16(), some_ids(2, 5), **options), want)
    assert len(captures) == 2


def test_a_hooked_model_runs_without_graphs(captures: list[Any]) -> None:
    prepared = graphed("gpt2")
    with record(prepared, "pattern.0") as acts:
        generate(prepared, some_ids(1, 4), max_new_tokens=5, eos_token_id=None)
    assert acts["pattern.0"].shape[-1] == 8
    assert not captures


def test_a_copy_has_no_graphs() -> None:
    prepared = graphed("gpt2")
    generate(prepared, some_ids(1, 4), max_new_tokens=5, eos_token_id=None)
    assert copy.deepcopy(prepared).fast_step.graphs == []


def test_the_tape_refuses_synchronization() -> None:
    with pytest.raises(RuntimeError, match=r"_local_scalar_dense.* synchronizes"):
        tape.capture(lambda: torch.ones(2) * float(torch.ones(2).sum()), torch.device("cpu"))


def test_the_tape_replays_python_numbers_as_constants() -> None:
    """As a CUDA graph does."""
    numbers = iter((1.0, 2.0, 3.0))
    memory = torch.zeros(2)
    replay, result = tape.capture(lambda: memory + next(numbers), torch.device("cpu"))
    memory.fill_(5.0)
    replay()
    assert result.tolist() == [7.0, 7.0]


# Models on a GPU, as PyTorch's fake tensors: devices, shapes and dtypes without values.


def on_gpu(dtype: torch.dtype = torch.float32) -> Any:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_head=2, n_layer=1)).to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cuda")
    model.tie_weights()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_a_gpu_uses_graphs(dtype: torch.dtype) -> None:
    model = on_gpu(dtype)
    prepared: Any = prepare_for_decoding(model, dtype)
    assert isinstance(prepared.fast_step, GraphStep)
    assert {(each.dtype, each.device.type) for each in prepared.parameters()} == {(dtype, "cuda")}
    assert prepared.lm_head.weight is prepared.transformer.wte.weight
    assert not hasattr(model, "fast_step")


def test_unsupported_options_on_a_gpu_are_refused_in_one_line() -> None:
    for model, arguments, message in (
        (
            on_gpu(),
            {"dtype": torch.int8},
            "dtype is torch.int8, expected one of torch.float32, torch.bfloat16 on",
        ),
        (
            on_gpu(),
            {"compile": True},
            "compile=True is for a CPU: on cuda:0 a step is a CUDA graph without it",
        ),
        (on_gpu(torch.bfloat16), {}, "the model has torch.bfloat16 weights, expected float32"),
        (prepare_for_decoding(on_gpu()), {}, "prepared already"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            prepare_for_decoding(model, **arguments)
        assert "\n" not in str(caught.value)
