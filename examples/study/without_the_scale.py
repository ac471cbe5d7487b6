"""What happens to GPT-2 without the 1/sqrt(d) rule, and to T5 with it?

    python examples/study/without_the_scale.py

Attention divides the products of queries and keys by sqrt(K), K being the width of a head (Vaswani et al.
2017, section 3.2.1). T5 does not: it is trained without the division, and initializes its queries smaller.
Here both models run with both scales, and the loss and the entropy of attention are measured.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from gapped_passages import gapped_passages, inputs_of
from torch import Tensor

from ftcore import load_model, load_tokenizer
from ftcore.analysis.attention import attention_maps
from ftcore.analysis.inputs import Inputs
from ftcore.analysis.tokens import token_losses
from ftcore.data.tokenizer import Tokenizer
from ftcore.figures import new_figure, save_figure
from ftcore.models import Model, T5ForConditionalGeneration
from ftcore.study import patch

ROOT = Path(__file__).resolve().parents[2]
TEXTS = 100
WIDTH = 32  # of a head in both models


class Example(NamedTuple):
    inputs: Inputs
    labels: Tensor | None  # T5's
    selected: slice  # the losses to average


def examples(model: Model, tokenizer: Tokenizer) -> list[Example]:
    """Inputs as in pretraining, with unseen names: gaps for T5, stories for GPT-2."""
    if isinstance(model, T5ForConditionalGeneration):
        return [
            Example(inputs_of(model, gapped), torch.tensor([gapped.target]), slice(*gap))
            for gapped in gapped_passages(tokenizer, TEXTS // 2)
            for gap in gapped.gaps
        ]
    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    stories = [passage["context"] for passage in test["data"][0]["paragraphs"][:TEXTS]]
    return [Example({"input_ids": torch.tensor([tokenizer.encode(s)])}, None, slice(None)) for s in stories]


def scaled_queries(model: Model, factor: float) -> ExitStack:
    """A context in which all queries, and so all scores, are multiplied by `factor`."""
    patches = ExitStack()
    if isinstance(model, T5ForConditionalGeneration):
        for name in ("*.block.*.layer.0.SelfAttention.q", "decoder.block.*.layer.1.EncDecAttention.q"):
            patches.enter_context(patch(model, name, lambda queries: queries * factor))
        return patches

    def scale_queries(qkv: Tensor) -> Tensor:
        qkv[..., : qkv.shape[-1] // 3] *= factor
        return qkv

    patches.enter_context(patch(model, "transformer.h.*.attn.c_attn", scale_queries))
    return patches


def entropy(maps: dict[str, Tensor]) -> float:
    """Mean entropy of the attention weights in bits, over all heads and positions."""
    bits = [-(weights * weights.clamp(min=1e-30).log2()).sum(-1).flatten() for weights in maps.values()]
    return float(torch.cat(bits).mean())


def measure(model: Model, data: list[Example]) -> tuple[float, float]:
    """Loss in nats per token, and the entropy of attention in bits."""
    losses = [token_losses(model, one.inputs, one.labels)[0, one.selected] for one in data]
    entropies = [entropy(attention_maps(model, one.inputs)) for one in data]
    return float(torch.cat(losses).mean()), sum(entropies) / len(entropies)


def entropy_of_random(width: int, scale: float) -> float:
    """Entropy of attention over 64 keys, with standard normal queries and keys."""
    query, key = torch.randn(2, 200, 64, width, generator=torch.Generator().manual_seed(0))
    return entropy({"": (query @ key.transpose(-2, -1) * scale).softmax(-1)})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What happens without the 1/sqrt(d) rule?")
    parser.add_argument("--out", default="runs/studies/without_the_scale.png")
    options = parser.parse_args(arguments)

    factors = [2.0**power for power in range(-5, 6)]
    curves, right, wrong = {}, {}, {}
    for name, rule in (("t5-mini", -0.5), ("gpt2-mini", 0.5)):
        model, tokenizer = (load(ROOT / "weights" / name) for load in (load_model, load_tokenizer))
        data = examples(model, tokenizer)
        curves[name] = []
        for factor in factors:
            with scaled_queries(model, factor):
                curves[name].append(measure(model, data[: TEXTS // 4]))
        right[name] = measure(model, data)
        with scaled_queries(model, WIDTH**rule):
            wrong[name] = measure(model, data)

    random_widths = [4, 8, 16, 32, 64, 128, 256]
    figure = new_figure(12, 3.6)
    panels = figure.subplots(1, 3)
    for name, curve in curves.items():
        losses, entropies = zip(*curve, strict=True)
        panels[0].plot(factors, losses, marker="o", markersize=3, label=name)
        panels[1].plot(factors, entropies, marker="o", markersize=3, label=name)
    for axes, title in zip(panels, ("loss, nats per token", "entropy of attention, bits"), strict=False):
        axes.axvline(1.0, color="0.8", lw=1, zorder=0)
        for factor in (WIDTH**-0.5, WIDTH**0.5):
            axes.axvline(factor, color="0.8", lw=1, ls=":", zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("factor of the queries (dotted: 1/sqrt(32), sqrt(32))")
        axes.set_title(title, fontsize=9)
        axes.legend(frameon=False)
    divided = [entropy_of_random(width, width**-0.5) for width in random_widths]
    plain = [entropy_of_random(width, 1.0) for width in random_widths]
    panels[2].plot(random_widths, divided, marker="o", markersize=3, label="divided by sqrt(K)")
    panels[2].plot(random_widths, plain, marker="o", markersize=3, label="not divided")
    panels[2].set_xscale("log", base=2)
    panels[2].set_xlabel("width K of a head")
    panels[2].set_title("random queries and keys: entropy, of 6 bits", fontsize=9)
    panels[2].legend(frameon=False)
    save_figure(figure, options.out)

    print(f"picture    {options.out}\n")
    print(
        f"With random queries and keys of width 256, attention has {divided[-1]:.1f} of 6 bits of entropy if"
        f" the scores are divided by 16 and {plain[-1]:.1f} if not: without the rule, and with weights of the"
        " usual size, attention is nearly one-hot at initialization."
    )
    (loss, bits), (worse, sharper) = right["gpt2-mini"], wrong["gpt2-mini"]
    print(
        f"gpt2-mini was trained with the rule; without it, its loss on {TEXTS} stories rises from {loss:.2f}"
        f" to {worse:.2f} nats per token, and the entropy of its attention falls from {bits:.2f} to"
        f" {sharper:.2f} bits."
    )
    (loss, bits), (worse, blurred) = right["t5-mini"], wrong["t5-mini"]
    print(
        "t5-mini was trained without it; with it, the default of F.scaled_dot_product_attention, its loss on"
        f" {TEXTS} gaps rises from {loss:.2f} to {worse:.2f} nats per token, and the entropy from {bits:.2f}"
        f" to {blurred:.2f} bits."
    )


if __name__ == "__main__":
    main()
