"""Examples of a corpus: blocks of running text for GPT-2, corrupted chunks of it for T5.

Both read the ids of an example when it is asked for; in memory are only its two lengths, eight bytes. Both
cut the text up without regard to where a document ends, as GPT-2 and T5 were trained.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ftcore.data.corpus import Corpus
from ftcore.data.span_corruption import corrupt_spans, noise_size, unpadded_lengths
from ftcore.data.tasks import Record
from ftcore.data.tokenizer import Tokenizer


class CausalLMDataset(torch.utils.data.Dataset):
    """Causal language modelling: the text in blocks of `length` tokens, the last one shorter.

    Neighbours share a token, which the first predicts and the second starts from. So every token of the text
    but its first is predicted exactly once, and the perplexity is that of the whole text.

    `blocks[i]` is {"input_ids": list[int], "labels": list[int], "index": i}; the attributes are `Dataset`'s.
    """

    decoder_only = True
    records: Sequence[Record] = ()
    truncated_sources = truncated_targets = 0  # nothing is lost: the text goes on in the next block
    epoch = 0

    def __init__(self, corpus: Corpus, length: int) -> None:
        if length < 2:
            raise ValueError(f"the length of a block is {length}; expected at least 2, a token and the next")
        self.corpus, self.length = corpus, length
        count = -(-(len(corpus) - 1) // (length - 1))
        self.lengths = np.full((count, 2), length, dtype=np.int32)
        self.lengths[-1] = len(corpus) - (count - 1) * (length - 1)
        self.max_input_length = self.max_label_length = length

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        start = index * (self.length - 1)
        ids = self.corpus.read(start, start + self.length)
        return {"input_ids": ids, "labels": ids, "index": index}

    def source(self, index: int) -> list[int]:
        """What the model is given to go on from: nothing."""
        return []


class SpanCorruption(torch.utils.data.Dataset):
    """T5's pretraining: the text in chunks, each of which becomes a source of exactly `source_length` tokens.

    All targets are of one length too, `max_label_length`, so no batch has padding. What is left at the end of
    the text, less than a chunk, is not used.

    What is cut out of a chunk is a pure function of seed, epoch and chunk: the same whoever asks, in whatever
    order, and other spans in each epoch.

    `chunks[i]` is {"input_ids": list[int], "labels": list[int], "index": i}; the attributes are `Dataset`'s.

    Raises:
        ValueError: not even one chunk, or more spans in one than the vocabulary has sentinels.
    """

    decoder_only = False
    records: Sequence[Record] = ()
    truncated_sources = truncated_targets = 0

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, source_length: int, *, seed: int = 0) -> None:
        self.corpus, self.seed, self.epoch = corpus, seed, 0
        self.chunk_length, target_length = unpadded_lengths(source_length)
        count = len(corpus) // self.chunk_length
        if not count:
            raise ValueError(
                f"{corpus.text}: {len(corpus)} tokens, but a source of {source_length} is made of "
                f"{self.chunk_length}: more text is needed, or shorter sources"
            )
        self.lengths = np.tile(np.array([source_length, target_length], dtype=np.int32), (count, 1))
        self.max_input_length, self.max_label_length = source_length, target_length
        self._eos_id, self._sentinels = tokenizer.eos_id, _sentinels(tokenizer, self.chunk_length)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        start = index * self.chunk_length
        # The spawn key keeps these streams apart from the one that shuffles the epoch.
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch), spawn_key=(index,)))
        source, target = corrupt_spans(
            self.corpus.read(start, start + self.chunk_length),
            rng,
            sentinel_id=self._sentinels.__getitem__,
            eos_id=self._eos_id,
        )
        return {"input_ids": source, "labels": target, "index": index}

    def source(self, index: int) -> list[int]:
        """The corrupted text of an example, without its target."""
        return self[index]["input_ids"]


def make_pretraining_dataset(
    corpus: Corpus, tokenizer: Tokenizer, *, max_source_length: int, max_target_length: int, seed: int = 0
) -> CausalLMDataset | SpanCorruption:
    """The examples of a corpus, for the family of models that it was read for.

    Args:
        max_source_length: of T5's sources, all of which are that long.
        max_target_length: of GPT-2's blocks; of T5's targets, whose length follows from the sources'.
        seed: of T5's noise.

    Raises:
        ValueError: the lengths or the corpus are too small.
    """
    if corpus.decoder_only:
        return CausalLMDataset(corpus, max_target_length)
    _, target_length = unpadded_lengths(max_source_length)
    if target_length > max_target_length:
        raise ValueError(
            f"max_source_length {max_source_length} has targets of {target_length} tokens, but "
            f"max_target_length is {max_target_length}: raise it, or lower max_source_length"
        )
    return SpanCorruption(corpus, tokenizer, max_source_length, seed=seed)


def _sentinels(tokenizer: Tokenizer, chunk_length: int) -> list[int]:
    """The ids of as many sentinels as a chunk has spans."""
    _, spans = noise_size(chunk_length)
    try:
        return [tokenizer.sentinel_id(number) for number in range(spans)]
    except ValueError as error:
        raise ValueError(
            f"{chunk_length} tokens at a time have {spans} spans cut out: {error}; shorter sources have fewer"
        ) from None
