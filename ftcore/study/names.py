"""What activations are called: by the module that reads or gives them, and shorter for the usual ones.

    transformer.h.3.attn.c_proj            what this module gives
    transformer.h.3.attn.c_proj@in         what it reads, its first tensor
    transformer.h.3.ln_2@stream            the same tensor; patched, it is changed for later readers too
    transformer.h.*.attn.c_*               patterns, each for what stands between two dots: * ? [0-5] [!0]
    z.3  pattern.*  cross.scores.0         short names, which stand for long ones

A block of GPT-2 adds what its feed-forward layer gives to the tensor that `ln_2` reads. To patch what `ln_2`
reads is one experiment (`@in`), to patch the residual stream there is another (`@stream`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from ftcore.models import GPT2LMHeadModel, T5ForConditionalGeneration

SIDES = ("", "in", "stream")  # of a module: what it gives, what it reads, what it reads and others after it

GPT2_NAMES = {  # {} is the block's number
    "resid_pre.{}": "transformer.h.{}@in",  # (B, T, D) the residual stream before the block,
    "resid_mid.{}": "transformer.h.{}.ln_2@stream",  # (B, T, D) between its attention and its feed-forward,
    "resid_post.{}": "transformer.h.{}",  # (B, T, D) and after it
    "scores.{}": "transformer.h.{}.attn.softmax@in",  # (B, H, T, S)
    "pattern.{}": "transformer.h.{}.attn.softmax",  # (B, H, T, S) attention weights
    "z.{}": "transformer.h.{}.attn.c_proj@in",  # (B, T, H * K) the heads' mixed values, side by side
    "attn.{}": "transformer.h.{}.attn",  # (B, T, D) what attention adds to the stream
    "neurons.{}": "transformer.h.{}.mlp.c_proj@in",  # (B, T, F) after the activation function
    "mlp.{}": "transformer.h.{}.mlp",  # (B, T, D) what the feed-forward adds to the stream
}
T5_ENCODER_NAMES = {
    "encoder.resid_pre.{}": "encoder.block.{}@in",
    "encoder.resid_mid.{}": "encoder.block.{}.layer.1@in",
    "encoder.resid_post.{}": "encoder.block.{}",
    "encoder.scores.{}": "encoder.block.{}.layer.0.SelfAttention.softmax@in",
    "encoder.pattern.{}": "encoder.block.{}.layer.0.SelfAttention.softmax",
    "encoder.z.{}": "encoder.block.{}.layer.0.SelfAttention.o@in",
    "encoder.attn.{}": "encoder.block.{}.layer.0.SelfAttention",
    "encoder.neurons.{}": "encoder.block.{}.layer.1.DenseReluDense.wo@in",
    "encoder.mlp.{}": "encoder.block.{}.layer.1.DenseReluDense",
}
T5_DECODER_NAMES = {
    "decoder.resid_pre.{}": "decoder.block.{}@in",
    "decoder.resid_mid.{}": "decoder.block.{}.layer.1@in",  # after self-attention
    "decoder.resid_post.{}": "decoder.block.{}",
    "decoder.scores.{}": "decoder.block.{}.layer.0.SelfAttention.softmax@in",
    "decoder.pattern.{}": "decoder.block.{}.layer.0.SelfAttention.softmax",
    "decoder.z.{}": "decoder.block.{}.layer.0.SelfAttention.o@in",
    "decoder.attn.{}": "decoder.block.{}.layer.0.SelfAttention",
    "cross.resid_mid.{}": "decoder.block.{}.layer.2@in",  # after cross-attention
    "cross.scores.{}": "decoder.block.{}.layer.1.EncDecAttention.softmax@in",
    "cross.pattern.{}": "decoder.block.{}.layer.1.EncDecAttention.softmax",
    "cross.z.{}": "decoder.block.{}.layer.1.EncDecAttention.o@in",
    "cross.attn.{}": "decoder.block.{}.layer.1.EncDecAttention",
    "decoder.neurons.{}": "decoder.block.{}.layer.2.DenseReluDense.wo@in",
    "decoder.mlp.{}": "decoder.block.{}.layer.2.DenseReluDense",
}


@dataclass(frozen=True)
class Place:
    """One activation of one model."""

    name: str  # as it was asked for, without patterns: "pattern.3"
    module_name: str  # "transformer.h.3.attn.softmax"
    side: str  # one of SIDES

    @property
    def long_name(self) -> str:
        return f"{self.module_name}@{self.side}" if self.side else self.module_name


def find_places(model: nn.Module, pattern: str) -> list[Place]:
    """All activations of a model that a name or pattern means, in the order of its modules.

    Long names go first: short ones are looked up where no module is called so.

    Raises:
        ValueError: there are none; the message lists names that are nearly the same.
    """
    module_pattern, _, side = pattern.partition("@")
    if side not in SIDES:
        raise ValueError(f"{pattern!r}: expected @in or @stream after a module's name, or nothing")
    places = [
        Place(f"{name}@{side}" if side else name, name, side)
        for name in module_names(model)
        if matches(name, module_pattern)
    ]
    if not places:
        places = [
            Place(short, *long.partition("@")[::2])
            for short, long in short_names(model).items()
            if matches(short, pattern)
        ]
    if not places:
        near = ", ".join(near_misses(model, module_pattern)) or "no modules inside"
        raise ValueError(f"{type(model).__name__} has nothing called {pattern!r}; it has {near}")
    return places


def short_names(model: nn.Module) -> dict[str, str]:
    """Every short name of a GPT-2 or T5 and the long name that it stands for; of other modules, none."""
    if isinstance(model, GPT2LMHeadModel):
        return _numbered(GPT2_NAMES, len(model.transformer.h))
    if isinstance(model, T5ForConditionalGeneration):
        encoder = _numbered(T5_ENCODER_NAMES, len(model.encoder.block))
        return encoder | _numbered(T5_DECODER_NAMES, len(model.decoder.block))
    return {}


def _numbered(names: dict[str, str], blocks: int) -> dict[str, str]:
    return {
        short.format(block): long.format(block) for short, long in names.items() for block in range(blocks)
    }


def module_names(model: nn.Module) -> Iterator[str]:
    """All dotted names, several of one module too: shared, encoder.embed_tokens, decoder.embed_tokens."""
    return (name for name, _ in model.named_modules(remove_duplicate=False) if name)


def matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def near_misses(model: nn.Module, pattern: str) -> list[str]:
    """Names that were perhaps meant, or else the first ones; those that differ in numbers are one entry."""
    kinds: dict[str, list[str]] = {}
    for name in (*short_names(model), *module_names(model)):
        kinds.setdefault(_without_numbers(name), []).append(name)
    near = get_close_matches(_without_numbers(pattern), kinds, n=3) or list(kinds)[:9]
    alike = [kinds[kind] for kind in near]
    return [names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" for names in alike]


def _without_numbers(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)
