"""What a model reads in an analysis, and what is kept of it.

Every analysis takes `inputs`: what `model(**inputs)` is given. For GPT-2 `input_ids` and, where rows are
padded, `attention_mask`; for T5 `decoder_input_ids` too.

A model has parts, by which results are listed: GPT-2 its `decoder`, T5 its `encoder`, its `decoder`, and
`cross`, the attention of its decoder to its encoder.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.study import record
from ftcore.study.hooks import Activations
from ftcore.study.recording import eval_mode

Inputs = Mapping[str, Tensor]


def inputs_of(model: Model, tokenizer: Tokenizer, text: str, target: str = "") -> dict[str, Tensor]:
    """One text as a model reads it. T5 reads `text` as its source and writes `target`, to its end token."""
    inputs = {"input_ids": torch.tensor([tokenizer.encode(text)])}
    if isinstance(model, T5ForConditionalGeneration):
        inputs["decoder_input_ids"] = model.shift_right(torch.tensor([tokenizer.encode(target)]))
    return inputs


def token_names(tokenizer: Tokenizer, ids: Sequence[int] | Tensor) -> list[str]:
    """The text of each token alone, special tokens included: labels for the figures."""
    return [tokenizer.decode([int(token)], skip_special_tokens=False) for token in ids]


@torch.no_grad()
def logits_of(model: Model, inputs: Inputs) -> Tensor:
    """(B, T, V), without dropout and without gradients."""
    with eval_mode(model):
        return model(**inputs)


@torch.no_grad()
def activations_of(model: Model, inputs: Inputs, *names: str) -> Activations:
    """What `record` keeps under these names in one run, without dropout and without gradients."""
    with eval_mode(model), record(model, *names) as acts:
        model(**inputs)
    return acts


def parts_of(model: Model) -> dict[str, str]:
    """A model's parts, and what the short names of their activations begin with: {"cross": "cross."}"""
    if isinstance(model, GPT2LMHeadModel):
        return {"decoder": ""}
    return {"encoder": "encoder.", "decoder": "decoder.", "cross": "cross."}


def of_all_blocks(acts: Mapping[str, Tensor], kind: str) -> Tensor:
    """The activations of one kind, such as "cross.z", of all blocks: (L, ...)"""
    return torch.stack([tensor for name, tensor in acts.items() if name.rpartition(".")[0] == kind])


def num_heads(model: Model) -> int:
    return model.config.n_head if isinstance(model, GPT2LMHeadModel) else model.config.num_heads


def places_of(tokenizer: Tokenizer, ids: Sequence[int], words: str) -> Tensor:
    """(S) bool: the tokens that write these words, wherever they stand as whole words, in either case."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    prefixes = range(len(ids) + 1)  # how long the text of the first tokens is, grows with their number

    def length(tokens: int) -> int:
        return len(tokenizer.decode(ids[:tokens], skip_special_tokens=False))

    places = torch.zeros(len(ids), dtype=torch.bool)
    for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE):
        first = bisect_right(prefixes, match.start(), key=length) - 1
        places[first : bisect_left(prefixes, match.end(), key=length)] = True
    return places
