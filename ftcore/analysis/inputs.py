"""Inputs of an analysis, and running a model on them.

Every analysis takes `inputs`, the arguments of `model(**inputs)`: `input_ids` and, if rows are padded,
`attention_mask`; for T5 also `decoder_input_ids` and, if targets are padded, `decoder_attention_mask`. Masks
have the shape of their ids, with 1 or True for a token and 0 or False for padding on either side.

Functions that average or search over positions leave out padding. Functions that return a value for each
position return arbitrary ones at padding.

Results are grouped by part: `decoder` for GPT-2; `encoder`, `decoder` and `cross` (the decoder's
cross-attention) for T5.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ftcore.analysis.results import Tensors
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.state import eval_mode
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.models.config import check_ids, convert
from ftcore.models.non_finite import require_finite
from ftcore.study import record
from ftcore.study.hooks import Activations
from ftcore.study.lens import token_mask
from ftcore.study.names import matches

Inputs = Mapping[str, Tensor]


def inputs_of(model: Model, tokenizer: Tokenizer, text: str, target: str = "") -> dict[str, Tensor]:
    """Tokenize one text: (1, T). For T5 it is the source; `target` with its end becomes decoder_input_ids.

    Raises:
        ValueError: the text has no tokens, or a target is given to GPT-2.
    """
    if not (ids := tokenizer.encode(text)):
        raise ValueError("text has no tokens: GPT-2 needs at least one")
    inputs = {"input_ids": torch.tensor([ids])}
    if isinstance(model, T5ForConditionalGeneration):
        inputs["decoder_input_ids"] = model.shift_right(torch.tensor([tokenizer.encode(target)]))
    return inputs


def token_names(tokenizer: Tokenizer, ids: Sequence[int] | Tensor) -> list[str]:
    """The text of each token of `ids`, (T), special tokens included: labels for figures."""
    return [tokenizer.decode([int(token)], skip_special_tokens=False) for token in ids]


@torch.no_grad()
def logits_of(model: Model, inputs: Inputs) -> Tensor:
    """(B, T, V), in eval mode and without gradients.

    Raises:
        ValueError: a mask of another shape than its ids.
        FloatingPointError: logits that are NaN or infinite.
    """
    for prefix in ("", "decoder_"):
        ids, mask = inputs.get(f"{prefix}input_ids"), inputs.get(f"{prefix}attention_mask")
        if ids is not None and mask is not None and mask.dim() != 3:  # (B, T, S) is one mask per query
            token_mask(mask, ids, f"{prefix}attention_mask")
    with eval_mode(model):
        logits = model(**inputs)
        require_finite(logits, model, lambda: model(**inputs), "the model's output")
    return logits


def activations_of(model: Model, inputs: Inputs, *names: str) -> Activations:
    """The recorded activations of the forward pass of `logits_of`."""
    with record(model, *names) as acts:
        logits_of(model, inputs)
    return acts


def part_prefixes(model: Model) -> dict[str, str]:
    """The parts of a model, and the prefix of their short names: {"cross": "cross.", ...}."""
    if isinstance(model, GPT2LMHeadModel):
        return {"decoder": ""}
    return {"encoder": "encoder.", "decoder": "decoder.", "cross": "cross."}


def activations_by_part(model: Model, inputs: Inputs, kind: str) -> dict[str, Tensor]:
    """The activations of one kind, such as "z", of all blocks, by part: (L, ...)."""
    kinds = {part: f"{prefix}{kind}" for part, prefix in part_prefixes(model).items()}
    acts = activations_of(model, inputs, *(f"{name}.*" for name in kinds.values()))
    return Tensors({part: stack_blocks(acts, name) for part, name in kinds.items()})


def stack_blocks(acts: Mapping[str, Tensor], kind: str) -> Tensor:
    """The activations of one kind, such as "cross.z", of all blocks: (L, ...)."""
    return torch.stack([tensor for name, tensor in acts.items() if name.rpartition(".")[0] == kind])


def stack_parameters(model: Model, pattern: str) -> Tensor:
    """One parameter of all blocks, such as "transformer.h.*.ln_1.weight": (L, ...)."""
    stacked = torch.stack([weight for name, weight in model.named_parameters() if matches(name, pattern)])
    require_finite(stacked, model, lambda: None, pattern)
    return stacked


def num_heads(model: Model) -> int:
    """H, the heads of each attention."""
    return model.config.n_head if isinstance(model, GPT2LMHeadModel) else model.config.num_heads


def padding_mask(model: Model, inputs: Inputs, part: str) -> Tensor:
    """The `token_mask`, (B, T), of the positions at which a part computes."""
    prefix = "decoder_" if model.config.is_encoder_decoder and part != "encoder" else ""
    name = f"{prefix}attention_mask"
    return token_mask(inputs.get(name), inputs[f"{prefix}input_ids"], name)


def token_ids(argument: str, tokens: Tensor | int, vocab_size: int, like: Tensor) -> Tensor:
    """Token ids as a tensor on the device of `like`.

    Raises:
        ValueError: not whole numbers, or outside of the vocabulary.
    """
    ids = torch.as_tensor(tokens, device=like.device)
    try:
        check_ids(ids.reshape(1, -1), vocab_size)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None
    return ids.long()


def check_index(argument: str, value: int, size: int) -> int:
    """A whole number as an index into `size` elements, from the end if negative."""
    return check_number(argument, value, -size, size - 1)


def check_number(argument: str, value: int, low: int, high: float = math.inf) -> int:
    """A whole number, Python's, numpy's or torch's, as an int; ValueError for others and out of range."""
    number: int = convert(argument, value, int)
    if not low <= number <= high:
        expected = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{argument} is {number}, expected a whole number {expected}")
    return number


def check_dims(argument: str, tensor: Tensor, dims: str) -> None:
    """Raise ValueError unless a tensor has the dimensions that `dims` names, such as "L H T S"."""
    if tensor.dim() != len(dims.split()):
        raise ValueError(f"{argument} is {tuple(tensor.shape)}, expected ({', '.join(dims.split())})")


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
