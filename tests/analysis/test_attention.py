"""Attention maps, hidden states and relative position bias equal those of transformers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from ftcore.analysis.attention import (
    attention_maps,
    attention_while_generating,
    draw_attention,
    draw_relative_bias,
    hidden_states,
    relative_bias_curves,
)
from ftcore.decoding import generate
from tests.helpers.oracle import (
    BOUND,
    error,
    gpt2_pair,
    gpt2_settings,
    padding,
    positions,
    seeds,
    sides,
    t5_pair,
    t5_settings,
    tokens,
)
from tests.helpers.tiny_models import FAMILIES, GPT2, T5, has_no_hooks, random_inputs, tiny

EVERYTHING = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
LIMIT = BOUND[torch.float32]


@settings(deadline=None, max_examples=5)
@given(drawn=gpt2_settings, seed=seeds, side=sides)
@torch.no_grad()
def test_gpt2_maps_and_states_equal_transformers(drawn, seed, side):
    reference, model = gpt2_pair(drawn, seed)
    ids, mask = tokens(seed, 3, 9), padding(seed, 3, 9, side)
    want = reference(input_ids=ids, attention_mask=mask, position_ids=positions(mask), **EVERYTHING)
    inputs, real = {"input_ids": ids, "attention_mask": mask}, mask.bool()
    maps, states = attention_maps(model, inputs), hidden_states(model, inputs)
    assert list(maps) == list(states) == ["decoder"]
    theirs = torch.stack(want.attentions).transpose(2, 3)
    assert error(maps["decoder"].transpose(2, 3)[:, real], theirs[:, real]) < LIMIT
    assert len(states["decoder"]) == len(want.hidden_states)
    for ours, theirs in zip(states["decoder"], want.hidden_states, strict=True):
        assert error(ours[real], theirs[real]) < LIMIT


@settings(deadline=None, max_examples=5)
@given(drawn=t5_settings, seed=seeds, side=sides)
@torch.no_grad()
def test_t5_maps_and_states_equal_transformers(drawn, seed, side):
    reference, model = t5_pair(drawn, seed)
    source, mask, target = tokens(seed, 3, 9), padding(seed, 3, 9, side), tokens(seed + 1, 3, 7)
    inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
    want = reference(**inputs, **EVERYTHING)
    maps, states = attention_maps(model, inputs), hidden_states(model, inputs)
    real = {"encoder": mask.bool(), "decoder": torch.ones_like(target).bool()}
    real["cross"] = real["decoder"]
    expected = {
        "encoder": want.encoder_attentions,
        "decoder": want.decoder_attentions,
        "cross": want.cross_attentions,
    }
    assert list(maps) == list(expected)
    for part, theirs in expected.items():
        theirs = torch.stack(theirs).transpose(2, 3)
        assert error(maps[part].transpose(2, 3)[:, real[part]], theirs[:, real[part]]) < LIMIT, part
    for stack, theirs in (("encoder", want.encoder_hidden_states), ("decoder", want.decoder_hidden_states)):
        for got, expected_state in zip(states[stack], theirs, strict=True):
            assert error(got[real[stack]], expected_state[real[stack]]) < LIMIT, stack


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_maps_of_generation_equal_transformers(family, beams):
    settings = {"tie_word_embeddings": False}  # with a tied head, random models repeat one token
    equal_depths = T5 | {"num_layers": 3}  # the reference's cache requires them
    reference, model = (
        gpt2_pair(GPT2 | settings, 4) if family == "gpt2" else t5_pair(equal_depths | settings, 4)
    )
    ids = tokens(4, 2, 5)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "pad_token_id": 0}
    theirs = reference.generate(
        ids, **options, do_sample=False, use_cache=True, output_attentions=True, return_dict_in_generate=True
    )
    answers, maps = attention_while_generating(model, ids, **options)
    assert torch.equal(answers, theirs.sequences)
    kinds = {"decoder": "attentions"}
    if family == "t5":
        kinds = {"decoder": "decoder_attentions", "cross": "cross_attentions"}
    prompt = 5 if family == "gpt2" else 1
    for part, attribute in kinds.items():
        for layer in range(3):
            ours = maps[part][layer]
            for step, by_layer in enumerate(getattr(theirs, attribute)):
                want = by_layer[layer]  # (rows, H, 1 or the prompt, S so far)
                if beams > 1 and step:
                    break  # from here on, its rows are unordered beams: see the next test
                rows = slice(step + prompt - want.shape[2], step + prompt)
                assert error(ours[:, :, rows, : want.shape[-1]], want[::beams]) < LIMIT, (part, layer, step)


def test_maps_of_generation_leave_out_the_padding_of_a_decoder_prefix():
    model, ids = tiny("t5"), tokens(0, 2, 6)
    prefix, mask = torch.tensor([[0, 0, 0, 5], [0, 7, 8, 9]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"max_new_tokens": 5, "eos_token_id": None}
    answers, maps = attention_while_generating(
        model, ids, decoder_input_ids=prefix, decoder_attention_mask=mask, **options
    )
    alone = attention_maps(model, {"input_ids": ids[:1], "decoder_input_ids": answers[:1, 2:-1]})
    for part in ("decoder", "cross"):
        got = maps[part][:, 0, :, 2:]
        got = got[..., 2:] if part == "decoder" else got
        torch.testing.assert_close(got, alone[part][:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_generation_equal_a_pass_over_each_answer(family):
    model, ids, mask = tiny(family), tokens(0, 2, 6), padding(3, 2, 6, "left")
    options = {
        "max_new_tokens": 5,
        "num_beams": 4,
        "num_return_sequences": 3,
        "eos_token_id": list(range(30)),
    }
    answers, maps = attention_while_generating(model, ids, mask, pad_token_id=0, **options)
    assert torch.equal(answers, generate(model, ids, mask, pad_token_id=0, **options))
    for row, answer in enumerate(answers):
        source, real = ids[row // 3], mask[row // 3].bool()
        if family == "gpt2":
            alone = {"input_ids": answer[None, :-1][:, F.pad(real, (0, len(answer) - 7), value=True)]}
        else:
            alone = {"input_ids": source[real][None], "decoder_input_ids": answer[None, :-1]}
        for part, want in attention_maps(model, alone).items():
            _, length, width = want.shape[2:]
            got = maps[part][:, row, :, -length:]
            keys = F.pad(real, (0, got.shape[-1] - len(real)), value=True)
            if part == "encoder":
                got = maps[part][:, row][:, :, real]
            elif part == "decoder" and family == "t5":
                keys = torch.ones(width, dtype=torch.bool)
            torch.testing.assert_close(got[..., keys], want[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_is_restored(family):
    model = tiny(family).train()
    maps = attention_maps(model, random_inputs(family))
    assert torch.equal(maps["decoder"], attention_maps(model, random_inputs(family))["decoder"])  # no dropout
    assert not any(tensor.requires_grad for tensor in maps.values())
    assert has_no_hooks(model) and all(module.training for module in model.modules())
    with pytest.raises(ValueError):
        attention_maps(model, {**random_inputs(family), "attention_mask": torch.ones(2, 3)})
    assert has_no_hooks(model) and all(module.training for module in model.modules())


def test_draw_attention_with_special_characters():
    pytest.importorskip("matplotlib")
    inputs = random_inputs("t5")
    maps = attention_maps(tiny("t5"), inputs)["cross"][:, 0]
    keys = ["<script>", "$x_", "שלום", "👩‍🚀", "\n", "", "a" * 50, "\\frac", "%"]
    figure = draw_attention(maps, [str(n) for n in range(7)], keys, "cross")
    assert len(figure.axes) == 9
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == keys
    figure.canvas.draw()


@pytest.mark.parametrize(("blocks", "heads", "columns"), [(1, 4, 2), (1, 3, 1), (2, 4, 4)])
def test_wide_heads_of_one_block_wrap(blocks, heads, columns):
    pytest.importorskip("matplotlib")
    maps, labels = torch.rand(blocks, heads, 3, 40), [str(n) for n in range(40)]
    figure = draw_attention(maps, labels[:3], labels)
    assert len(figure.axes) == blocks * heads
    assert figure.axes[0].get_gridspec().ncols == columns
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[-1] == (f"head {heads - 1}" if blocks == 1 else f"block {blocks - 1}, head {heads - 1}")


# ------------------------------------------------------------------------------------- relative position bias

STACKS = ("encoder", "decoder")


@pytest.mark.parametrize("stack", STACKS)
@settings(deadline=None, max_examples=5)
@given(drawn=t5_settings, seed=seeds)
@torch.no_grad()
def test_relative_bias_equals_transformers(stack, drawn, seed):
    reference, model = t5_pair(drawn, seed)
    curves = relative_bias_curves(model, stack, reach=150)
    attention = getattr(reference, stack).block[0].layer[0].SelfAttention
    theirs = attention.compute_bias(151, 151)[0]  # (H, T, S)
    bias = torch.cat([theirs[:, 150, :], theirs[:, 0, 1:]], 1)  # distances -150 ... 0, 1 ... 150
    assert curves.distances.tolist() == list(range(-150, 151 if stack == "encoder" else 1))
    assert torch.equal(curves.biases[0], bias[:, : len(curves.distances)])


@pytest.mark.parametrize("stack", STACKS)
def test_edges_are_where_the_bucket_changes(stack):
    curves = relative_bias_curves(tiny("t5"), stack)
    starts = [
        distance
        for distance, bucket, before in zip(
            curves.distances[1:].tolist(), curves.buckets[1:].tolist(), curves.buckets.tolist(), strict=False
        )
        if bucket != before
    ]
    assert curves.edges == starts
    assert len(starts) == 32 - 1 - (
        stack == "encoder"
    )  # the encoder has two buckets for distance 0, one unused
    assert curves.distances[0] == -136


def test_umt5_has_a_table_for_each_block():
    drawn = {"model_type": "umt5", "d_model": 24, "d_kv": 8, "num_layers": 3, "num_heads": 2}
    _, model = t5_pair(drawn, 0)
    curves = relative_bias_curves(model, "encoder")
    assert curves.biases.shape[:2] == (3, 2)
    assert not torch.equal(curves.biases[0], curves.biases[1])


def test_draw_relative_bias():
    pytest.importorskip("matplotlib")
    figure = draw_relative_bias(relative_bias_curves(tiny("t5"), "decoder"))
    assert len(figure.axes[0].lines) == 31 + 3
    figure.canvas.draw()
