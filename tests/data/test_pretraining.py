"""Examples of a corpus: every token predicted once, nothing padded, noise that depends on its place alone."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore.data import (
    CausalLMDataset,
    Corpus,
    DataLoader,
    SpanCorruption,
    load_tokenizer,
    make_pretraining_dataset,
    read_corpus,
)
from ftcore.data.tokenizer import Tokenizer

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = [f"Person {i} lives in house {i * i} and has {i % 7} cats.\n" for i in range(400)]
    path.write_text("<|endoftext|>\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer(WEIGHTS / "gpt2-mini")


@pytest.fixture(scope="module")
def t5() -> Tokenizer:
    return load_tokenizer(WEIGHTS / "t5-mini")


@pytest.fixture(scope="module")
def running(text: Path, gpt2: Tokenizer) -> Corpus:
    return read_corpus("lm", text, gpt2, decoder_only=True)


@pytest.fixture(scope="module")
def unmarked(text: Path, t5: Tokenizer) -> Corpus:
    return read_corpus("span-corruption", text, t5, decoder_only=False)


# --- blocks


@settings(deadline=None, max_examples=30)
@given(length=st.integers(2, 9000), fraction=st.floats(0.01, 0.5))
def test_blocks_predict_every_token_but_the_first_once(running: Corpus, length: int, fraction: float) -> None:
    _, corpus = running.split(fraction)
    blocks = CausalLMDataset(corpus, length)
    examples = [blocks[i] for i in range(len(blocks))]
    rows = [example["labels"] for example in examples]
    assert [*rows[0][:1], *(token for row in rows for token in row[1:])] == corpus.read(0, len(corpus))
    assert all(example["input_ids"] == example["labels"] for example in examples)
    assert all(len(row) == length for row in rows[:-1]) and 2 <= len(rows[-1]) <= length
    assert blocks.lengths.tolist() == [[len(row), len(row)] for row in rows]
    assert blocks.max_input_length == blocks.max_label_length == length


# --- span corruption


def restore(source: list[int], target: list[int], sentinels: set[int]) -> list[int]:
    """Put the spans of the target where their sentinels stand in the source."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in sentinels:
            current = spans[token] = []
        else:
            current.append(token)
    return [part for token in source[:-1] for part in spans.get(token, [token])]


def test_chunks_hold_the_text_in_order(unmarked: Corpus, t5: Tokenizer) -> None:
    chunks = SpanCorruption(unmarked, t5, 512)
    sentinels = {t5.sentinel_id(i) for i in range(100)}
    restored = [
        restore(c["input_ids"], c["labels"], sentinels) for c in (chunks[i] for i in range(len(chunks)))
    ]
    assert all(len(ids) == 568 for ids in restored)
    assert len(chunks) == len(unmarked) // 568
    assert [token for ids in restored for token in ids] == unmarked.read(0, 568 * len(chunks))


@pytest.mark.parametrize("source_length", [3, 64, 129, 512])
def test_no_batch_has_padding(unmarked: Corpus, t5: Tokenizer, source_length: int) -> None:
    chunks = SpanCorruption(unmarked, t5, source_length)
    for batch, _ in zip(DataLoader(chunks, 7, pad_id=t5.pad_id, shuffle=True), range(50), strict=False):
        assert batch["attention_mask"].all() and (batch["labels"] >= 0).all()
        assert (batch["input_ids"][:, -1] == t5.eos_id).all() and (batch["labels"][:, -1] == t5.eos_id).all()
        assert (batch["input_ids"] == t5.eos_id).sum() == len(batch["index"])  # no other, documents or not
        assert batch["input_ids"].shape[1] == chunks.max_input_length == source_length
        assert batch["labels"].shape[1] == chunks.max_label_length


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(10)), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_noise_is_a_function_of_seed_epoch_and_place(
    unmarked: Corpus, t5: Tokenizer, order: list[int], seed: int, epoch: int
) -> None:
    one, other = (SpanCorruption(unmarked, t5, 128, seed=seed) for _ in range(2))
    one.epoch = other.epoch = epoch
    expected = [one[i] for i in range(10)]
    assert [other[i] for i in order] == [expected[i] for i in order]
    other.epoch = epoch + 1
    assert all(other[i] != expected[i] for i in range(10))
    third = SpanCorruption(unmarked, t5, 128, seed=seed + 1)
    third.epoch = epoch
    assert all(third[i] != expected[i] for i in range(10))


def batches(loader: DataLoader, first: int, epochs: int) -> list[dict[str, torch.Tensor]]:
    found = []
    for epoch in range(first, epochs):
        loader.set_epoch(epoch)
        found.extend(loader)
    return found


def equal(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_the_second_epoch_is_the_uninterrupted_run(
    unmarked: Corpus, t5: Tokenizer, workers: int
) -> None:
    def loader(num_workers: int) -> DataLoader:
        chunks = SpanCorruption(unmarked, t5, 256, seed=3)
        return DataLoader(chunks, 4, pad_id=t5.pad_id, shuffle=True, seed=3, num_workers=num_workers)

    expected = batches(loader(0), 0, 3)
    per_epoch = len(loader(0))
    assert per_epoch > 4
    stopped = loader(workers)
    stopped.set_epoch(1)
    started = iter(stopped)
    for _ in range(3):
        next(started)
    state = stopped.state_dict()
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert equal(batches(resumed, 1, 3), expected[per_epoch + 3 :])


def test_other_spans_in_every_epoch(unmarked: Corpus, t5: Tokenizer) -> None:
    loader = DataLoader(SpanCorruption(unmarked, t5, 256), 8, pad_id=t5.pad_id)
    first, second = batches(loader, 0, 1), batches(loader, 1, 2)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert not torch.equal(one["input_ids"], other["input_ids"])


# --- both


def test_which_examples_a_corpus_has(
    running: Corpus, unmarked: Corpus, gpt2: Tokenizer, t5: Tokenizer
) -> None:
    blocks = make_pretraining_dataset(running, gpt2, max_source_length=512, max_target_length=128)
    assert isinstance(blocks, CausalLMDataset) and blocks.max_input_length == 128
    chunks = make_pretraining_dataset(unmarked, t5, max_source_length=512, max_target_length=128, seed=5)
    assert isinstance(chunks, SpanCorruption) and chunks.seed == 5
    assert (chunks.max_input_length, chunks.max_label_length) == (512, 114)


def test_behave_like_a_sequence_and_travel_to_workers(
    running: Corpus, unmarked: Corpus, t5: Tokenizer
) -> None:
    for data in (CausalLMDataset(running, 512), SpanCorruption(unmarked, t5, 512)):
        assert data[-1] == data[len(data) - 1]
        assert data[-1]["index"] == len(data) - 1
        with pytest.raises(IndexError):
            data[len(data)]
        copy = pickle.loads(pickle.dumps(data))
        assert copy[1] == data[1]
        assert copy.lengths.nbytes == 8 * len(data)


def test_what_cannot_become_examples(running: Corpus, unmarked: Corpus, t5: Tokenizer) -> None:
    with pytest.raises(ValueError, match="length of a block is 1; expected at least 2"):
        CausalLMDataset(running, 1)
    with pytest.raises(ValueError, match="at least 3 tokens, got 2"):
        SpanCorruption(unmarked, t5, 2)
    with pytest.raises(ValueError, match=r"text\.txt: \d+ tokens, but a source of 5000 is made of \d+: more"):
        SpanCorruption(unmarked.split(0.1)[1], t5, 5000)
    with pytest.raises(ValueError, match=r"spans cut out: <extra_id_\d+> is not in .*; shorter sources"):
        SpanCorruption(unmarked, t5, 4000)
    with pytest.raises(ValueError, match="has targets of 114 tokens, but max_target_length is 100: raise it"):
        make_pretraining_dataset(unmarked, t5, max_source_length=512, max_target_length=100)
