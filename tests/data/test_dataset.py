"""Layout, truncation and storage of tokenized examples."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.data import Dataset, Record, load_tokenizer, read_records

EOS = 1


class Letters:
    """One id per letter, none for other characters. Appends EOS like T5, or not, like GPT-2."""

    eos_id = EOS

    def __init__(self, appends_eos: bool) -> None:
        self.end = [EOS] if appends_eos else []

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if letter.isalpha()] + self.end


def dataset(records: list[Record], decoder_only: bool, source: int = 100, target: int = 100) -> Dataset:
    tokenizer: Any = Letters(appends_eos=not decoder_only)
    return Dataset(
        records, tokenizer, decoder_only=decoder_only, max_source_length=source, max_target_length=target
    )


def ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_layout_of_both_families() -> None:
    record = Record("abc", "xy")
    assert dataset([record], decoder_only=False)[0] == {
        "input_ids": [*ids("abc"), EOS],
        "labels": [*ids("xy"), EOS],
        "index": 0,
    }
    assert dataset([record], decoder_only=True)[0] == {
        "input_ids": [*ids("abcxy"), EOS],
        "labels": [-100, -100, -100, *ids("xy"), EOS],
        "index": 0,
    }
    language_modelling = dataset([Record("", "xy")], decoder_only=True)[0]
    assert language_modelling["input_ids"] == language_modelling["labels"] == [*ids("xy"), EOS]


LETTERS = st.text("abcdefgh", min_size=1, max_size=12)


@settings(deadline=None)
@given(
    texts=st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=6),
    source_limit=st.integers(1, 14),
    target_limit=st.integers(2, 14),
)
def test_truncation(texts: list[tuple[str, str]], source_limit: int, target_limit: int) -> None:
    records = [Record(source, target) for source, target in texts]
    t5 = dataset(records, False, source_limit, target_limit)
    gpt2 = dataset(records, True, source_limit, target_limit)
    for i, (source, target) in enumerate(texts):
        # T5 keeps the beginning and the end token.
        assert t5[i]["input_ids"] == [*ids(source)[: source_limit - 1], EOS]
        assert t5[i]["labels"] == [*ids(target)[: target_limit - 1], EOS]
        # GPT-2 keeps the end of the source, and the end token only if the target is not truncated.
        kept_source, kept_target = ids(source)[-source_limit:], [*ids(target), EOS][:target_limit]
        assert gpt2[i]["input_ids"] == kept_source + kept_target
        assert gpt2[i]["labels"] == [-100] * len(kept_source) + kept_target
        assert (EOS in gpt2[i]["labels"]) == (len(target) < target_limit)
    assert t5.truncated_sources == sum(len(source) + 1 > source_limit for source, _ in texts)
    assert gpt2.truncated_sources == sum(len(source) > source_limit for source, _ in texts)
    assert (
        t5.truncated_targets
        == gpt2.truncated_targets
        == sum(len(target) + 1 > target_limit for _, target in texts)
    )
    for data in (t5, gpt2):
        examples = [data[i] for i in range(len(data))]
        assert data.lengths.tolist() == [[len(e["input_ids"]), len(e["labels"])] for e in examples]
        assert max(data.lengths[:, 0]) <= data.max_input_length
        assert max(data.lengths[:, 1]) <= data.max_label_length


def test_limits_to_pad_to() -> None:
    with_sources, without = [Record("a", "b")], [Record("", "b")]
    t5 = dataset(with_sources, False, 30, 20)
    assert (t5.max_input_length, t5.max_label_length) == (30, 20)
    gpt2 = dataset(with_sources, True, 30, 20)
    assert (gpt2.max_input_length, gpt2.max_label_length) == (50, 50)
    language_modelling = dataset(without, True, 30, 20)
    assert (language_modelling.max_input_length, language_modelling.max_label_length) == (20, 20)


def test_a_dataset_is_a_sequence_and_can_be_pickled() -> None:
    data = dataset([Record(letter, letter) for letter in "abc"], decoder_only=False)
    assert len(data) == 3
    assert data[-1] == data[2]
    assert data[-1]["index"] == 2
    with pytest.raises(IndexError):
        data[3]
    copy = pickle.loads(pickle.dumps(data))
    assert [copy[i] for i in range(3)] == [data[i] for i in range(3)]


def test_limits_records_and_tokenizers_that_are_refused() -> None:
    record = Record("abc", "xy")
    with pytest.raises(
        ValueError, match="max_source_length is 0 and max_target_length 100; expected at least 1"
    ):
        dataset([record], False, source=0)
    with pytest.raises(ValueError, match="max_target_length 1; expected at least 1 and at least 2"):
        dataset([record], False, target=1)
    for decoder_only in (False, True):
        with pytest.raises(ValueError, match=r"record 2: the tokenizer finds nothing in the target '\?!'"):
            dataset([record, Record("abc", "?!")], decoder_only)
        with pytest.raises(
            ValueError, match=r"a\.csv, line 7: the .* in the target '\\x1b\?\?.*\.\.\..*\?'$"
        ):
            dataset([record, Record("abc", "\x1b" + "?" * 99, where="a.csv, line 7")], decoder_only)
    limits = {"max_source_length": 9, "max_target_length": 9}
    t5_tokenizer: Any = Letters(appends_eos=True)
    gpt2_tokenizer: Any = Letters(appends_eos=False)
    with pytest.raises(
        ValueError, match=r"appends its end-of-sequence token.* decoder-only \(GPT-2\) models"
    ):
        Dataset([record], t5_tokenizer, decoder_only=True, **limits)
    with pytest.raises(ValueError, match=r"does not append its end-of-seq.* encoder-decoder \(T5\) models"):
        Dataset([record], gpt2_tokenizer, decoder_only=False, **limits)


def test_t5_examples_are_those_of_transformers(real_data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(real_data / "t5")
    records = read_records("qa", real_data / "squad" / "valid.json", decoder_only=False, limit=100)
    data = Dataset(
        records,
        load_tokenizer(real_data / "t5"),
        decoder_only=False,
        max_source_length=180,
        max_target_length=6,
    )
    sources = oracle([record.source for record in records], truncation=True, max_length=180)["input_ids"]
    targets = oracle([record.target for record in records], truncation=True, max_length=6)["input_ids"]
    assert [data[i]["input_ids"] for i in range(100)] == sources
    assert [data[i]["labels"] for i in range(100)] == targets
    assert 0 < data.truncated_sources < 100
    assert 0 < data.truncated_targets < 100


def test_gpt2_examples_decode_to_their_text(real_data: Path) -> None:
    tokenizer = load_tokenizer(real_data / "gpt2")
    records = read_records("qa", real_data / "squad" / "valid.json", decoder_only=True, limit=50)
    data = Dataset(records, tokenizer, decoder_only=True, max_source_length=100, max_target_length=64)
    assert data.truncated_sources > 10
    for i, record in enumerate(records):
        example = data[i]
        text = tokenizer.decode(example["input_ids"], skip_special_tokens=False)
        assert text.endswith(f"\nanswer:{record.target}<|endoftext|>")
        # Source and target are tokenized separately; the ids are those of the concatenation.
        assert (
            example["input_ids"][:-1]
            == tokenizer.encode(record.source + record.target)[-len(example["labels"]) + 1 :]
        )
        assert tokenizer.decode(example["labels"]) == record.target
