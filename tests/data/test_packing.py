"""Packed rows: every example once, within the limits, and no attention across examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.data import DataLoader
from ftcore.data.packing import examples_of, pack, position_ids, same_segment, segment_starts
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.training.loss import batch_loss, count_targets

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(2, 9)), min_size=1, max_size=12)


class RandomExamples:
    """Random examples of given lengths, with the interface of a `Dataset`."""

    def __init__(self, lengths: list[tuple[int, int]], *, decoder_only: bool) -> None:
        self.decoder_only, self.epoch = decoder_only, 0
        self.lengths = np.array([(sum(pair),) * 2 if decoder_only else pair for pair in lengths])
        self.max_input_length, self.max_label_length = self.lengths.max(0).tolist()
        self._sources = [source for source, _ in lengths]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict:
        random = np.random.default_rng(index)
        ids, labels = (random.integers(3, 20, length).tolist() for length in self.lengths[index])
        if self.decoder_only:
            labels = [-100] * self._sources[index] + ids[self._sources[index] :]
        return {"input_ids": ids, "labels": labels, "index": index}


def load(lengths: list[tuple[int, int]], *, decoder_only: bool, packed: bool, size: int = 99) -> list[dict]:
    return list(
        DataLoader(
            RandomExamples(lengths, decoder_only=decoder_only), size, pad_id=0, bucket=False, pack=packed
        )
    )


def model(decoder_only: bool) -> GPT2LMHeadModel | T5ForConditionalGeneration:
    torch.manual_seed(0)
    if decoder_only:
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_positions=18, n_embd=8, n_layer=2, n_head=2)
        ).eval()
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


@given(LENGTHS, st.tuples(st.integers(1, 20), st.integers(2, 20)))
def test_each_example_is_in_one_row_within_the_limits(lengths, limits):
    rows = pack(lengths, limits)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    for row in rows:
        totals = [sum(lengths[example][side] for example in row) for side in (0, 1)]
        assert len(row) == 1 or all(total <= limit for total, limit in zip(totals, limits, strict=True))


def test_first_fit_by_hand():
    assert pack([(2, 2), (6, 2), (4, 2), (3, 2)], (8, 9)) == [[1, 0], [2, 3]]
    assert pack([(2, 2), (6, 8), (4, 2), (3, 2)], (8, 9)) == [[1], [2, 3], [0]]  # its labels do not fit


@pytest.mark.parametrize("decoder_only", [False, True])
@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS)
def test_examples_of_restores_the_examples(decoder_only, lengths):
    examples = RandomExamples(lengths, decoder_only=decoder_only)
    for packed in (False, True):
        [batch] = load(lengths, decoder_only=decoder_only, packed=packed)
        found = {index: (ids.tolist(), labels.tolist()) for index, ids, labels in examples_of(batch)}
        assert sorted(found) == list(range(len(lengths)))
        for index, (ids, labels) in found.items():
            expected = [label for label in examples[index]["labels"] if label != -100]
            assert (ids, labels[-len(expected) :]) == (examples[index]["input_ids"], expected)


@pytest.mark.parametrize("decoder_only", [False, True])
@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS)
def test_loss_and_gradient_equal_those_of_separate_rows(decoder_only, lengths):
    network = model(decoder_only).double()
    results = []
    for packed in (False, True):
        [batch] = load(lengths, decoder_only=decoder_only, packed=packed)
        network.zero_grad()
        loss = batch_loss(network, batch)
        loss.total.backward()
        assert loss.tokens == count_targets(network, batch)
        results.append((loss.total.item(), loss.tokens, [p.grad.clone() for p in network.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_packing_needs_fewer_rows():
    lengths = [(9, 9), *[(3, 3)] * 6]
    [batch] = load(lengths, decoder_only=False, packed=True)
    assert batch["input_ids"].shape == (3, 9)
    assert batch["attention_mask"].all()


def test_segments_by_hand():
    ids = torch.tensor([[1, 1, 2, 0], [0, 1, 2, 2]])
    assert segment_starts(ids).tolist() == [[True, False, True, False], [False, True, True, False]]
    assert position_ids(ids)[ids > 0].tolist() == [0, 1, 0, 0, 0, 1]
    assert same_segment(ids[:, :3], ids)[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert not same_segment(ids, ids)[0, 3].any()  # padding attends to nothing, not even to padding


def test_packing_excludes_padding_to_a_fixed_length():
    with pytest.raises(ValueError, match="pack contradicts pad_to_max_length"):
        DataLoader(
            RandomExamples([(1, 2)], decoder_only=False), 1, pad_id=0, pack=True, pad_to_max_length=True
        )


def test_gpt2_needs_position_ids_with_a_mask_per_query():
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="position_ids are missing"):
        model(decoder_only=True)(ids, torch.ones(1, 3, 3))
