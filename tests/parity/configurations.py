"""The cells of the matrix: a random model of either family, its precision, padding, cache, lengths, optimizer."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from oracle import VOCAB, t5_settings, tokens
from torch import Tensor

ROWS = 4
LENGTHS = (1, 2, 7, 20, 45, 140)  # T5's buckets for encoder and decoder agree only below a few tokens
PRECISIONS = ("float32", "bfloat16", "float16", "autocast")
PADDINGS = ("none", "left", "right", "mixed")
CACHES = ("none", "steps", "chunks")
OPTIMIZERS = ("AdamW", "Adafactor")
IGNORED = -100

# What makes a member of a family that member; "any" mixes the switches freely.
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "scale_decoder_outputs": False}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "t5": {
        "t5": {},
        "t5-v1.1": V1_1,
        "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "umt5": {"model_type": "umt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "t5-any": {},
    },
    "gpt2": {
        "gpt2": {},
        "gpt2-upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
        "gpt2-any": {},
    },
}
T5_SWITCHES = ("feed_forward_proj", "layer_norm_epsilon", "tie_word_embeddings", "scale_decoder_outputs")
GPT2_SIZES = {
    "n_embd": st.sampled_from([24, 48]),
    "n_head": st.sampled_from([1, 2, 3, 4]),
    "n_layer": st.integers(1, 4),
}
GPT2_SWITCHES = {
    "n_inner": st.sampled_from([None, 50]),
    "activation_function": st.sampled_from(["gelu_new", "gelu", "relu", "silu", "tanh"]),
    "layer_norm_epsilon": st.sampled_from([1e-5, 1e-6]),
    "scale_attn_weights": st.booleans(),
    "scale_attn_by_inverse_layer_idx": st.booleans(),
    "reorder_and_upcast_attn": st.booleans(),
    "tie_word_embeddings": st.booleans(),
}


@dataclass(frozen=True)
class Configuration:
    """One cell. Its repr, which a failure shows, is Python: `check(Configuration(...))` runs it again."""

    variant: str
    settings: dict[str, Any]  # keys of config.json
    precision: str  # of weights and computation; "autocast": float32 weights, bfloat16 computation
    padding: str  # "mixed": a full row, then one padded on the left, one on the right, one on both sides
    cache: str  # "steps": a prompt, then token by token; "chunks": pieces of uneven length
    optimizer: str
    source: int  # length of T5's source; 0 for GPT-2
    length: int  # of T5's target or GPT-2's text
    seed: int  # of weights, tokens, cuts and decoding

    @property
    def is_t5(self) -> bool:
        return self.source > 0

    @property
    def chunks(self) -> list[int]:
        """How many positions are fed to the cache at a time."""
        whole, half = self.length, max(1, self.length // 2)
        if self.cache == "steps":
            steps = min(5, whole - half)
            pieces = [half, *[1] * steps, whole - half - steps]
        else:
            pieces = [1, half, whole - half - 1]
        return [piece for piece in pieces if piece > 0] if whole > 1 else [1]


@st.composite
def configurations(draw: st.DrawFn, family: str) -> Configuration:
    variant = draw(st.sampled_from(list(VARIANTS[family])))
    if family == "t5":
        settings = draw(t5_settings)
        if not variant.endswith("any"):
            settings = {key: value for key, value in settings.items() if key not in T5_SWITCHES}
    else:
        settings = draw(
            st.fixed_dictionaries(GPT2_SIZES | (GPT2_SWITCHES if variant.endswith("any") else {}))
        )
    return Configuration(
        variant=variant,
        settings=settings | VARIANTS[family][variant],
        precision=draw(st.sampled_from(PRECISIONS)),
        padding=draw(st.sampled_from(PADDINGS)),
        cache=draw(st.sampled_from(CACHES)),
        optimizer=draw(st.sampled_from(OPTIMIZERS)),
        source=draw(st.sampled_from(LENGTHS)) if family == "t5" else 0,
        length=draw(st.sampled_from(LENGTHS)),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass(frozen=True)
class Batch:
    """Random tokens, and what of them is padding."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S)
    labels: Tensor  # (B, T) T5's target, or (B, S) over GPT-2's text; -100 where nothing is asked
    decoder_input_ids: Tensor | None = None  # (B, T) T5's
    decoder_mask: Tensor | None = None  # (B, T)

    @property
    def read(self) -> Tensor:
        """(B, T) bool: the positions whose logits somebody reads."""
        return (self.attention_mask if self.decoder_mask is None else self.decoder_mask).bool()


def batch_of(configuration: Configuration) -> Batch:
    seed, length = configuration.seed, configuration.length
    ids, mask = tokens(seed + 1, ROWS, length), mask_of(seed + 1, length, configuration.padding)
    if not configuration.is_t5:
        # The first token of a row is asked of nobody: before it stands padding, or nothing.
        asked = mask.bool() & mask.roll(1, 1).bool()
        return Batch(ids, mask, labels=ids.masked_fill(~asked, IGNORED))
    start = torch.zeros(ROWS, 1, dtype=torch.long)
    return Batch(
        input_ids=tokens(seed, ROWS, configuration.source),
        attention_mask=mask_of(seed, configuration.source, configuration.padding),
        labels=ids.masked_fill(mask == 0, IGNORED),
        decoder_input_ids=torch.cat([start, ids[:, :-1]], 1),
        decoder_mask=mask,
    )


def mask_of(seed: int, length: int, padding: str) -> Tensor:
    """(B, length) attention mask: row 0 is full, the others lose up to a third on a side."""
    sides = {"none": "none", "left": "left", "right": "right", "mixed": "left right both"}[padding].split()
    sides = ["none", *(sides * ROWS)][:ROWS]
    left = torch.tensor([[side in ("left", "both")] for side in sides])
    right = torch.tensor([[side in ("right", "both")] for side in sides])
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, length // 3 + 1, (2, ROWS, 1), generator=generator)
    places = torch.arange(length)
    return ((places >= cuts[0] * left) & (places < length - cuts[1] * right)).long()
