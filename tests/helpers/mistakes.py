"""Typical mistakes, made in a correct model of ftcore or transformers.

A mistake is a function that changes a Case: its model or the inputs. It is implemented differently from the
same mistake in ftcore.study.causes, unless it is only a number, such as an epsilon.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftcore.models.gpt2
import ftcore.models.t5
from ftcore.models.attention import attention_mask_bias
from ftcore.models.t5 import relative_position_bias
from tests.helpers.oracle import gpt2_pair, padding, positions, t5_pair, tokens

HEADS, WIDTH = 4, 32  # K is 8: sqrt(K) is not a size of the model
SIZES = {
    "t5": {
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": 48,
        "num_heads": HEADS,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "feed_forward_proj": "gated-gelu",
    },
    "gpt2": {"n_embd": WIDTH, "n_head": HEADS, "n_layer": 2},
}


@dataclass
class Case:
    """A model for a mistake to change, and a correct reference with the same weights."""

    family: str
    is_ours: bool  # `mine` is of ftcore and the reference of transformers, or vice versa
    mine: nn.Module
    reference: nn.Module
    inputs: dict[str, Any]
    reference_inputs: dict[str, Any]
    where: Tensor | None
    patch: pytest.MonkeyPatch

    def attentions(self, name: str = "") -> list[nn.Module]:
        """The self-attention modules of `mine`, for T5 of the named stack, in order."""
        kind = "SelfAttention" if self.family == "t5" else "attn"
        named = self.mine.named_modules()
        return [part for path, part in named if path.split(".")[-1] == kind and path.startswith(name)]

    def replace(self, old: type[nn.Module] | str, new: Callable[[nn.Module], nn.Module]) -> None:
        """Replace all modules of a class, or with a name."""
        for parent in list(self.mine.modules()):
            for name, child in list(parent.named_children()):
                if name == old if isinstance(old, str) else isinstance(child, old):
                    setattr(parent, name, new(child))


def case(family: str, is_ours: bool, patch: pytest.MonkeyPatch, seed: int = 0, **settings: Any) -> Case:
    """Models with equal weights, and inputs of three rows, two of them padded."""
    pair = {"t5": t5_pair, "gpt2": gpt2_pair}[family]
    theirs, ours = pair(SIZES[family] | settings, seed)
    side = "left" if family == "gpt2" else "right"
    ids, mask = tokens(seed, 3, 40), padding(seed, 3, 40, side)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if family == "t5":
        inputs["decoder_input_ids"] = tokens(seed + 1, 3, 30)
    for_theirs = inputs | {"use_cache": False}
    if family == "gpt2":
        for_theirs["position_ids"] = positions(mask)
    where = mask if family == "gpt2" else None
    if is_ours:
        return Case(family, True, ours, theirs, inputs, for_theirs, where, patch)
    return Case(family, False, theirs, ours, for_theirs, inputs, where, patch)


# ------------------------------------------------------------------------------------------------- attention


def wrong_scale(case: Case) -> None:
    """GPT-2 without 1/sqrt(d), T5 with it."""
    factor = (WIDTH // HEADS) ** (0.5 if case.family == "gpt2" else -0.5)
    if case.family == "t5" and case.is_ours:
        right = ftcore.models.t5.attend
        case.patch.setattr("ftcore.models.t5.attend", lambda *a, **k: right(*a, **k | {"scale": factor}))
        return
    for attention in case.attentions():
        name = "scale" if case.is_ours else "scaling"
        setattr(attention, name, getattr(attention, name) * factor)


def double_scale(case: Case) -> None:
    for attention in case.attentions():
        name = "scale" if case.is_ours else "scaling"
        setattr(attention, name, getattr(attention, name) * (WIDTH // HEADS) ** -0.5)


@torch.no_grad()
def transposed(case: Case) -> None:
    attention = case.attentions()[0]
    weight = (attention.o if case.family == "t5" else attention.c_proj).weight
    weight.copy_(weight.T.clone())


@torch.no_grad()
def permuted_qkv(case: Case) -> None:
    attention = case.attentions()[1]
    if case.family == "t5":
        attention.q, attention.k = attention.k, attention.q
    else:
        for parameter in attention.c_attn.parameters():
            q, k, v = parameter.clone().chunk(3, dim=-1)
            parameter.copy_(torch.cat([k, v, q], dim=-1))


# ----------------------------------------------------------------------------------------------------- masks


def change_mask(case: Case, change: Callable[[Tensor], Tensor]) -> None:
    """Change the causal mask; `change` maps visible keys (B, 1, T, S), True = visible."""
    if case.is_ours:

        def wrong(attention_mask, query_length, key_length, *, causal, like):
            bias = attention_mask_bias(attention_mask, query_length, key_length, causal=causal, like=like)
            if not causal:
                return bias
            return torch.zeros_like(bias).masked_fill(~change(bias == 0), -torch.inf)

        case.patch.setattr(f"ftcore.models.{case.family}.attention_mask_bias", wrong)
        return

    def wrong_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        name = "mask" if case.family == "t5" else "attention_mask"
        right = kwargs[name]
        wrong = torch.zeros_like(right).masked_fill(~change(right == 0), torch.finfo(right.dtype).min)
        return args, kwargs | {name: wrong}

    for attention in case.attentions("decoder" if case.family == "t5" else ""):
        attention.register_forward_pre_hook(wrong_argument, with_kwargs=True)


def no_causal_mask(case: Case) -> None:
    change_mask(case, lambda visible: visible[:, :, -1:].expand_as(visible))


def attends_one_ahead(case: Case) -> None:
    change_mask(case, lambda visible: visible[:, :, -1:] & torch.ones_like(visible).tril(1))


def excludes_itself(case: Case) -> None:
    change_mask(case, lambda visible: visible[:, :, -1:] & torch.ones_like(visible).tril(-1))


def no_padding_mask(case: Case) -> None:
    mask = case.inputs["attention_mask"]
    case.inputs["attention_mask"] = torch.ones_like(mask)
    if case.family == "gpt2":
        case.inputs["position_ids"] = positions(mask)


# ------------------------------------------------------------------------------------------------- positions


def encoder_buckets_in_decoder(case: Case) -> None:
    if case.is_ours:

        def wrong(*args: Any, bidirectional: bool, **others: Any) -> Tensor:
            return relative_position_bias(*args, bidirectional=True, **others)

        case.patch.setattr("ftcore.models.t5.relative_position_bias", wrong)
    else:
        case.attentions("decoder")[0].is_decoder = False


def position_bias_in_first_block_only(case: Case) -> None:
    """The mask is kept."""

    def ours(module: nn.Module, args: tuple[Any, ...]):
        *others, bias = args
        return *others, torch.zeros_like(bias).masked_fill(bias == -torch.inf, -torch.inf)

    def theirs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        return args, kwargs | {"position_bias": torch.zeros_like(kwargs["position_bias"])}

    attention = case.attentions("decoder")[1]
    if case.is_ours:
        attention.register_forward_pre_hook(ours)
    else:
        attention.register_forward_pre_hook(theirs, with_kwargs=True)


def positions_from_left_edge(case: Case) -> None:
    case.inputs["position_ids"] = torch.arange(case.inputs["input_ids"].shape[1])[None]


# --------------------------------------------------------------------------------------- norms, feed-forward


def exact_gelu(case: Case) -> None:
    case.replace("act", lambda right: nn.GELU())


def other_epsilon(case: Case) -> None:
    for part in case.mine.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(part, name):
                setattr(part, name, 1e-3)


def other_norm(case: Case) -> None:
    def other(right: nn.Module) -> nn.Module:
        wrong = (nn.LayerNorm if case.family == "t5" else nn.RMSNorm)(WIDTH, eps=1e-5)
        wrong.weight = right.weight
        return wrong

    case.replace("layer_norm" if case.family == "t5" else nn.LayerNorm, other)


@torch.no_grad()
def zero_bias(case: Case) -> None:
    case.mine.get_submodule("transformer.h.1.mlp.c_fc").bias.zero_()


# ------------------------------------------------------------------------------------------------------ head


def untied_head(case: Case) -> None:
    weight = case.mine.lm_head.weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(99))
    case.mine.lm_head.weight = nn.Parameter(noise.to(weight))


def unscaled_head(case: Case) -> None:
    case.mine.config.scale_decoder_outputs = False


def scaled(case: Case) -> None:
    case.mine.lm_head.register_forward_pre_hook(lambda module, args: args[0] * WIDTH**-0.5)


# ------------------------------------------------------------------------------------------ mode, precision


def left_in_train_mode(case: Case) -> None:
    case.mine.train()


def in_bfloat16(case: Case) -> None:
    case.mine.bfloat16()


def in_float16_from_one_layer_on(case: Case) -> None:
    name = (
        "decoder.block.1.layer.2.DenseReluDense.wo" if case.family == "t5" else "transformer.h.1.mlp.c_proj"
    )
    part = case.mine.get_submodule(name)
    part.register_forward_hook(lambda module, args, output: output.half().to(output))


# The expected name of each.
BOTH = {
    transposed: "transposed weight",
    permuted_qkv: "q, k, v in another order",
    no_causal_mask: "causal mask missing",
    attends_one_ahead: "causal mask off by one",
    excludes_itself: "causal mask off by one",
    no_padding_mask: "padding mask missing",
    exact_gelu: "gelu for gelu_new",
    other_epsilon: "another epsilon",
    untied_head: "untied head",
    left_in_train_mode: "dropout left on",
    in_bfloat16: "half precision",
    in_float16_from_one_layer_on: "half precision",
}
MISTAKES = {
    "t5": BOTH
    | {
        wrong_scale: "extra 1/sqrt(d)",
        encoder_buckets_in_decoder: "encoder's buckets in the decoder",
        position_bias_in_first_block_only: "position bias missing",
        other_norm: "LayerNorm for RMSNorm",
        unscaled_head: "unscaled head",
    },
    "gpt2": BOTH
    | {
        wrong_scale: "missing 1/sqrt(d)",
        double_scale: "extra 1/sqrt(d)",
        positions_from_left_edge: "positions ignore left padding",
        other_norm: "RMSNorm for LayerNorm",
        zero_bias: "bias missing",
        scaled: "extra scale before the head",
    },
}
