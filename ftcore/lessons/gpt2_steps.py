"""Checks of steps 5 and 6: GPT-2's block, and the whole model."""

from functools import partial
from math import pi, sqrt
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import load_model
from ftcore.data.tokenizer import load_tokenizer
from ftcore.lessons.attention_steps import mask_bias, padded_causal_mask
from ftcore.lessons.step import load_weights, same, same_module, shipped
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.models.gpt2 import GPT2MLP, GPT2Block
from ftcore.study import randomize_weights

PROMPT = "Emotion: i"


def gpt2_block(module: ModuleType) -> None:
    """Step 5."""
    x = torch.linspace(-4, 4, 33)
    same("gelu(x)", module.gelu(x.clone()), F.gelu(x, approximate="tanh"), _wrong_gelus(x))
    for width in (6, 16):
        _layer_norm(module, width)
    for width, heads in ((6, 2), (20, 4)):
        config = GPT2Config(n_embd=width, n_head=heads)
        hidden, visible = torch.randn(2, 7, width) + 0.5, padded_causal_mask([7, 4])
        same_module("MLP", module.MLP(width), randomize_weights(GPT2MLP(config)), hidden)
        same_module(
            "Block",
            module.Block(width, heads),
            randomize_weights(GPT2Block(config, layer=0)),
            (hidden, visible),
            reference_inputs=(hidden, mask_bias(visible), None),
        )


def _wrong_gelus(x: Tensor) -> dict[str, Tensor]:
    def gelu(inner: Tensor) -> Tensor:
        return 0.5 * x * (1 + inner.tanh())

    factor, cubic = sqrt(2 / pi), x + 0.044715 * x**3
    inner = factor * cubic
    return {
        "This is the exact GELU, with erf. GPT-2 has the approximation with tanh.": F.gelu(x),
        "This is the approximation with a sigmoid. GPT-2 has the one with tanh.": x * (1.702 * x).sigmoid(),
        "This is relu.": x.relu(),
        "The factor 0.5 is missing.": 2 * gelu(inner),
        "The factor x in front is missing.": 0.5 * (1 + inner.tanh()),
        "The 1 + is missing.": 0.5 * x * inner.tanh(),
        "The factor sqrt(2 / pi) is missing.": gelu(cubic),
        "2 / pi lacks its square root.": gelu(2 / pi * cubic),
        "x is squared, expected x^3.": gelu(factor * (x + 0.044715 * x**2)),
        "The factor sqrt(2 / pi) is applied to x alone, expected to the whole sum.": (
            gelu(factor * x + 0.044715 * x**3)
        ),
    }


def _layer_norm(module: ModuleType, width: int) -> None:
    norm = nn.LayerNorm(width)
    randomize_weights(norm)
    mine = module.LayerNorm(width)
    load_weights("LayerNorm", mine, norm)
    small = torch.randn(2, 3, width) * 1e-3  # eps counts
    with torch.no_grad():
        for hidden in (torch.randn(2, width, width) * 3 + 1, small):
            wrong = _wrong_norms(hidden, norm.weight, norm.bias)
            same(f"LayerNorm({width}) of {tuple(hidden.shape)}", mine(hidden.clone()), norm(hidden), wrong)


def _wrong_norms(hidden: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    eps = 1e-5
    centred, variance = hidden - hidden.mean(-1, keepdim=True), hidden.var(-1, correction=0, keepdim=True)
    unbiased, root = hidden.var(-1, keepdim=True), (variance + eps).sqrt()
    right = centred / root
    of_all = (hidden - hidden.mean()) / (hidden.var(correction=0) + eps).sqrt()
    of_positions = F.layer_norm(hidden.mT, hidden.shape[1:2], eps=eps).mT
    normalized = {
        "The variance is divided by D - 1, torch's default: use correction=0.": (
            centred / (unbiased + eps).sqrt()
        ),
        "The deviation is divided by D - 1, torch's default, and eps is outside of the root.": (
            centred / (unbiased.sqrt() + eps)
        ),
        "eps is outside of the square root, expected inside.": centred / (variance.sqrt() + eps),
        "eps is missing.": centred / variance.sqrt(),
        "It divides by the variance, expected its square root.": centred / (variance + eps),
        "The mean is not subtracted: this is RMSNorm, of step 7.": F.rms_norm(hidden, weight.shape, eps=eps),
        "The mean is subtracted in the variance only.": hidden / root,
        "Mean and variance are those of the whole tensor, expected of each vector: dim=-1.": of_all,
        "Mean and variance run over the positions, expected the last dimension: dim=-1.": of_positions,
        "The bias is added before the scaling by weight, expected after.": right + bias - bias / weight,
    }
    wrong = {sentence: value * weight + bias for sentence, value in normalized.items()}
    return wrong | {
        "The weight is not used.": right + bias,
        "The bias is not added.": right * weight,
        "Neither weight nor bias is used.": right,
    }


def gpt2(module: ModuleType) -> str:
    """Step 6."""
    for vocab_size, width, heads, layers in ((11, 6, 2, 1), (23, 16, 4, 3)):
        config = GPT2Config(vocab_size=vocab_size, n_positions=12, n_embd=width, n_head=heads, n_layer=layers)
        model = randomize_weights(GPT2LMHeadModel(config)).eval()
        same_module("GPT2", module.GPT2(config), model, torch.randint(vocab_size, (2, 9)))
        for ids in ([1, 2, 3], [7]):
            write = partial(_greedy, model, ids, 6)
            new = write()
            wrong = {
                "The given ids are returned too, expected the new ones only.": ids + new,
                "The model reads the same ids each time: append the new one.": new[:1] * 6,
                "The first position's logits are used. The last position predicts the next token.": (
                    write(position=0)
                ),
                "The model reads the new token only, expected the whole text.": write(window=1),
            }
            same(f"write(model, {ids}, 6)", module.write(model, [*ids], 6), new, wrong)
    return _continuation(module)


def _continuation(module: ModuleType) -> str:
    """Load the shipped GPT-2 into the student's model, and let it continue PROMPT."""
    directory = shipped("gpt2-mini")
    if directory is None:
        return "Checked with random weights: those of gpt2-mini are in a clone of ftcore."
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    mine, ids = module.GPT2(model.config), tokenizer.encode(PROMPT)
    same_module("GPT2 with the weights of gpt2-mini", mine, model, torch.tensor([ids]))
    new = module.write(mine, [*ids], 20)
    same("write(gpt2-mini, ...)", new, _greedy(model, ids, 20))
    return f"Your GPT-2 with the weights of gpt2-mini continues {PROMPT!r}: {tokenizer.decode(new)!r}"


@torch.no_grad()
def _greedy(model: nn.Module, ids: list[int], count: int, position: int = -1, window: int = 0) -> list[int]:
    """The next ids of greedy search; `position` and `window` (0: all ids) are for its known mistakes."""
    ids, start = list(ids), len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids[-window:]]))[0, position].argmax()))
    return ids[start:]
