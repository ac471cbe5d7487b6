"""Data for the studies: passages with gaps as in the pretraining of weights/t5-mini, with unseen names.

Two sentences with a gap each, followed by a passage that has the missing words in another phrasing.
"""

import sys
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from ftcore.analysis.inputs import Inputs, logits_of
from ftcore.data.pretraining import cut_spans
from ftcore.data.tokenizer import Tokenizer
from ftcore.models import T5ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "weights"), str(ROOT / "examples" / "data")]

import make_qa  # noqa: E402  (not in a package)
from pretrain_t5_mini import gaps_in_front  # noqa: E402


class Gapped(NamedTuple):
    source: list[int]
    target: list[int]  # <extra_id_0>, words of the first gap, <extra_id_1>, ...
    passage: int  # index in the source at which the passage begins
    gaps: list[tuple[int, int]]  # (start, end) of each gap's words in the target


def gapped_passages(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Gapped]:
    """Random passages about people, towns and ships of the test split."""
    rng, made = Random(seed), []
    while len(made) < count:
        story = make_qa.story(rng, "test", shape=(2, 2), restated=0.0)
        ids, mask = gaps_in_front(story, tokenizer, rng)
        special = {"sentinel_id": tokenizer.sentinel_id, "eos_id": tokenizer.eos_id}
        source, target = cut_spans(ids, np.asarray(mask), **special)
        sentinels = [target.index(tokenizer.sentinel_id(gap)) for gap in (0, 1)] + [len(target) - 1]
        if tokenizer.sentinel_id(2) in target:  # some span lists end with another sentinel
            sentinels[-1] = target.index(tokenizer.sentinel_id(2))
        passage = len(source) - len(tokenizer.encode(story.context))
        gaps = [(first + 1, last) for first, last in pairwise(sentinels)]
        made.append(Gapped(list(source), list(target), passage, gaps))
    return made


def inputs_of(model: T5ForConditionalGeneration, gapped: Gapped) -> Inputs:
    labels = torch.tensor([gapped.target])
    return {"input_ids": torch.tensor([gapped.source]), "decoder_input_ids": model.shift_right(labels)}


def filled(model: T5ForConditionalGeneration, gapped: Gapped, inputs: Inputs | None = None) -> list[bool]:
    """Whether each gap is filled correctly: all its tokens are predicted, with teacher forcing."""
    predicted = logits_of(model, inputs or inputs_of(model, gapped))[0].argmax(-1).tolist()
    return [predicted[first:last] == gapped.target[first:last] for first, last in gapped.gaps]
