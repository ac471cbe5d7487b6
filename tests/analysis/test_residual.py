"""Residual norms, and the logit lens as a figure."""

import pytest
import torch

from ftcore.analysis.residual import draw_lens, draw_residual_norms, residual_norms
from ftcore.study import logit_lens, record
from tests.helpers.oracle import BOUND, error
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_norms(family):
    model, inputs = tiny(family), random_inputs(family)
    norms = residual_norms(model, inputs)
    stacks = (
        {"decoder": ("", 3)} if family == "gpt2" else {"encoder": ("encoder.", 2), "decoder": ("decoder.", 3)}
    )
    assert list(norms) == list(stacks)
    for stack, (prefix, blocks) in stacks.items():
        with torch.no_grad(), record(model, f"{prefix}resid_pre.*", f"{prefix}resid_post.*") as acts:
            model(**inputs)
        names = [
            *(f"{prefix}resid_pre.{block}" for block in range(blocks)),
            f"{prefix}resid_post.{blocks - 1}",
        ]
        want = torch.stack([acts[name].square().sum(-1).sqrt() for name in names])
        assert error(norms[stack], want) < BOUND[torch.float32]


def test_draw_residual_norms():
    pytest.importorskip("matplotlib")
    figure = draw_residual_norms(residual_norms(tiny("t5"), random_inputs("t5")))
    assert len(figure.axes) == 2
    figure.canvas.draw()


def test_draw_lens_writes_the_most_likely_tokens():
    pytest.importorskip("matplotlib")
    ids = random_inputs("gpt2")["input_ids"]
    lens = logit_lens(tiny("gpt2"), ids)
    figure = draw_lens(lens[:, 0], [f"${token}_" for token in ids[0].tolist()], str)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [str(token) for token in lens[:, 0].argmax(-1).flatten().tolist()]
    figure.canvas.draw()
