"""The same random model in transformers and in ftcore, with random inputs.

Tolerances: both compute the same formulas but sum in another order, so they differ by rounding. The
requirement is 1e-5 of the largest value, 84 eps of float32. Rounding needs less: a sum of 64 products,
typical here, has an error of about sqrt(64) / 2 = 4 eps, the deepest T5 has 18 sublayers of about 4
consecutive sums, and independent errors add like a random walk, so sqrt(18 * 4) * 4 = 34 eps are expected
if no layer amplifies earlier errors (ensured by `randomize_weights`), and sqrt(2) times as much in
gradients. But 84 eps would hide small mistakes: gelu instead of gelu_new changes a value by at most 5e-4,
and the logits by less. So the same tests also run in float64, where 84 eps are 1.9e-14, smaller than any
mistake.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5
from transformers.models.umt5 import modeling_umt5

from ftcore.models import (
    GPT2Config,
    GPT2LMHeadModel,
    MT5Config,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
)
from ftcore.study import randomize_weights

transformers.logging.set_verbosity_error()

VOCAB = 97
LENGTHS = (1, 2, 20, 140)  # T5's buckets for encoder and decoder agree only below a few tokens
BOUND = {torch.float32: 1e-5, torch.float64: 1e-5 * 2**-29}  # 84 eps each; float64 has 29 bits more

T5_CLASSES = {  # model_type: (their configuration, ours, their model)
    "t5": (transformers.T5Config, T5Config, transformers.T5ForConditionalGeneration),
    "mt5": (transformers.MT5Config, MT5Config, transformers.MT5ForConditionalGeneration),
    "umt5": (transformers.UMT5Config, UMT5Config, transformers.UMT5ForConditionalGeneration),
}

seeds = st.integers(0, 2**31)
sides = st.sampled_from(["left", "right"])

t5_settings = st.fixed_dictionaries(
    {
        "d_model": st.sampled_from([24, 32, 48]),
        "d_kv": st.sampled_from([4, 8, 12]),
        "d_ff": st.sampled_from([40, 64]),
        "num_layers": st.integers(1, 3),
        "num_decoder_layers": st.integers(1, 4),
        "num_heads": st.integers(1, 4),
        "relative_attention_num_buckets": st.sampled_from([7, 8, 32]),
        "relative_attention_max_distance": st.sampled_from([20, 128]),
        "feed_forward_proj": st.sampled_from(["relu", "gated-gelu", "gated-silu", "gelu"]),
        "layer_norm_epsilon": st.sampled_from([1e-6, 1e-5]),
        "tie_word_embeddings": st.booleans(),
        "scale_decoder_outputs": st.booleans(),
    }
)
gpt2_settings = st.fixed_dictionaries(
    {
        "n_embd": st.sampled_from([24, 48]),
        "n_head": st.sampled_from([1, 2, 3, 4]),
        "n_layer": st.integers(1, 4),
        "n_inner": st.sampled_from([None, 50]),
        "activation_function": st.sampled_from(["gelu_new", "gelu", "relu", "silu", "tanh"]),
        "layer_norm_epsilon": st.sampled_from([1e-5, 1e-6]),
        "scale_attn_weights": st.booleans(),
        "scale_attn_by_inverse_layer_idx": st.booleans(),
        "tie_word_embeddings": st.booleans(),
    }
)


def t5_pair(
    settings: dict[str, Any], seed: int, attention: str = "eager"
) -> tuple[Any, T5ForConditionalGeneration]:
    """transformers' T5 and ours with equal weights, in eval mode; mT5 or uMT5 by `model_type`."""
    config_of_theirs, config_of_ours, model_of_theirs = T5_CLASSES[settings.get("model_type", "t5")]
    given = {"vocab_size": VOCAB, "decoder_start_token_id": 0, "attn_implementation": attention} | settings
    given.pop("model_type", None)
    config = config_of_theirs(**given)
    # Its cache has as many layers as the encoder and breaks with a deeper decoder.
    config.use_cache = False
    reference = model_of_theirs(config)
    tied = settings.get("tie_word_embeddings", True)
    if not tied:  # a T5Config of transformers always says tied
        reference.lm_head.weight = nn.Parameter(reference.lm_head.weight.clone())
    model = T5ForConditionalGeneration(
        config_of_ours.from_dict(config.to_dict() | {"tie_word_embeddings": tied}, where="config.json")
    )
    reference.load_state_dict(randomize_weights(model, seed).state_dict())
    return reference.eval(), model.eval()


def gpt2_pair(
    settings: dict[str, Any], seed: int, attention: str = "eager"
) -> tuple[transformers.GPT2LMHeadModel, GPT2LMHeadModel]:
    """transformers' GPT-2 and ours with equal weights, in eval mode."""
    defaults = {"vocab_size": VOCAB, "n_positions": 160, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(**defaults | {"attn_implementation": attention} | settings)
    reference = transformers.GPT2LMHeadModel(config)
    model = GPT2LMHeadModel(GPT2Config.from_dict(config.to_dict()))
    reference.load_state_dict(randomize_weights(model, seed).state_dict())
    return reference.eval(), model.eval()


@contextmanager
def float64_reference() -> Iterator[None]:
    """Patch transformers' T5 norm, which always rounds the mean of squares to float32."""

    def forward(self: Any, hidden: Tensor) -> Tensor:
        mean_square = hidden.square().mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(mean_square + self.variance_epsilon))

    with (
        mock.patch.object(modeling_t5.T5LayerNorm, "forward", forward),
        mock.patch.object(modeling_mt5.MT5LayerNorm, "forward", forward),
        mock.patch.object(modeling_umt5.UMT5LayerNorm, "forward", forward),
    ):
        yield


@contextmanager
def dropout_calls() -> Iterator[list[tuple[tuple[int, ...], float]]]:
    """Record (shape, p) of every dropout in training mode, in order, including the fused kernel's."""
    calls: list[tuple[tuple[int, ...], float]] = []
    dropout, fused = F.dropout, F.scaled_dot_product_attention

    def counted(states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and p > 0:
            calls.append((tuple(states.shape), p))
        return dropout(states, p, training, inplace)

    def counted_fused(query: Tensor, key: Tensor, value: Tensor, bias=None, p=0.0, causal=False, **options):
        if p > 0:
            calls.append(((*query.shape[:-1], key.shape[-2]), p))
        return fused(query, key, value, bias, p, causal, **options)

    with (
        mock.patch.object(F, "dropout", counted),
        mock.patch.object(F, "scaled_dot_product_attention", counted_fused),
    ):
        yield calls


def record_outputs(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """Hook these modules; their outputs appear under their names when the model runs."""
    seen: dict[str, Tensor] = {}
    for name in names:

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            seen[name] = output

        model.get_submodule(name).register_forward_hook(keep)
    return seen


def tokens(seed: int, rows: int, length: int) -> Tensor:
    """(rows, length) ids without pad and EOS."""
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding(seed: int, rows: int, length: int, side: str) -> Tensor:
    """(rows, length) attention mask: row 0 without padding, the others with up to half on that side."""
    cuts = torch.randint(0, length // 2 + 1, (rows, 1), generator=torch.Generator().manual_seed(seed))
    cuts[0] = 0
    places = torch.arange(length)
    return ((places >= cuts) if side == "left" else (places < length - cuts)).long()


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that transformers' GPT-2 needs; its `generate` computes them, its forward does not."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((got - want).abs().max() / want.abs().max()).item()


def distance(got: Tensor, want: Tensor) -> float:
    """Norm of the difference relative to the norm, for gradients and weights."""
    return ((got - want).norm() / want.norm().clamp(min=torch.finfo(want.dtype).tiny)).item()
