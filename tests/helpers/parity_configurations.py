"""Random configurations of the parity matrix: model, precision, padding, cache, lengths, optimizer."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.oracle import tokens

ROWS = 4
LENGTHS = (1, 2, 7, 20, 45, 140)  # T5's buckets for encoder and decoder agree only below a few tokens
PRECISIONS = ("float32", "bfloat16", "float16", "autocast")
PADDINGS = ("none", "left", "right", "mixed")
CACHES = ("none", "steps", "chunks")
OPTIMIZERS = ("AdamW", "Adafactor")
IGNORED = -100

Choices = dict[str, Iterable[Any]]  # keys of config.json and their possible values

T5_SIZES: Choices = {
    "d_model": (24, 32, 48),
    "d_kv": (4, 8, 12),
    "d_ff": (40, 64),
    "num_layers": (1, 2, 3),
    "num_decoder_layers": (1, 2, 3, 4),
    "num_heads": (1, 2, 3, 4),
    "relative_attention_num_buckets": (7, 8, 32),
    "relative_attention_max_distance": (20, 128),
}
T5_ANY: Choices = {
    "feed_forward_proj": ("relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"),
    "layer_norm_epsilon": (1e-6, 1e-5),
    "tie_word_embeddings": (True, False),
    "scale_decoder_outputs": (True, False),
}
V1_1: Choices = {
    "feed_forward_proj": ("gated-gelu",),
    "tie_word_embeddings": (False,),
    "scale_decoder_outputs": (False,),
}
MULTILINGUAL: Choices = {"feed_forward_proj": ("gated-gelu",), "tie_word_embeddings": (False, True)}
GPT2_SIZES: Choices = {"n_embd": (24, 48), "n_head": (1, 2, 3, 4), "n_layer": (1, 2, 3, 4)}
GPT2_ANY: Choices = {
    "n_inner": (None, 50),
    "activation_function": ("gelu_new", "gelu", "relu", "silu", "tanh"),
    "layer_norm_epsilon": (1e-5, 1e-6),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (True, False),
    "reorder_and_upcast_attn": (True, False),
    "tie_word_embeddings": (True, False),
}
UPCAST: Choices = {"reorder_and_upcast_attn": (True,), "scale_attn_by_inverse_layer_idx": (True,)}

# The last variant of each family mixes all switches.
VARIANTS: dict[str, dict[str, Choices]] = {
    "t5": {
        "t5": T5_SIZES,
        "t5-v1.1": T5_SIZES | V1_1,
        "mt5": T5_SIZES | MULTILINGUAL | {"model_type": ("mt5",)},
        "umt5": T5_SIZES | MULTILINGUAL | {"model_type": ("umt5",)},
        "t5-any": T5_SIZES | T5_ANY,
    },
    "gpt2": {"gpt2": GPT2_SIZES, "gpt2-upcast": GPT2_SIZES | UPCAST, "gpt2-any": GPT2_SIZES | GPT2_ANY},
}


@dataclass(frozen=True)
class Configuration:
    """One configuration. A failure prints its repr, and `check(Configuration(...))` runs it again."""

    variant: str
    settings: dict[str, Any]  # keys of config.json
    precision: str  # of weights and computation; "autocast": float32 weights, bfloat16 computation
    padding: str  # "mixed": rows with no, left, right and two-sided padding
    cache: str  # "steps": a prompt, then token by token; "chunks": pieces of uneven length
    optimizer: str
    source: int  # length of T5's source, 0 for GPT-2
    length: int  # of T5's target or GPT-2's text
    seed: int  # of weights, tokens, padding and decoding

    @property
    def is_t5(self) -> bool:
        return self.source > 0

    @property
    def chunks(self) -> list[int]:
        """Numbers of positions per forward pass with the cache."""
        whole, half = self.length, max(1, self.length // 2)
        if self.cache == "steps":
            steps = min(5, whole - half)
            pieces = [half, *[1] * steps, whole - half - steps]
        else:
            pieces = [1, half, whole - half - 1]
        return [piece for piece in pieces if piece > 0] if whole > 1 else [1]


def configurations(family: str, count: int) -> st.SearchStrategy[Configuration]:
    """`count` fixed configurations. Hypothesis draws only a seed for each: drawing every choice, it would
    repeat choices and leave most of the matrix untested.
    """
    numbers = st.sampled_from(range(count))
    return numbers.map(lambda number: random_configuration(family, random.Random(number)))


def random_configuration(family: str, r: random.Random) -> Configuration:
    variant = r.choice(list(VARIANTS[family]))
    return Configuration(
        variant=variant,
        settings={key: r.choice(list(values)) for key, values in VARIANTS[family][variant].items()},
        precision=r.choice(PRECISIONS),
        padding=r.choice(PADDINGS),
        cache=r.choice(CACHES),
        optimizer=r.choice(OPTIMIZERS),
        source=r.choice(LENGTHS) if family == "t5" else 0,
        length=r.choice(LENGTHS),
        seed=r.randrange(2**31),
    )


@dataclass(frozen=True)
class Batch:
    """Random tokens with masks and labels."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S)
    labels: Tensor  # (B, T) T5's target, or (B, S) over GPT-2's text; -100 where ignored
    decoder_input_ids: Tensor | None = None  # (B, T) T5's
    decoder_mask: Tensor | None = None  # (B, T)

    @property
    def read(self) -> Tensor:
        """(B, T) bool: positions whose logits are compared."""
        return (self.attention_mask if self.decoder_mask is None else self.decoder_mask).bool()


def batch_of(configuration: Configuration) -> Batch:
    seed, length = configuration.seed, configuration.length
    ids, mask = tokens(seed + 1, ROWS, length), mask_of(seed + 1, length, configuration.padding)
    if not configuration.is_t5:
        # The first token of a row is not predicted.
        predicted = mask.bool() & mask.roll(1, 1).bool()
        return Batch(ids, mask, labels=ids.masked_fill(~predicted, IGNORED))
    start = torch.zeros(ROWS, 1, dtype=torch.long)
    return Batch(
        input_ids=tokens(seed, ROWS, configuration.source),
        attention_mask=mask_of(seed, configuration.source, configuration.padding),
        labels=ids.masked_fill(mask == 0, IGNORED),
        decoder_input_ids=torch.cat([start, ids[:, :-1]], 1),
        decoder_mask=mask,
    )


def mask_of(seed: int, length: int, padding: str) -> Tensor:
    """(B, length) attention mask: row 0 without padding, the others with up to a third per side."""
    sides = {"none": "none", "left": "left", "right": "right", "mixed": "left right both"}[padding].split()
    sides = ["none", *(sides * ROWS)][:ROWS]
    left = torch.tensor([[side in ("left", "both")] for side in sides])
    right = torch.tensor([[side in ("right", "both")] for side in sides])
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, length // 3 + 1, (2, ROWS, 1), generator=generator)
    places = torch.arange(length)
    return ((places >= cuts[0] * left) & (places < length - cuts[1] * right)).long()
