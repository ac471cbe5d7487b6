"""Head ablation: by 0 and by the mean, as a hook by hand does it."""

import pytest
import torch

from ftcore.analysis.heads import draw_ablation, head_ablation
from ftcore.analysis.inputs import logits_of
from ftcore.study import patch, record
from tests.helpers.oracle import padding
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny, untouched

PARTS = {"gpt2": {"decoder": 3}, "t5": {"encoder": 2, "decoder": 3, "cross": 3}}


def metric(logits):
    return logits[:, -1].square().mean(-1)  # (B)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mean", [False, True])
@torch.no_grad()
def test_a_head_is_replaced_and_nothing_else(family, mean):
    model = tiny(family).double()
    inputs = random_inputs(family, rows=3)
    inputs["attention_mask"] = mask = padding(1, 3, inputs["input_ids"].shape[1], "left")
    changes = head_ablation(model, inputs, metric, mean=mean, progress=False)
    before = metric(logits_of(model, inputs))
    assert {part: change.shape for part, change in changes.items()} == {
        part: (blocks, 3, 3) for part, blocks in PARTS[family].items()
    }
    for part, change in changes.items():
        prefix = "" if family == "gpt2" else f"{part}."
        for block, head in ((0, 0), (1, 2)):
            with record(model, f"{prefix}z.{block}") as acts:
                model(**inputs)
            mixed = acts[f"{prefix}z.{block}"].unflatten(-1, (3, -1))
            real = mask.bool() if part == "encoder" or family == "gpt2" else torch.ones(3, 7).bool()
            replacement = mixed[real].mean(0)[head] if mean else torch.zeros(1, dtype=torch.float64)

            def without(z, head=head, replacement=replacement):
                parted = z.unflatten(-1, (3, -1)).clone()
                parted[:, :, head] = replacement
                return parted.flatten(-2)

            with patch(model, f"{prefix}z.{block}", without):
                want = metric(model(**inputs)) - before
            torch.testing.assert_close(change[block, head], want, rtol=1e-10, atol=1e-12)
            assert want.abs().max() > 1e-6
    assert untouched(model)


def test_a_head_that_writes_nothing_is_not_missed():
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[8:16] = 0  # the rows of head 1
    changes = head_ablation(model, random_inputs("gpt2"), metric, progress=False)["decoder"]
    assert torch.equal(changes[1, 1], torch.zeros(2))
    assert (changes[1, [0, 2]] != 0).all()


def test_a_field_for_each_part():
    pytest.importorskip("matplotlib")
    changes = head_ablation(tiny("t5"), random_inputs("t5"), metric, progress=False)
    figure = draw_ablation(changes)
    assert [axes.get_title() for axes in figure.axes] == ["encoder", "decoder", "cross"]
    assert [len(axes.texts) for axes in figure.axes] == [6, 9, 9]
