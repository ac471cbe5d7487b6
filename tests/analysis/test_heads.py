"""Head scores of known attention and known circuits; ablation against hooks by hand."""

import pytest
import torch

from ftcore.analysis.figures import draw_heads
from ftcore.analysis.heads import (
    copy_scores,
    draw_ablation,
    duplicate_token_scores,
    head_ablation,
    induction_scores,
    prefix_matching_scores,
    previous_token_scores,
    repeated_tokens,
)
from ftcore.analysis.inputs import logits_of
from ftcore.lora.lora import add_lora
from ftcore.study import patch, record
from tests.helpers.oracle import padding
from tests.helpers.tiny_models import FAMILIES, has_no_hooks, random_inputs, tiny


def one_hot_attention(keys: list[list[int]]) -> torch.Tensor:
    """(1, B, 1, T, T): all attention of each query on one key."""
    index = torch.tensor(keys)  # (B, T)
    return torch.nn.functional.one_hot(index, index.shape[1]).float()[None, :, None]


def test_repeated_tokens():
    ids = repeated_tokens(50, rows=4, length=6, repeats=3, seed=1)
    assert ids.shape == (4, 18)
    assert torch.equal(ids[:, :6], ids[:, 6:12]) and torch.equal(ids[:, :6], ids[:, 12:])
    assert all(len(set(row[:6].tolist())) == 6 for row in ids)
    assert not torch.equal(ids[0], ids[1])


def test_ideal_heads_have_score_one():
    ids = torch.tensor([[5, 6, 7, 5, 6, 7], [8, 9, 8, 9, 3, 4]])
    induction = one_hot_attention([[0, 0, 0, 1, 2, 3], [0, 0, 1, 2, 0, 0]])
    duplicate = one_hot_attention([[0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 0, 0]])
    previous = one_hot_attention([[0, 0, 1, 2, 3, 4], [0, 0, 1, 2, 3, 4]])
    maps = torch.cat([induction, duplicate, previous], 2)  # three heads of a block
    assert prefix_matching_scores(maps, ids).tolist() == [
        [1.0, 0.0, pytest.approx(2 / 5)]
    ]  # for alternating tokens, the previous-token head scores too
    assert duplicate_token_scores(maps, ids).tolist() == [[0.0, 1.0, 0.0]]
    assert previous_token_scores(maps)[0, 2] == 1
    assert (previous_token_scores(maps)[0, :2] < 1).all()


def test_scores_count_all_earlier_occurrences():
    ids = torch.tensor([[5, 6, 5, 7, 5, 5]])
    maps = torch.full((1, 1, 1, 6, 6), 1 / 6)
    # Positions 1, 3 and 5 follow a 5. Position 2 can attend to 1, 4 to 1 and 3, 5 to all of them.
    assert prefix_matching_scores(maps, ids).item() == pytest.approx((1 + 2 + 3) / 6 / 3)
    assert duplicate_token_scores(maps, ids).item() == pytest.approx((1 + 2 + 3) / 6 / 3)


def test_induction_scores_are_between_0_and_1():
    scores = induction_scores(tiny("gpt2"), rows=2, length=10)
    assert scores.shape == (3, 3)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_copy_scores_equal_eigenvalues_of_the_full_circuit(family):
    """Brute force: the (V, V) matrix of the contributions of each token to the logits."""
    model = tiny(family, tie_word_embeddings=False).double()
    scores = copy_scores(model)
    assert list(scores) == (["decoder"] if family == "gpt2" else ["decoder", "cross"])
    for part, by_block in scores.items():
        assert by_block.shape == (3, 3)
        for block in range(3):
            for head in range(3):
                circuit = full_circuit(model, part, block, head)  # (V, V)
                eigenvalues = torch.linalg.eigvals(circuit)
                want = eigenvalues.real.sum() / eigenvalues.abs().sum()
                assert by_block[block, head].item() == pytest.approx(want.item(), abs=1e-6)


def full_circuit(model, part, block, head):
    if part == "decoder" and hasattr(model, "transformer"):
        layer, final = model.transformer.h[block], model.transformer.ln_f.weight
        embedding = model.transformer.wte.weight
        embedding = (embedding - embedding.mean(-1, keepdim=True)) * layer.ln_1.weight
        own = slice(8 * head, 8 * head + 8)
        wrote = embedding @ layer.attn.c_attn.weight[:, 48:][:, own] @ layer.attn.c_proj.weight[own]
        wrote = wrote - wrote.mean(-1, keepdim=True)
    else:
        layer, final = model.decoder.block[block].layer, model.decoder.final_layer_norm.weight
        attention = layer[0].SelfAttention if part == "decoder" else layer[1].EncDecAttention
        norm = layer[0].layer_norm if part == "decoder" else model.encoder.final_layer_norm
        own = slice(4 * head, 4 * head + 4)
        wrote = model.shared.weight * norm.weight @ attention.v.weight[own].T @ attention.o.weight[:, own].T
    return (wrote * final) @ model.lm_head.weight.T


@torch.no_grad()
def test_copy_scores_of_identity_and_its_negative():
    model = tiny("gpt2", n_head=1)
    attention = model.transformer.h[1].attn
    attention.c_attn.weight[:, 48:] = torch.eye(24)
    attention.c_proj.weight.copy_(torch.eye(24))
    model.transformer.ln_f.weight.fill_(1.0)
    model.transformer.h[1].ln_1.weight.fill_(1.0)
    assert copy_scores(model)["decoder"][1, 0] == pytest.approx(1.0)
    attention.c_proj.weight.neg_()
    assert copy_scores(model)["decoder"][1, 0] == pytest.approx(-1.0)


def test_a_model_with_lora_is_refused():
    model = tiny("gpt2")
    add_lora(model)
    with pytest.raises(ValueError, match="merge_lora"):
        copy_scores(model)


def test_draw_heads():
    pytest.importorskip("matplotlib")
    figure = draw_heads(copy_scores(tiny("t5")), "copying", signed=True)
    assert [len(axes.texts) for axes in figure.axes] == [9, 9]


# -------------------------------------------------------------------------------------------- ablation

PARTS = {"gpt2": {"decoder": 3}, "t5": {"encoder": 2, "decoder": 3, "cross": 3}}


def metric(logits):
    return logits[:, -1].square().mean(-1)  # (B)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mean", [False, True])
@torch.no_grad()
def test_ablation_equals_a_patch_by_hand(family, mean):
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
    assert has_no_hooks(model)


def test_ablation_of_a_head_without_output():
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[8:16] = 0  # the rows of head 1
    changes = head_ablation(model, random_inputs("gpt2"), metric, progress=False)["decoder"]
    assert torch.equal(changes[1, 1], torch.zeros(2))
    assert (changes[1, [0, 2]] != 0).all()


def test_draw_ablation():
    pytest.importorskip("matplotlib")
    changes = head_ablation(tiny("t5"), random_inputs("t5"), metric, progress=False)
    figure = draw_ablation(changes)
    assert [axes.get_title() for axes in figure.axes] == ["encoder", "decoder", "cross"]
    assert [len(axes.texts) for axes in figure.axes] == [6, 9, 9]
