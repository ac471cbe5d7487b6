"""What does T5's relative position bias encode?

    python examples/study/relative_bias_heads.py

T5 has no position embeddings. Besides the decoder's causal mask, its only information about order is a bias
for each head and each bucket of distances, added to the scores. This script plots the bias of
weights/t5-mini by distance, and measures how gap filling suffers when the bias is set to zero.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch
from gapped_passages import Gapped, filled, gapped_passages
from torch import Tensor

from ftcore import load_model, load_tokenizer
from ftcore.analysis.attention import draw_relative_bias, relative_bias_curves
from ftcore.figures import new_figure, save_figure
from ftcore.models import T5ForConditionalGeneration
from ftcore.study import patch

ROOT = Path(__file__).resolve().parents[2]
PASSAGES = 60
NEAR = 2  # tokens


def near_by_bias_alone(model: T5ForConditionalGeneration, stack: str) -> Tensor:
    """(H): attention within NEAR tokens of a query in mid-text, from the position bias alone."""
    curves = relative_bias_curves(model, stack, reach=60)
    weights = curves.biases[0].softmax(-1)  # (H, N)
    return weights[:, curves.distances.abs() <= NEAR].sum(-1)


def share_filled(
    model: T5ForConditionalGeneration, passages: list[Gapped], zeroed: dict[str, list[int]]
) -> float:
    """The share of gaps filled correctly, with the bias of these heads of each stack set to zero."""
    with ExitStack() as patches:
        for stack, heads in zeroed.items():

            def zero(bias: Tensor, heads: list[int] = heads) -> Tensor:  # (T, S, H)
                bias[..., heads] = 0
                return bias

            table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
            patches.enter_context(patch(model, table, zero))
        right = [flag for gapped in passages for flag in filled(model, gapped)]
    return sum(right) / len(right)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What does T5's relative position bias encode?")
    parser.add_argument("--model", default=str(ROOT / "weights" / "t5-mini"), help="a T5 that fills gaps")
    parser.add_argument("--out", default="runs/studies/relative_bias_heads.png")
    options = parser.parse_args(arguments)
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    passages = gapped_passages(tokenizer, PASSAGES)
    all_heads = list(range(model.config.num_heads))

    baseline = share_filled(model, passages, {})
    one_zeroed = {
        stack: [share_filled(model, passages, {stack: [head]}) for head in all_heads]
        for stack in ("encoder", "decoder")
    }
    no_encoder = share_filled(model, passages, {"encoder": all_heads})
    no_decoder = share_filled(model, passages, {"decoder": all_heads})
    near = {stack: near_by_bias_alone(model, stack) for stack in ("encoder", "decoder")}

    figure = new_figure(12, 7)
    panels = figure.subplots(2, 2, width_ratios=[1.8, 1])
    for (left, right), stack in zip(panels, ("encoder", "decoder"), strict=True):
        draw_relative_bias(relative_bias_curves(model, stack), f"{stack}: relative position bias", axes=left)
        right.bar(range(len(all_heads)), one_zeroed[stack], color=[f"C{head}" for head in all_heads])
        right.axhline(baseline, color="black", lw=1, ls=":")
        right.set_xticks(range(len(all_heads)), [f"head {head}" for head in all_heads])
        right.set_ylim(0, 1)
        right.set_title("gaps filled with this head's bias zeroed (dotted: with all)", fontsize=9)
    save_figure(figure, options.out)

    nearest = int(near["encoder"].argmax())
    worst = int(torch.tensor(one_zeroed["encoder"]).argmin())
    others = [f"{float(value):.0%}" for head, value in enumerate(near["encoder"]) if head != nearest]
    print(f"picture    {options.out}\n")
    print(
        f"By distance alone, head {nearest} of each block of the encoder would give"
        f" {float(near['encoder'][nearest]):.0%} of its attention to the {2 * NEAR + 1} nearest of 121 tokens"
        f" (uniform: {(2 * NEAR + 1) / 121:.0%}), the others {', '.join(others)}: some heads are local."
    )
    print(
        f"t5-mini fills {baseline:.0%} of {2 * PASSAGES} gaps correctly, {no_encoder:.0%} with the encoder's"
        f" bias set to zero, and {no_decoder:.0%} with the decoder's: without word order a passage carries"
        " little information."
    )
    print(
        f"The bias of the encoder's head {worst} matters most: without it {one_zeroed['encoder'][worst]:.0%}"
        " are filled, without that of any other head at least"
        f" {min(value for head, value in enumerate(one_zeroed['encoder']) if head != worst):.0%}; all three"
        " blocks of a stack share one table, so each change affects three heads."
    )


if __name__ == "__main__":
    main()
