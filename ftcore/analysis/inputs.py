"""Inputs of an analysis, and running a model on them.

Every analysis takes `inputs`, the arguments of `model(**inputs)`: for GPT-2 `input_ids` and, if rows are
padded, `attention_mask`; for T5 also `decoder_input_ids`.

Results are grouped by part: `decoder` for GPT-2; `encoder`, `decoder` and `cross` (the decoder's
cross-attention) for T5.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.state import eval_mode
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.study import record
from ftcore.study.hooks import Activations
from ftcore.study.names import matches

Inputs = Mapping[str, Tensor]


def inputs_of(model: Model, tokenizer: Tokenizer, text: str, target: str = "") -> dict[str, Tensor]:
    """Tokenize one text. For T5 it is the source; `target` with its end token becomes decoder_input_ids."""
    inputs = {"input_ids": torch.tensor([tokenizer.encode(text)])}
    if isinstance(model, T5ForConditionalGeneration):
        inputs["decoder_input_ids"] = model.shift_right(torch.tensor([tokenizer.encode(target)]))
    return inputs


def token_names(tokenizer: Tokenizer, ids: Sequence[int] | Tensor) -> list[str]:
    """The text of each token, special tokens included: labels for figures."""
    return [tokenizer.decode([int(token)], skip_special_tokens=False) for token in ids]


@torch.no_grad()
def logits_of(model: Model, inputs: Inputs) -> Tensor:
    """(B, T, V), in eval mode and without gradients."""
    with eval_mode(model):
        return model(**inputs)


@torch.no_grad()
def activations_of(model: Model, inputs: Inputs, *names: str) -> Activations:
    """The recorded activations of one forward pass, in eval mode and without gradients."""
    with eval_mode(model), record(model, *names) as acts:
        model(**inputs)
    return acts


def part_prefixes(model: Model) -> dict[str, str]:
    """The parts of a model, and the prefix of their short names: {"cross": "cross.", ...}."""
    if isinstance(model, GPT2LMHeadModel):
        return {"decoder": ""}
    return {"encoder": "encoder.", "decoder": "decoder.", "cross": "cross."}


def stack_blocks(acts: Mapping[str, Tensor], kind: str) -> Tensor:
    """The activations of one kind, such as "cross.z", of all blocks: (L, ...)."""
    return torch.stack([tensor for name, tensor in acts.items() if name.rpartition(".")[0] == kind])


def stack_parameters(model: Model, pattern: str) -> Tensor:
    """One parameter of all blocks, such as "transformer.h.*.ln_1.weight": (L, ...)."""
    return torch.stack([weight for name, weight in model.named_parameters() if matches(name, pattern)])


def num_heads(model: Model) -> int:
    return model.config.n_head if isinstance(model, GPT2LMHeadModel) else model.config.num_heads


def padding_mask(model: Model, inputs: Inputs, part: str) -> Tensor | None:
    """(B, T) attention mask of the positions at which a part computes; None if nothing is padded."""
    is_target = model.config.is_encoder_decoder and part != "encoder"
    return inputs.get("decoder_attention_mask" if is_target else "attention_mask")


def word_mask(tokenizer: Tokenizer, ids: Sequence[int], words: str) -> Tensor:
    """(S) bool: the tokens of every occurrence of `words` as whole words, case-insensitive."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    prefixes = range(len(ids) + 1)  # the text of a longer prefix is never shorter: bisection applies

    def length(tokens: int) -> int:
        return len(tokenizer.decode(ids[:tokens], skip_special_tokens=False))

    mask = torch.zeros(len(ids), dtype=torch.bool)
    for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE):
        first = bisect_right(prefixes, match.start(), key=length) - 1
        mask[first : bisect_left(prefixes, match.end(), key=length)] = True
    return mask
