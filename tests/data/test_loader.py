"""Every example once, the same examples per step for any accumulation, exact resume, padding by length."""

from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftcore.data import DataLoader, Dataset, Record
from ftcore.data.loader import BucketBatchSampler

PAD = EOS = 1


class Letters:
    """One id per letter. The end token is also the pad token, as in GPT-2."""

    eos_id = EOS

    def __init__(self, appends_eos: bool) -> None:
        self.end = [EOS] if appends_eos else []

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text] + self.end


def make_dataset(lengths: list[tuple[int, int]], decoder_only: bool) -> Dataset:
    records = [Record("s" * source, "t" * target) for source, target in lengths]
    tokenizer: Any = Letters(appends_eos=not decoder_only)
    return Dataset(records, tokenizer, decoder_only=decoder_only, max_source_length=40, max_target_length=20)


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=60)
ORDER = st.fixed_dictionaries(
    {"shuffle": st.booleans(), "bucket": st.booleans(), "seed": st.integers(0, 2**40)}
)
SIZES = st.fixed_dictionaries({"batch_size": st.integers(1, 9), "accumulate": st.integers(1, 5)})

properties = settings(deadline=None, max_examples=60)


def equal(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)
        for x, y in zip(a, b, strict=True)
    )


# --- order


@properties
@given(LENGTHS, ORDER, SIZES, st.integers(0, 5))
def test_every_example_once_in_full_steps(lengths: list, order: dict, sizes: dict, epoch: int) -> None:
    loader = DataLoader(make_dataset(lengths, decoder_only=False), pad_id=PAD, **order, **sizes)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert sorted(i for batch in batches for i in batch["index"].tolist()) == list(range(len(lengths)))
    assert len(loader) == len(batches)

    accumulate, batch_size = sizes["accumulate"], sizes["batch_size"]
    assert loader.steps_per_epoch == len(range(0, len(batches), accumulate))
    # Only the last micro-batch may be short.
    short = [batch for batch in batches if len(batch["index"]) < batch_size]
    assert not short or (len(short) == 1 and short[0] is batches[-1])


@properties
@given(LENGTHS, ORDER, SIZES, st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_ranks_share_each_batch(
    lengths: list, order: dict, sizes: dict, processes: int, epoch: int, decoder_only: bool
) -> None:
    """The shards of a batch are disjoint, complete and balanced, and all ranks save the same position."""
    dataset = make_dataset(lengths, decoder_only)
    whole, *shards = loaders = [
        DataLoader(dataset, pad_id=PAD, **order, **sizes, rank=process, world_size=count)
        for process, count in ((0, 1), *((process, processes) for process in range(processes)))
    ]
    for loader in loaders:
        loader.set_epoch(epoch)
    for batch, *parts in zip(*loaders, strict=True):
        rows = [part["index"].tolist() for part in parts]
        assert sorted(chain(*rows)) == sorted(batch["index"].tolist())
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        assert sum(int((part["labels"] >= 0).sum()) for part in parts) == int((batch["labels"] >= 0).sum())
        for part in parts:
            assert part["input_ids"].shape == part["attention_mask"].shape
            assert part["attention_mask"].any(-1).all()
            assert len(part["labels"]) == max(1, len(part["index"]))
    assert all(loader.state_dict() == whole.state_dict() for loader in shards)


@properties
@given(LENGTHS, ORDER, st.integers(0, 5), st.sampled_from([(8, 1), (12, 1), (16, 1)]))
def test_a_step_has_the_same_examples_for_any_accumulation(
    lengths: list, order: dict, epoch: int, whole: tuple[int, int]
) -> None:
    data = make_dataset(lengths, decoder_only=True)
    size = whole[0]
    contents = []
    for batch_size in (b for b in range(1, size + 1) if size % b == 0):
        accumulate = size // batch_size
        loader = DataLoader(data, batch_size, pad_id=PAD, accumulate=accumulate, **order)
        loader.set_epoch(epoch)
        batches = iter(loader)
        contents.append(
            [
                [i for batch in islice(batches, accumulate) for i in batch["index"].tolist()]
                for _ in range(loader.steps_per_epoch)
            ]
        )
    assert all(content == contents[0] for content in contents)


@properties
@given(LENGTHS, SIZES, st.booleans(), st.integers(0, 2**40), st.integers(0, 100))
def test_the_order_is_a_pure_function_of_seed_and_epoch(
    lengths: list, sizes: dict, bucket: bool, seed: int, epoch: int
) -> None:
    data = make_dataset(lengths, decoder_only=False)
    direct, used = (
        DataLoader(data, pad_id=PAD, shuffle=True, seed=seed, bucket=bucket, **sizes) for _ in range(2)
    )
    direct.set_epoch(epoch)
    torch.manual_seed(epoch)
    np.random.seed(epoch)
    list(used)
    used.set_epoch(epoch + 1)
    next(iter(used))
    used.set_epoch(epoch)
    assert equal(list(direct), list(used))


def test_seeds_and_epochs_give_different_orders() -> None:
    data = make_dataset([(1 + i % 30, 3) for i in range(200)], decoder_only=False)
    for bucket in (False, True):
        orders = set()
        for seed in range(3):
            loader = DataLoader(data, 8, pad_id=PAD, shuffle=True, seed=seed, bucket=bucket)
            for epoch in range(3):
                loader.set_epoch(epoch)
                orders.add(tuple(i for batch in loader for i in batch["index"].tolist()))
        assert len(orders) == 9


def test_without_shuffling_the_order_is_that_of_the_data_or_longest_first() -> None:
    data = make_dataset([(2, 1), (9, 1), (5, 2), (5, 3)], decoder_only=False)
    plain = DataLoader(data, 3, pad_id=PAD, bucket=False)
    assert [batch["index"].tolist() for batch in plain] == [[0, 1, 2], [3]]
    bucketed = DataLoader(data, 3, pad_id=PAD)
    for epoch in range(2):
        bucketed.set_epoch(epoch)
        assert [batch["index"].tolist() for batch in bucketed] == [[1, 3, 2], [0]]


# --- buckets


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from([1, 4]), st.booleans())
def test_buckets_reduce_padding(seed: int, accumulate: int, decoder_only: bool) -> None:
    random = np.random.default_rng(seed)
    lengths = [(random.integers(1, 31), random.integers(1, 5)) for _ in range(300)]
    data = make_dataset(lengths, decoder_only)

    def padding_share(bucket: bool) -> float:
        loader = DataLoader(data, 4, pad_id=PAD, accumulate=accumulate, shuffle=True, bucket=bucket)
        masks = [batch["attention_mask"] for batch in loader]
        return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding_share(bucket=True) < 0.4 * padding_share(bucket=False)


def test_buckets_change_with_the_epoch_and_mix_lengths() -> None:
    data = make_dataset([(1 + i % 30, 3) for i in range(600)], decoder_only=False)
    loader = DataLoader(data, 8, pad_id=PAD, shuffle=True)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        epochs.append({frozenset(batch["index"].tolist()) for batch in batches})
        widths = [batch["input_ids"].shape[1] for batch in batches]
        assert widths not in (sorted(widths), sorted(widths, reverse=True))
    assert not epochs[0] & epochs[1]


def test_the_last_short_step_has_examples_of_any_length() -> None:
    lengths = np.tile(np.arange(1, 101), 2).repeat(2).reshape(-1, 2)[:197]
    sampler = BucketBatchSampler(lengths, 8, 1, shuffle=True, seed=0, bucket=True)
    means = []
    for sampler.epoch in range(60):
        last_step = sampler.order()[-(197 % 8) :]
        means.append(lengths[last_step, 0].mean())
    assert min(means) < 35 and max(means) > 65


# --- resuming


@properties
@given(LENGTHS, ORDER, SIZES, st.booleans(), st.data())
def test_resuming_equals_the_uninterrupted_run(
    lengths: list, order: dict, sizes: dict, decoder_only: bool, data: st.DataObject
) -> None:
    dataset = make_dataset(lengths, decoder_only)
    epochs = 3

    def run(loader: DataLoader, first: int) -> Any:
        for epoch in range(first, epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                yield batch, loader.state_dict()

    uninterrupted = list(run(DataLoader(dataset, pad_id=PAD, **order, **sizes), 0))
    stop = data.draw(st.integers(0, len(uninterrupted) - 1))
    state = uninterrupted[stop][1]
    resumed = DataLoader(dataset, pad_id=PAD, **order, **sizes)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = [batch for batch, _ in run(resumed, state["epoch"])]
    assert equal(rest, [batch for batch, _ in uninterrupted[stop + 1 :]])


def test_workers_do_not_affect_batches_or_position() -> None:
    data = make_dataset([(1 + i % 30, 3) for i in range(90)], decoder_only=False)
    options: dict = {"batch_size": 4, "pad_id": PAD, "accumulate": 2, "shuffle": True, "seed": 7}
    loader = DataLoader(data, **options, num_workers=2)
    expected = list(DataLoader(data, **options))
    started = iter(loader)
    taken = [next(started) for _ in range(5)]
    state = loader.state_dict()
    assert state["batches"] == 5  # although the workers prefetch
    del started
    resumed = DataLoader(data, **options, num_workers=2)
    resumed.load_state_dict(state)
    assert equal(taken + list(resumed), expected)


def test_iterating_again_restarts_and_does_not_use_the_global_generator() -> None:
    data = make_dataset([(i, 3) for i in range(1, 20)], decoder_only=False)
    loader = DataLoader(data, 4, pad_id=PAD, shuffle=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(loader)
    next(iter(loader))
    assert equal(list(loader), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_position_in_other_data_or_with_other_options_is_refused() -> None:
    lengths = [(i, 3) for i in range(1, 20)]
    options: dict = {"pad_id": PAD, "batch_size": 4, "shuffle": True, "seed": 1}
    state = DataLoader(make_dataset(lengths, decoder_only=False), **options).state_dict()
    with pytest.raises(ValueError, match=r"cannot resume in the data: batch_size was 4 .* and is 8 now"):
        DataLoader(make_dataset(lengths, decoder_only=False), **options | {"batch_size": 8}).load_state_dict(
            state
        )
    with pytest.raises(ValueError, match="seed was 1 when the position was saved and is 2 now"):
        DataLoader(make_dataset(lengths, decoder_only=False), **options | {"seed": 2}).load_state_dict(state)
    with pytest.raises(ValueError, match="examples was 19 when the position was saved and is 18 now"):
        DataLoader(make_dataset(lengths[1:], decoder_only=False), **options).load_state_dict(state)
    with pytest.raises(ValueError, match="example_lengths_crc32 was"):
        DataLoader(make_dataset([*lengths[1:], (1, 4)], decoder_only=False), **options).load_state_dict(state)


# --- padding


@properties
@given(LENGTHS, st.booleans(), st.sampled_from(["left", "right"]), st.booleans())
def test_padding_is_by_length_even_if_pad_is_eos(
    lengths: list, decoder_only: bool, side: str, to_max_length: bool
) -> None:
    data = make_dataset(lengths, decoder_only)
    loader = DataLoader(data, 5, pad_id=PAD, shuffle=True, padding_side=side, pad_to_max_length=to_max_length)
    label_side = side if decoder_only else "right"
    for batch in loader:
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        longest = data.lengths[batch["index"].numpy()].max(axis=0).tolist()
        width = [data.max_input_length, data.max_label_length] if to_max_length else longest
        assert [batch["input_ids"].shape[1], batch["labels"].shape[1]] == width
        for row, index in enumerate(batch["index"].tolist()):
            example = data[index]
            inputs, labels = example["input_ids"], example["labels"]
            gap = [0] * (width[0] - len(inputs))
            mask = gap + [1] * len(inputs) if side == "left" else [1] * len(inputs) + gap
            assert batch["attention_mask"][row].tolist() == mask
            present = batch["attention_mask"][row].bool()
            assert batch["input_ids"][row][present].tolist() == inputs
            assert (batch["input_ids"][row][~present] == PAD).all()
            gap = [-100] * (width[1] - len(labels))
            assert batch["labels"][row].tolist() == (gap + labels if label_side == "left" else labels + gap)
            assert (batch["labels"][row] == EOS).sum() == 1  # one label, not masked


# --- errors


def test_invalid_options_are_refused() -> None:
    data = make_dataset([(3, 3)], decoder_only=False)
    with pytest.raises(ValueError, match="batch_size is 0 and accumulate 1; expected 1 or more"):
        DataLoader(data, 0, pad_id=PAD)
    with pytest.raises(ValueError, match="batch_size is 2 and accumulate 0; expected 1 or more"):
        DataLoader(data, 2, pad_id=PAD, accumulate=0)
    with pytest.raises(ValueError, match="seed is -1; expected 0 or more"):
        DataLoader(data, 2, pad_id=PAD, seed=-1)
    with pytest.raises(ValueError, match="padding_side is 'top'; expected 'left' or 'right'"):
        DataLoader(data, 2, pad_id=PAD, padding_side="top")
    with pytest.raises(ValueError, match="the data set has no examples"):
        DataLoader(make_dataset([], decoder_only=False), 2, pad_id=PAD)
