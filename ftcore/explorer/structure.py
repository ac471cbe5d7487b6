"""The parts of a network as the page draws them: what reads the residual stream, and what writes to it."""

from dataclasses import dataclass

from ftcore.analysis.inputs import num_heads
from ftcore.models import GPT2LMHeadModel, Model


@dataclass(frozen=True)
class Sublayer:
    """One branch of the residual stream. Names are those of `ftcore.study.names`."""

    kind: str  # "self-attention", "cross-attention" or "feed-forward"
    writes: str  # what it adds to the stream: "attn.3"
    after: str  # the stream behind it: "resid_mid.3"
    pattern: str | None = None  # attention weights
    z: str | None = None  # what the heads mixed, side by side


@dataclass(frozen=True)
class Stack:
    """One column of blocks."""

    name: str  # "encoder" or "decoder"
    before: str  # the stream before the first block: "resid_pre.0"
    blocks: tuple[tuple[Sublayer, ...], ...]

    @property
    def sublayers(self) -> list[Sublayer]:
        return [sublayer for block in self.blocks for sublayer in block]


def stacks(model: Model) -> list[Stack]:
    """GPT-2's decoder, or T5's encoder and decoder."""
    if isinstance(model, GPT2LMHeadModel):
        return [_stack("decoder", "", len(model.transformer.h), crosses=False)]
    return [
        _stack("encoder", "encoder.", len(model.encoder.block), crosses=False),
        _stack("decoder", "decoder.", len(model.decoder.block), crosses=True),
    ]


def _stack(name: str, prefix: str, depth: int, *, crosses: bool) -> Stack:
    """`prefix` is that of the short names: "encoder.", "decoder." or, in GPT-2, ""."""
    blocks = tuple(_block(prefix, block, crosses) for block in range(depth))
    return Stack(name, f"{prefix}resid_pre.0", blocks)


def _block(prefix: str, number: int, crosses: bool) -> tuple[Sublayer, ...]:
    attention = _attention("self-attention", prefix, number)
    cross = _attention("cross-attention", "cross.", number)
    feed_forward = Sublayer(
        "feed-forward", writes=f"{prefix}mlp.{number}", after=f"{prefix}resid_post.{number}"
    )
    return (attention, cross, feed_forward) if crosses else (attention, feed_forward)


def _attention(kind: str, prefix: str, number: int) -> Sublayer:
    return Sublayer(
        kind,
        writes=f"{prefix}attn.{number}",
        after=f"{prefix}resid_mid.{number}",
        pattern=f"{prefix}pattern.{number}",
        z=f"{prefix}z.{number}",
    )


def heads(model: Model) -> list[tuple[Sublayer, int]]:
    """Every attention head of a model: its sublayer and its number."""
    return [
        (sublayer, head)
        for stack in stacks(model)
        for sublayer in stack.sublayers
        if sublayer.pattern
        for head in range(num_heads(model))
    ]
