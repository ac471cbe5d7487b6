"""Tokenize records into examples, once, before training.

An example is two lists of ids. Their layout depends on the family of the model:

    T5      input_ids = source </s>              labels = target </s>
    GPT-2   input_ids = source target EOS        labels = -100 ... -100 target EOS    (as long as input_ids)

Truncation:

    T5      source and target are cut on the right, and </s> stays last, as in T5's training.
    GPT-2   the source is cut on the left, since the template puts the essential part last. The target is cut
            on the right and loses EOS: a truncated text does not end there.
"""

from array import array
from collections.abc import Sequence
from reprlib import repr as shown
from typing import Any

import numpy as np
import torch

from ftcore.data.records import Record
from ftcore.data.tokenizer import IGNORED_LABEL, Tokenizer
from ftcore.output import progress_bar


class ExampleDataset(torch.utils.data.Dataset):
    """Base class of data sets of token ids: `Dataset`, `CausalLMDataset`, `SpanCorruption`, and your own.

    Your own sets `decoder_only` and `lengths`, and has `__getitem__` and `source`. Padding to a fixed shape
    and packing need `max_input_length` and `max_label_length` too.
    """

    decoder_only: bool  # for a decoder-only model (GPT-2), not for an encoder-decoder (T5)
    records: Sequence[Record] = ()  # `records[i]` is the record of example i; none over a corpus
    lengths: np.ndarray  # (examples, 2), the number of input ids and of labels of each example
    max_input_length: int  # upper bounds of these, for padding to a fixed shape
    max_label_length: int
    truncated_sources: int = 0  # how many records lost part of their source or target
    truncated_targets: int = 0
    epoch: int = 0  # set by the loader; only span corruption depends on it

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} examples>"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"input_ids": list[int], "labels": list[int], "index": index}, see the top of this file."""
        raise NotImplementedError

    def source(self, index: int) -> list[int]:
        """The input ids of an example without its target: the prompt for generating an answer."""
        raise NotImplementedError


class Dataset(ExampleDataset):
    """Tokenized records.

    Args:
        records: the texts, from `read_records`.
        tokenizer: the model's: one that appends </s> for T5, one that appends nothing for GPT-2.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).
        max_source_length: maximal number of tokens of a source, including T5's </s>.
        max_target_length: maximal number of tokens of a target, including its end token.

    Raises:
        ValueError: a limit is too small, the tokenizer is for the other family, or a target has no tokens.
    """

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: Tokenizer,
        *,
        decoder_only: bool,
        max_source_length: int,
        max_target_length: int,
    ) -> None:
        if max_source_length < 1 or max_target_length < 2:
            raise ValueError(
                f"max_source_length is {max_source_length} and max_target_length {max_target_length}; "
                "expected at least 1 and at least 2 (a token and its end)"
            )
        check_family(tokenizer, decoder_only)
        self.decoder_only = decoder_only
        self.records = records
        self._sources, self._targets = _RaggedArray(), _RaggedArray()

        progress = progress_bar(records, "tokenizing", unit=" records", delay=2, leave=False)
        for number, record in enumerate(progress, start=1):
            source, target = tokenizer.encode(record.source), tokenizer.encode(record.target)
            if decoder_only:
                target.append(tokenizer.eos_id)
            if len(target) < 2 and (record.target or not record.source):  # "" is the answer of no answer
                where = record.where or f"record {number}"
                raise ValueError(f"{where}: the tokenizer finds nothing in the target {shown(record.target)}")
            self.truncated_sources += len(source) > max_source_length
            self.truncated_targets += len(target) > max_target_length
            if decoder_only:
                source, target = source[-max_source_length:], target[:max_target_length]
            else:
                source, target = _truncate(source, max_source_length), _truncate(target, max_target_length)
            self._sources.append(source)
            self._targets.append(target)

        source_lengths, target_lengths = self._sources.lengths(), self._targets.lengths()
        input_lengths = source_lengths + target_lengths if decoder_only else source_lengths
        self.lengths = np.stack([input_lengths, input_lengths if decoder_only else target_lengths], axis=1)
        self.max_input_length, self.max_label_length = max_source_length, max_target_length
        if decoder_only:
            longest_source = max_source_length if source_lengths.any() else 0
            self.max_input_length = self.max_label_length = longest_source + max_target_length

    def source(self, index: int) -> list[int]:
        return self._sources[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # negative indices and IndexError, as in a list
        source, target = self._sources[index], self._targets[index]
        if self.decoder_only:
            labels = [IGNORED_LABEL] * len(source) + target
            return {"input_ids": source + target, "labels": labels, "index": index}
        return {"input_ids": source, "labels": target, "index": index}


def _truncate(ids: list[int], limit: int) -> list[int]:
    """Cut on the right, keeping the last token, </s>."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def check_family(tokenizer: Tokenizer, decoder_only: bool) -> None:
    """Raise ValueError for a tokenizer of the other family: T5's appends EOS, GPT-2's does not."""
    appends_eos = tokenizer.encode("a")[-1:] == [tokenizer.eos_id]
    if appends_eos == decoder_only:
        does = "appends" if appends_eos else "does not append"
        family = "decoder-only (GPT-2)" if decoder_only else "encoder-decoder (T5)"
        raise ValueError(
            f"the tokenizer {does} its end-of-sequence token, unlike those of {family} models: "
            "use the model's own tokenizer"
        )


class _RaggedArray:
    """Lists of ids in one flat array: 4 bytes per id, shared copy-on-write with worker processes."""

    def __init__(self) -> None:
        self._ids, self._ends = array("i"), array("q", [0])

    def append(self, ids: list[int]) -> None:
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __getitem__(self, index: int) -> list[int]:
        return self._ids[self._ends[index] : self._ends[index + 1]].tolist()

    def lengths(self) -> np.ndarray:
        return np.diff(np.array(self._ends))
