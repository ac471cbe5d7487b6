"""Names of activations: the dotted name of a module, or a short name for the usual ones.

    transformer.h.3.attn.c_proj            output of this module
    transformer.h.3.attn.c_proj@in         its input (the first tensor argument)
    transformer.h.3.ln_2@stream            the same tensor, patched in place: later readers see the patch too
    transformer.h.3.attn.c_attn@q          a part of its output: the queries; @k the keys, @v the values
    transformer.h.3.attn.c_proj@heads      its output for each head alone, without the bias; cannot be patched
    transformer.h.*.attn.c_*               patterns, matched between dots: * ? [0-5] [!0]
    z.3  pattern.*  cross.scores.0         short names
    all                                    every short name

In a block of GPT-2, the residual connection adds the output of the feed-forward layer to the input of `ln_2`.
`ln_2@in` patches what the norm reads and leaves the residual stream alone; `ln_2@stream` patches both.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from ftcore.models import GPT2LMHeadModel, T5ForConditionalGeneration

QKV = ("q", "k", "v")  # the parts of the output of GPT-2's c_attn
DERIVED = {"q": "", "k": "", "v": "", "heads": "in"}  # what is computed from another side of the module
SIDES = ("", "in", "stream", *DERIVED)  # output; input; input, modified in place

GPT2_NAMES = {  # {} is the block index
    "embed": "transformer.wte",  # (B, T, D) token embeddings
    "pos_embed": "transformer.wpe",  # (1 or B, T, D) position embeddings
    "resid_pre.{}": "transformer.h.{}@in",  # (B, T, D) residual stream before the block
    "resid_mid.{}": "transformer.h.{}.ln_2@stream",  # (B, T, D) between attention and feed-forward
    "resid_post.{}": "transformer.h.{}",  # (B, T, D) after the block
    "norm_attn.{}": "transformer.h.{}.ln_1",  # (B, T, D) normed input of the attention
    "q.{}": "transformer.h.{}.attn.c_attn@q",  # (B, T, H * K) queries of all heads, concatenated
    "k.{}": "transformer.h.{}.attn.c_attn@k",  # (B, T, H * K)
    "v.{}": "transformer.h.{}.attn.c_attn@v",  # (B, T, H * K)
    "scores.{}": "transformer.h.{}.attn.softmax@in",  # (B, H, T, S)
    "pattern.{}": "transformer.h.{}.attn.softmax",  # (B, H, T, S) attention weights
    "z.{}": "transformer.h.{}.attn.c_proj@in",  # (B, T, H * K) weighted values of all heads, concatenated
    "head_out.{}": "transformer.h.{}.attn.c_proj@heads",  # (B, H, T, D) output of each head, no bias
    "attn.{}": "transformer.h.{}.attn",  # (B, T, D) attention output
    "norm_mlp.{}": "transformer.h.{}.ln_2",  # (B, T, D) normed input of the feed-forward layer
    "neurons.{}": "transformer.h.{}.mlp.c_proj@in",  # (B, T, F) after the activation function
    "mlp.{}": "transformer.h.{}.mlp",  # (B, T, D) feed-forward output
    "norm_final": "transformer.ln_f",  # (B, T, D) input of the head
}
T5_ENCODER_NAMES = {
    "encoder.embed": "encoder.embed_tokens",
    "encoder.resid_pre.{}": "encoder.block.{}@in",
    "encoder.resid_mid.{}": "encoder.block.{}.layer.1@in",
    "encoder.resid_post.{}": "encoder.block.{}",
    "encoder.norm_attn.{}": "encoder.block.{}.layer.0.layer_norm",
    "encoder.q.{}": "encoder.block.{}.layer.0.SelfAttention.q",
    "encoder.k.{}": "encoder.block.{}.layer.0.SelfAttention.k",
    "encoder.v.{}": "encoder.block.{}.layer.0.SelfAttention.v",
    "encoder.scores.{}": "encoder.block.{}.layer.0.SelfAttention.softmax@in",
    "encoder.pattern.{}": "encoder.block.{}.layer.0.SelfAttention.softmax",
    "encoder.z.{}": "encoder.block.{}.layer.0.SelfAttention.o@in",
    "encoder.head_out.{}": "encoder.block.{}.layer.0.SelfAttention.o@heads",
    "encoder.attn.{}": "encoder.block.{}.layer.0.SelfAttention",
    "encoder.norm_mlp.{}": "encoder.block.{}.layer.1.layer_norm",
    "encoder.neurons.{}": "encoder.block.{}.layer.1.DenseReluDense.wo@in",
    "encoder.mlp.{}": "encoder.block.{}.layer.1.DenseReluDense",
    "encoder.norm_final": "encoder.final_layer_norm",
}
T5_DECODER_NAMES = {
    "decoder.embed": "decoder.embed_tokens",
    "decoder.resid_pre.{}": "decoder.block.{}@in",
    "decoder.resid_mid.{}": "decoder.block.{}.layer.1@in",  # after self-attention
    "decoder.resid_post.{}": "decoder.block.{}",
    "decoder.norm_attn.{}": "decoder.block.{}.layer.0.layer_norm",
    "decoder.q.{}": "decoder.block.{}.layer.0.SelfAttention.q",
    "decoder.k.{}": "decoder.block.{}.layer.0.SelfAttention.k",
    "decoder.v.{}": "decoder.block.{}.layer.0.SelfAttention.v",
    "decoder.scores.{}": "decoder.block.{}.layer.0.SelfAttention.softmax@in",
    "decoder.pattern.{}": "decoder.block.{}.layer.0.SelfAttention.softmax",
    "decoder.z.{}": "decoder.block.{}.layer.0.SelfAttention.o@in",
    "decoder.head_out.{}": "decoder.block.{}.layer.0.SelfAttention.o@heads",
    "decoder.attn.{}": "decoder.block.{}.layer.0.SelfAttention",
    "cross.resid_mid.{}": "decoder.block.{}.layer.2@in",  # after cross-attention
    "cross.norm_attn.{}": "decoder.block.{}.layer.1.layer_norm",
    "cross.q.{}": "decoder.block.{}.layer.1.EncDecAttention.q",
    "cross.k.{}": "decoder.block.{}.layer.1.EncDecAttention.k",  # (B, S, H * K) of the encoder's output
    "cross.v.{}": "decoder.block.{}.layer.1.EncDecAttention.v",
    "cross.scores.{}": "decoder.block.{}.layer.1.EncDecAttention.softmax@in",
    "cross.pattern.{}": "decoder.block.{}.layer.1.EncDecAttention.softmax",
    "cross.z.{}": "decoder.block.{}.layer.1.EncDecAttention.o@in",
    "cross.head_out.{}": "decoder.block.{}.layer.1.EncDecAttention.o@heads",
    "cross.attn.{}": "decoder.block.{}.layer.1.EncDecAttention",
    "decoder.norm_mlp.{}": "decoder.block.{}.layer.2.layer_norm",
    "decoder.neurons.{}": "decoder.block.{}.layer.2.DenseReluDense.wo@in",
    "decoder.mlp.{}": "decoder.block.{}.layer.2.DenseReluDense",
    "decoder.norm_final": "decoder.final_layer_norm",
}


@dataclass(frozen=True)
class HookPoint:
    """One activation of one model."""

    name: str  # the requested name with patterns resolved: "pattern.3"
    module_name: str  # "transformer.h.3.attn.softmax"
    side: str  # one of SIDES

    @property
    def long_name(self) -> str:
        """Name of the module, with "@in" for its input."""
        return f"{self.module_name}@{self.side}" if self.side else self.module_name


def find_hook_points(model: nn.Module, pattern: str) -> list[HookPoint]:
    """Resolve a name or pattern to the activations it matches, in module order.

    Module names take precedence: short names are tried only if no module matches.

    Raises:
        ValueError: no match; the message lists similar names.
    """
    module_pattern, _, side = pattern.partition("@")
    if side not in SIDES:
        raise ValueError(f"{pattern!r}: expected @in or @stream after a module's name, or nothing")
    shorts = short_names(model)
    if pattern in shorts:  # never a module's name, too
        return [HookPoint(pattern, *shorts[pattern].partition("@")[::2])]
    short_of = {long: short for short, long in shorts.items()}
    long_names = (f"{name}@{side}" if side else name for name in module_names(model))
    points = [
        HookPoint(long, *long.partition("@")[::2])
        for long in long_names
        if matches(long.partition("@")[0], module_pattern) and (side not in DERIVED or long in short_of)
    ]
    if not points:
        points = [
            HookPoint(short, *long.partition("@")[::2])
            for long, short in short_of.items()
            if matches(short, pattern) or pattern == "all"
        ]
    if not points:
        near = ", ".join(similar_names(model, module_pattern)) or "no modules inside"
        raise ValueError(f"{type(model).__name__} has nothing called {pattern!r}; it has {near}")
    return points


def short_names(model: nn.Module) -> dict[str, str]:
    """Map every short name of a GPT-2 or T5 to its long name; empty for other modules."""
    if isinstance(model, GPT2LMHeadModel):
        return _numbered(GPT2_NAMES, len(model.transformer.h))
    if isinstance(model, T5ForConditionalGeneration):
        encoder = _numbered(T5_ENCODER_NAMES, len(model.encoder.block))
        return encoder | _numbered(T5_DECODER_NAMES, len(model.decoder.block))
    return {}


def kind_of(short_name: str) -> str:
    """A short name without its stack and block: "cross.z.1" -> "z"."""
    return next(part for part in reversed(short_name.split(".")) if not part.isdigit())


def _numbered(names: dict[str, str], blocks: int) -> dict[str, str]:
    return {short.format(i): long.format(i) for short, long in names.items() for i in range(blocks)}


def module_names(model: nn.Module) -> Iterator[str]:
    """All dotted names; a shared module has several, such as shared and encoder.embed_tokens."""
    return (name for name, _ in model.named_modules(remove_duplicate=False) if name)


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name matches a pattern, segment by segment."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def similar_names(model: nn.Module, pattern: str) -> list[str]:
    """Names similar to `pattern`, or else the first ones; names that differ only in numbers are merged."""
    groups: dict[str, list[str]] = {}
    for name in (*short_names(model), *module_names(model)):
        groups.setdefault(_without_numbers(name), []).append(name)
    similar = get_close_matches(_without_numbers(pattern), groups, n=3) or list(groups)[:9]
    found = [groups[key] for key in similar]
    return [names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" for names in found]


def _without_numbers(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)
