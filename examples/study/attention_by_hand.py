"""The attention of three tokens, with vectors of two numbers, as a picture.

    python examples/study/attention_by_hand.py

docs/from_zero_to_t5.md computes the same numbers with a pencil.
"""

import argparse

import torch
from torch import Tensor

from ftcore.analysis.figures import draw_matrix
from ftcore.figures import Axes, new_figure, save_figure
from ftcore.models.attention import AttentionDropout, Softmax, attend

TOKENS = ["Ada", "plays", "chess"]
COLORS = ["#1f77b4", "#7f7f7f", "#d1661f"]
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (T, D)
WQ = torch.tensor([[0.0, 1.0], [2.0, 0.0]])  # (D, K)
WK = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
WV = torch.tensor([[1.0, 2.0], [3.0, 0.0]])


def by_hand(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (T, K) -> scores and weights, (T, T), and outputs, (T, K)."""
    scores = query @ key.T / key.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return scores, weights, weights @ value


def draw_query(axes: Axes, query: Tensor, key: Tensor) -> None:
    """The query of the last token, and the keys that it meets."""
    products = (key @ query[-1]).tolist()
    names = [f"key of {name}: {product:.0f}" for name, product in zip(TOKENS, products, strict=True)]
    arrows = zip([*names, "query of chess"], [*COLORS, "black"], [*key, query[-1]], strict=True)
    for name, color, vector in arrows:
        axes.annotate(
            "", vector.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8}
        )
        label(axes, name, vector.tolist(), (0, 6), color)
    axes.set(xlim=(-0.4, 2.6), ylim=(-0.2, 1.4), xticks=range(3), yticks=range(2))
    axes.set_title("the product of the query with each key", fontsize=9)


def label(axes: Axes, text: str, point: list[float], offset: tuple[float, float], color: str) -> None:
    """Write `text` at `offset`, in points, from a point."""
    axes.annotate(text, point, offset, textcoords="offset points", color=color, fontsize=8, ha="center")


def draw_mixture(axes: Axes, weights: Tensor, value: Tensor, outputs: Tensor) -> None:
    """The triangle of the values, the outputs in it, and the shares of the last output as widths of lines."""
    axes.fill(*value.T.tolist(), color="0.93", zorder=0)
    rows = zip(TOKENS, COLORS, value, outputs, weights[-1].tolist(), strict=True)
    for name, color, corner, output, share in rows:
        axes.plot(*torch.stack([corner, outputs[-1]]).T.tolist(), color=color, lw=9 * share, alpha=0.35)
        axes.plot(*corner.tolist(), "s", color=color, markersize=8)
        label(axes, f"value of {name}", corner.tolist(), (0, 10), color)
        axes.plot(*output.tolist(), "o", color=color, markersize=6)
        label(axes, "output", output.tolist(), (-22, -12), color)
    axes.set(xlim=(0.3, 4.7), ylim=(-0.3, 2.5), xticks=range(1, 5), yticks=range(3))
    axes.set_title("the mixture of the values", fontsize=9)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The attention of three tokens as a picture.")
    parser.add_argument("--out", default="runs/studies/attention_by_hand.png")
    options = parser.parse_args(arguments)

    query, key, value = VECTORS @ WQ, VECTORS @ WK, VECTORS @ WV
    scores, weights, outputs = by_hand(query, key, value)
    heads = (states[None, None] for states in (query, key, value))  # (B, H, T, K)
    expected = attend(*heads, scale=2**-0.5, softmax=Softmax(), dropout=AttentionDropout(0.0))
    torch.testing.assert_close(outputs, expected[0, 0])

    figure = new_figure(12, 3.4)
    left, middle, right = figure.subplots(1, 3)
    draw_query(left, query, key)
    texts = [[f"{weight:.2f}" for weight in row] for row in weights.tolist()]
    draw_matrix(middle, weights, rows=TOKENS, columns=TOKENS, texts=texts, high=1.0, bar=False)
    middle.set(xlabel="key", ylabel="query")
    middle.set_title("the weights: the sum of each row is 1", fontsize=9)
    draw_mixture(right, weights, value, outputs)
    save_figure(figure, options.out)

    print(f"picture    {options.out}\n")
    shares = ", ".join(f"{share:.2f} of {name}" for share, name in zip(weights[-1], TOKENS, strict=True))
    listed = ", ".join(f"{score:.2f}" for score in scores[-1])
    print(f"The scores of chess are {listed}: products of query and key, divided by 1.41.")
    print(f"Its output, ({outputs[-1, 0]:.2f}, {outputs[-1, 1]:.2f}), mixes {shares}.")
    listed = ", ".join(f"{weight:.2f}" for weight in (query @ key.T).softmax(-1)[-1])
    print(f"Without the division, as in T5, its weights would be {listed}.")


if __name__ == "__main__":
    main()
