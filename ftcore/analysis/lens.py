"""The logit lens as a picture; the lens itself is ftcore.study.logit_lens."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ftcore.analysis.figures import Figure, draw_matrix, new_figure


def draw_lens(lens: Tensor, tokens: Sequence[str], name: Callable[[int], str]) -> Figure:
    """For each block and position the likeliest next token and, as the colour, its probability.

    Args:
        lens: (blocks, T, V), one text's: `logit_lens(model, input_ids)[:, 0]`.
        tokens: the T tokens that are read.
        name: the text of a token, such as `lambda token: tokenizer.decode([token], False)`.
    """
    probability, best = lens.softmax(-1).max(-1)  # (blocks, T)
    figure = new_figure(1.2 + 0.62 * len(tokens), 1.3 + 0.32 * len(lens))
    axes = figure.subplots()
    draw_matrix(
        axes,
        probability,
        rows=[f"after block {block}" for block in range(len(lens))],
        columns=tokens,
        texts=[[name(token) for token in line] for line in best.tolist()],
        high=1.0,
    )
    return figure
