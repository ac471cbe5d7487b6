"""Records become token ids, once, before training starts.

An example is two lists of ids, and the two families differ in how they are laid out:

    T5      input_ids = source </s>              labels = target </s>
    GPT-2   input_ids = source target EOS        labels = -100 ... -100 target EOS    (as long as input_ids)

What is too long is cut where it hurts least:

    T5      source and target lose their right end, and </s> stays last: the model has read no text
            without it.
    GPT-2   the source loses its left end, because its template puts what it cannot do without last. The
            target loses its right end and EOS with it: a text that was cut does not end there.
"""

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from ftcore.data.tasks import Record
from ftcore.data.tokenizer import IGNORED_LABEL, Tokenizer


class ExampleDataset(Protocol):
    """What others need of a data set: a `Dataset`, or `CausalLMDataset` or `SpanCorruption` of a corpus."""

    decoder_only: bool
    records: Sequence[Record]
    lengths: np.ndarray
    max_input_length: int
    max_label_length: int
    truncated_sources: int
    truncated_targets: int
    epoch: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def source(self, index: int) -> list[int]: ...


class Dataset(torch.utils.data.Dataset):
    """Tokenised examples; `dataset[i]` is {"input_ids": list[int], "labels": list[int], "index": i}.

    Args:
        records: the texts, from `read_records`.
        tokenizer: one that appends </s> for T5, one that appends nothing for GPT-2.
        decoder_only: True for a decoder-only model (GPT-2), False for an encoder-decoder (T5).
        max_source_length: the most tokens of a source, T5's </s> included.
        max_target_length: the most tokens of a target, its end token included.

    Attributes:
        records: `records[i]` is the record that example i was made from.
        lengths: int array (examples, 2), the number of input ids and of labels of each example.
        max_input_length, max_label_length: the most that any example can have, for padding to a fixed shape.
        epoch: which epoch's examples `dataset[i]` gives; these are the same in all.
        truncated_sources, truncated_targets: how many records lost part of their source or target.

    Raises:
        ValueError: a limit is too small, the tokenizer is of the other family, or a target has no tokens.
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
        self.truncated_sources = self.truncated_targets = self.epoch = 0
        self._sources, self._targets = _Rows(), _Rows()

        # The bar shows itself only where tokenising takes longer than a moment.
        bar = tqdm(records, "tokenising", unit=" records", delay=2, leave=False)
        for number, record in enumerate(bar, start=1):
            source, target = self._encode(record, number, tokenizer)
            self.truncated_sources += len(source) > max_source_length
            source = _cut_source(source, max_source_length, decoder_only)
            self.truncated_targets += len(target) > max_target_length
            self._sources.append(source)
            self._targets.append(_cut_target(target, max_target_length, decoder_only))

        source_lengths, target_lengths = self._sources.lengths(), self._targets.lengths()
        input_lengths = source_lengths + target_lengths if decoder_only else source_lengths
        self.lengths = np.stack([input_lengths, input_lengths if decoder_only else target_lengths], axis=1)
        has_sources = bool(source_lengths.any())
        self.max_input_length, self.max_label_length = max_source_length, max_target_length
        if decoder_only:
            self.max_input_length = max_source_length * has_sources + max_target_length
            self.max_label_length = self.max_input_length

    def _encode(self, record: Record, number: int, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """The whole source and target of a record, with the end tokens that their model expects."""
        source, target = tokenizer.encode(record.source), tokenizer.encode(record.target)
        if self.decoder_only:
            target.append(tokenizer.eos_id)
        if len(target) < 2:
            raise ValueError(f"record {number}: the tokenizer finds nothing in its target {record.target!r}")
        return source, target

    def __len__(self) -> int:
        return len(self.records)

    def source(self, index: int) -> list[int]:
        """The input ids of an example without its target: what the model is given to answer."""
        return self._sources[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # counts negative ones from the end, as a list does
        source, target = self._sources[index], self._targets[index]
        if self.decoder_only:
            labels = [IGNORED_LABEL] * len(source) + target
            return {"input_ids": source + target, "labels": labels, "index": index}
        return {"input_ids": source, "labels": target, "index": index}


def _cut_source(ids: list[int], limit: int, decoder_only: bool) -> list[int]:
    if len(ids) <= limit:
        return ids
    return ids[-limit:] if decoder_only else ids[: limit - 1] + ids[-1:]


def _cut_target(ids: list[int], limit: int, decoder_only: bool) -> list[int]:
    if len(ids) <= limit:
        return ids
    return ids[:limit] if decoder_only else ids[: limit - 1] + ids[-1:]


def check_family(tokenizer: Tokenizer, decoder_only: bool) -> None:
    """Raise ValueError for a tokenizer of the other family, which ends texts in another way."""
    appends_eos = tokenizer.encode("a")[-1:] == [tokenizer.eos_id]
    if appends_eos == decoder_only:
        does = "appends" if appends_eos else "does not append"
        family = "decoder-only (GPT-2)" if decoder_only else "encoder-decoder (T5)"
        raise ValueError(
            f"the tokenizer {does} its end-of-sequence token; that is not one of {family} models: "
            "use the model's own tokenizer"
        )


class _Rows:
    """Lists of ids in one flat array: 4 bytes an id, and worker processes share it without copying."""

    def __init__(self) -> None:
        self._ids, self._ends = array("i"), array("q", [0])

    def append(self, ids: list[int]) -> None:
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __getitem__(self, index: int) -> list[int]:
        return self._ids[self._ends[index] : self._ends[index + 1]].tolist()

    def lengths(self) -> np.ndarray:
        return np.diff(np.array(self._ends))
