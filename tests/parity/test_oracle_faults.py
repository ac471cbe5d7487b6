"""Bugs and surprises of transformers 5.23.0: what it does, what ftcore does, and why.

Each test pins a behavior of transformers. If a version changes it, remove the test and the workarounds for
it in ftcore, its tests and its docs.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import load_model
from ftcore.decoding import generate
from ftcore.models import KVCache, T5Config, T5ForConditionalGeneration
from ftcore.training.loss import batch_loss
from ftcore.training.optim import adamw
from tests.helpers.oracle import VOCAB, error, gpt2_pair, positions, t5_pair, tokens

T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3}
T5["dropout_rate"] = 0.0
GPT2 = {"n_embd": 24, "n_head": 3, "n_layer": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
START, EOS, PAD = 0, 1, 0
PAIRS = {"t5": lambda **more: t5_pair(T5 | more, 0), "gpt2": lambda **more: gpt2_pair(GPT2 | more, 0)}
families = pytest.mark.parametrize("family", PAIRS)


def batch(family: str, rows: int = 2, length: int = 6) -> dict[str, Tensor]:
    ids = tokens(0, rows, length)
    labels = tokens(1, rows, length) if family == "t5" else ids.clone()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


# ----------------------------------------------------------------------------------------------------- cache


def test_t5_generate_sizes_its_cache_by_the_encoder():
    """Theirs: `generate` sizes the decoder's cache by `num_layers`, so a deeper decoder raises IndexError
    unless use_cache=False. The forward pass alone works.
    Ours: the cache grows with the layers that use it.
    """
    reference, model = t5_pair(T5 | {"num_layers": 1, "num_decoder_layers": 3}, 0)
    source, target = tokens(0, 2, 5), tokens(1, 2, 4)
    with pytest.raises(IndexError):
        reference.generate(source, use_cache=True, max_new_tokens=5)
    want = reference.generate(source, use_cache=False, max_new_tokens=5)
    assert torch.equal(generate(model, source, max_new_tokens=5), want)
    with torch.no_grad():
        want = reference(input_ids=source, decoder_input_ids=target, use_cache=True).logits
        assert error(model(source, None, target, cache=KVCache(4)), want) < 1e-5


# -------------------------------------------------------------------------------------------------- training


def test_the_trainer_multiplies_t5_gradients_by_the_accumulation_steps(tmp_path):
    """Theirs: the Trainer assumes that a forward with **kwargs divides its loss by `num_items_in_batch`,
    the target tokens of all micro-batches. GPT-2 does. T5 ignores it, so each micro-batch's loss is its own
    mean, and the gradient is too large by the number of micro-batches.
    Ours: the sum over all micro-batches divided by their target tokens, for both families.
    """
    for family, too_large in (("t5", 4), ("gpt2", 1)):
        examples = batch(family, rows=8)
        examples["labels"][:, 0] = -100  # see the next test
        for steps, times in ((1, 1), (4, too_large)):
            ours = own_gradient_norm(family, examples, steps)
            assert trainers_gradient_norm(family, examples, steps, tmp_path) == pytest.approx(times * ours), (
                family
            )


def test_the_trainer_counts_a_gpt2_label_that_is_not_predicted(tmp_path):
    """Theirs: the loss sums over labels 2 to T of each row and divides by the number of labels 1 to T. The
    Trainer excludes the first label only for class names that it knows, which GPT2LMHeadModel is not.
    Ours: divided by the number of predicted tokens.
    """
    examples = batch("gpt2", rows=8, length=6)
    theirs = trainers_gradient_norm("gpt2", examples, 1, tmp_path)
    assert theirs == pytest.approx(5 / 6 * own_gradient_norm("gpt2", examples, 1))


def trainers_gradient_norm(family: str, examples: dict[str, Tensor], steps: int, directory: Path) -> float:
    """Gradient norm of one optimizer step over 8 examples in `steps` micro-batches."""
    pytest.importorskip("accelerate")
    reference, _ = PAIRS[family]()
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=8 // steps,
        gradient_accumulation_steps=steps,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{name: values[row] for name, values in examples.items()} for row in range(8)]
    trainer = transformers.Trainer(reference, arguments, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"]


def own_gradient_norm(family: str, examples: dict[str, Tensor], steps: int) -> float:
    _, model = PAIRS[family]()
    losses = [
        batch_loss(model, {name: values[start::steps] for name, values in examples.items()})
        for start in range(steps)
    ]
    for loss in losses:
        (loss.total / sum(loss.tokens for loss in losses)).backward()
    return nn.utils.get_total_norm([weight.grad for weight in model.parameters()]).item()


def test_the_trainer_does_not_decay_t5_position_bias_tables(tmp_path):
    """Theirs: no weight decay for names with "bias", so none for T5's `relative_attention_bias.weight`, an
    embedding.
    Ours: matrices decay, vectors do not.
    """
    pytest.importorskip("accelerate")
    reference, model = PAIRS["t5"]()
    trainer = transformers.Trainer(
        reference, transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    )
    decayed = set(trainer.get_decay_parameter_names(reference))
    named = dict(reference.named_parameters(remove_duplicate=False))
    matrices = {name for name, weight in named.items() if weight.dim() > 1}
    tables = {name for name in matrices if "relative_attention_bias" in name}
    assert decayed == matrices - tables
    assert len(tables) == 2
    decays, _ = adamw(model, lr=1.0, weight_decay=0.1).param_groups
    assert {id(weight) for weight in decays["params"]} == {id(model.get_parameter(name)) for name in matrices}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@families
def test_dtype_of_the_loss(family, dtype):
    """Theirs: T5's loss has the dtype of its weights (three digits in bfloat16); GPT-2's is always float32,
    even of a float64 model.
    Ours: at least float32, and float64 for a float64 model.
    """
    reference, model = (side.to(dtype) for side in PAIRS[family]())
    theirs = reference(**batch(family)).loss.dtype
    assert theirs == (dtype if family == "t5" else torch.float32)
    assert batch_loss(model, batch(family)).total.dtype == torch.promote_types(dtype, torch.float32)


def test_gpt2_loss_includes_a_prediction_from_padding():
    """Theirs: under left padding the loss includes the first token, predicted from the padding before it.
    Ours: excluded.
    """
    reference, model = PAIRS["gpt2"]()
    ids, mask = tokens(0, 2, 8), torch.tensor([[1] * 8, [0] * 3 + [1] * 5])
    labels = ids.masked_fill(mask == 0, -100)
    excluded = labels.clone()
    excluded[1, 3] = -100
    options = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    theirs, without = (reference(labels=wanted, **options).loss.item() for wanted in (labels, excluded))
    assert abs(theirs - without) > 1e-2
    total, _, count = batch_loss(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    assert total.item() / count == pytest.approx(without, rel=1e-5)


# -------------------------------------------------------------------------------------------------- decoding


def test_t5_beams_are_padded_with_eos_if_the_pad_id_is_0():
    """Theirs: finished beams are filled with `pad_token_id or eos_token_id`, and T5's pad id, 0, is falsy.
    Greedy search and models with another pad id use pad.
    Ours: always pad.
    """
    reference, model = t5_pair(T5 | {"tie_word_embeddings": False}, 0)
    ids = tokens(0, 6, 5)
    ends = [EOS, *range(5, 40)]
    options = {"eos_token_id": ends, "max_new_tokens": 12, "use_cache": True}
    for beams, pad, filler in ((1, 0, 0), (3, 0, EOS), (3, 3, 3)):
        more = {"num_beams": beams, "pad_token_id": pad}
        theirs = reference.generate(ids, **options | more)
        ours = generate(model, ids, eos_token_id=ends, max_new_tokens=12, **more)
        after = torch.isin(ours[:, 1:], torch.tensor(ends)).cumsum(1).roll(1, 1) > 0
        after[:, 0] = False
        assert after.any()
        assert set(theirs[:, 1:][after].tolist()) == {filler}
        assert set(ours[:, 1:][after].tolist()) == {pad}
        assert torch.equal(theirs[:, 1:][~after], ours[:, 1:][~after])


def test_gpt2_forward_counts_left_padding_as_positions():
    """Theirs: only `generate` derives positions from the mask; the forward pass counts padding too.
    Ours: positions always come from the mask.
    """
    reference, model = PAIRS["gpt2"]()
    ids, mask = tokens(0, 1, 10), torch.tensor([[0] * 4 + [1] * 6])
    alone = model(ids[:, 4:])
    assert error(reference(input_ids=ids, attention_mask=mask).logits[:, 4:], alone) > 1e-2
    assert error(model(ids, mask)[:, 4:], alone) < 1e-5
    want = reference(input_ids=ids, attention_mask=mask, position_ids=positions(mask)).logits
    assert error(want[:, 4:], alone) < 1e-5


# ------------------------------------------------------------------------------------------------- precision


def test_t5_norm_rounds_to_float32_in_a_float64_model():
    """Theirs: the mean of squares is always float32, which limits float64 models to 7 digits.
    Ours: at least float32.
    """
    reference, model = (side.double() for side in PAIRS["t5"]())
    hidden = torch.randn(3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs, ours = (side.get_submodule("encoder.final_layer_norm") for side in (reference, model))
    exact = ours.weight * hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert error(theirs(hidden), exact) > 1e-10
    assert error(ours(hidden), exact) < 1e-15


def test_upcast_attention_refuses_float64():
    """Theirs: `reorder_and_upcast_attn` requires float32 scores and raises if a mask makes them float64.
    Ours: scores are at least float32, with or without the switch.
    """
    reference, model = (side.double() for side in PAIRS["gpt2"](reorder_and_upcast_attn=True))
    ids = tokens(0, 2, 6)
    with pytest.raises(RuntimeError, match="does not have dtype"):
        reference(input_ids=ids, attention_mask=torch.tensor([[0] + [1] * 5, [1] * 6]))
    assert model(ids).dtype == torch.float64


@families
def test_from_pretrained_keeps_the_dtype_of_the_file(family, tmp_path):
    """Theirs: a checkpoint saved in bfloat16 loads as a bfloat16 model, which trains badly.
    Ours: float32 by default; dtype=None keeps the file's.
    """
    reference, _ = PAIRS[family]()
    reference.bfloat16().save_pretrained(tmp_path)
    assert type(reference).from_pretrained(tmp_path).dtype == torch.bfloat16
    assert load_model(tmp_path).lm_head.weight.dtype == torch.float32
    assert load_model(tmp_path, dtype=None).lm_head.weight.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------ ties


def test_t5_configurations_always_say_tied(tmp_path):
    """Theirs: T5Config, MT5Config and UMT5Config force `tie_word_embeddings` to True; the given value
    survives only in T5's `scale_decoder_outputs`. A new v1.1 model is therefore tied, unlike the published
    ones, and config.json says tied although the head is untied. A head in a file is loaded nevertheless.
    Ours: the flag is respected, and a head in a file that differs from the embedding is untied.
    """
    sizes = T5 | {"vocab_size": VOCAB, "decoder_start_token_id": 0}
    for config_of_theirs in (transformers.T5Config, transformers.MT5Config, transformers.UMT5Config):
        assert config_of_theirs(**sizes, tie_word_embeddings=False).tie_word_embeddings is True
    config = transformers.T5Config(**sizes, tie_word_embeddings=False)
    assert config.scale_decoder_outputs is False
    new = transformers.T5ForConditionalGeneration(config)
    assert new.lm_head.weight is new.shared.weight
    ours = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=False))
    assert ours.lm_head.weight is not ours.shared.weight

    ours.save_pretrained(tmp_path)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert theirs.config.tie_word_embeddings is True
    assert torch.equal(theirs.lm_head.weight, ours.lm_head.weight)
    theirs.save_pretrained(tmp_path)
    assert '"tie_word_embeddings": true' in (tmp_path / "config.json").read_text(encoding="utf-8")
    again: Any = load_model(tmp_path)
    assert torch.equal(again.lm_head.weight, ours.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.shared.weight)
    source, target = tokens(0, 2, 5), tokens(1, 2, 4)
    with torch.no_grad():
        want = theirs.eval()(input_ids=source, decoder_input_ids=target).logits
        assert error(again(source, None, target), want) < 1e-5
