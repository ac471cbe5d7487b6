"""Gradient checkpointing: bit-identical loss and gradients without stored activations."""

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ftcore.decoding import generate
from ftcore.models import KVCache
from ftcore.models.gpt2 import GPT2Block
from ftcore.models.t5 import DecoderBlock, EncoderBlock
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from ftcore.training.loss import batch_loss
from ftcore.training.resize import freeze
from tests.helpers import oracle

BLOCKS = EncoderBlock | DecoderBlock | GPT2Block
SETTINGS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 3},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 3},
}
DROPOUT = {"t5": ["dropout_rate"], "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"]}


def models(family: str, dropout: float = 0.3) -> tuple[Any, Any]:
    """Two equal models, the second one with gradient checkpointing."""
    build = oracle.t5_pair if family == "t5" else oracle.gpt2_pair
    plain = build(SETTINGS[family] | dict.fromkeys(DROPOUT[family], dropout), seed=3)[1].train()
    checkpointed = deepcopy(plain)
    checkpoint_blocks(checkpointed)
    return plain, checkpointed


def batch(family: str, seed: int) -> dict[str, Tensor]:
    input_ids = oracle.tokens(seed, 3, 12)
    labels = oracle.tokens(seed + 1, 3, 7) if family == "t5" else input_ids
    return {"input_ids": input_ids, "attention_mask": oracle.padding(seed, 3, 12, "right"), "labels": labels}


def gradients(model: Any, inputs: dict[str, Tensor], precision: torch.dtype | None) -> list[Tensor | None]:
    """Loss, gradients, and the next random number."""
    torch.manual_seed(7)
    model.zero_grad()
    with torch.autocast("cpu", precision) if precision else nullcontext():
        loss = batch_loss(model, inputs).total
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters()), torch.rand(1)]


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(sorted(SETTINGS)), oracle.seeds, st.sampled_from([None, torch.bfloat16]), st.booleans()
)
def test_loss_gradients_and_random_state_are_bit_identical(
    family: str, seed: int, precision: torch.dtype | None, frozen: bool
) -> None:
    results = []
    for model in models(family):
        if frozen:
            freeze(model, ["encoder.block.0-1"] if family == "t5" else ["transformer.h.0", "transformer.wte"])
        results.append(gradients(model, batch(family, seed), precision))
    torch.testing.assert_close(*results, rtol=0, atol=0)


class OutputRecorder:
    """A forward hook that counts calls and records whether the outputs are still in memory."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.outputs: list[StorageWeakRef] = []
        for module in modules:
            module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs.append(StorageWeakRef(output.untyped_storage()))

    @property
    def kept(self) -> list[bool]:
        return [not output.expired() for output in self.outputs]


@pytest.mark.parametrize("family", SETTINGS)
def test_activations_inside_blocks_are_recomputed(family: str) -> None:
    plain, checkpointed = models(family)
    for model, times in ((plain, 1), (checkpointed, 2)):
        blocks = OutputRecorder([part for part in model.modules() if isinstance(part, BLOCKS)])
        activations = OutputRecorder([part for name, part in model.named_modules() if name.endswith(".act")])
        loss = batch_loss(model, batch(family, 0)).total
        count = len(blocks.outputs)
        assert count > 2 and activations.kept == [model is plain] * count
        loss.backward()
        assert (len(blocks.outputs), len(activations.outputs)) == (count, times * count)


@pytest.mark.parametrize("family", SETTINGS)
def test_a_cache_is_filled_once(family: str) -> None:
    """Also with gradients enabled, the default outside of generate."""
    results = []
    for model in models(family, dropout=0.0):
        cache = KVCache(9)
        ids = {"decoder_input_ids": oracle.tokens(1, 2, 3)} if family == "t5" else {}
        first = model(oracle.tokens(0, 2, 5), cache=cache, **ids)
        source = (first.new_zeros(2, 5, 16),) if family == "t5" else ()  # used by the first call only
        step = (model.decode if source else model)(oracle.tokens(2, 2, 1), *source, cache=cache)
        results.append((first, step, cache.length))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("family", SETTINGS)
def test_generation_is_unchanged(family: str) -> None:
    plain, checkpointed = (model.eval() for model in models(family))
    ids = oracle.tokens(1, 2, 5)
    wanted = generate(plain, ids, max_new_tokens=6)
    assert torch.equal(generate(checkpointed, ids, max_new_tokens=6), wanted)


@pytest.mark.parametrize("family", SETTINGS)
def test_a_deepcopy_uses_its_own_weights(family: str) -> None:
    _, model = models(family, dropout=0.0)
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(0.5)
    before, after = (gradients(one, batch(family, 2), None)[0] for one in (model, copy))
    assert before != after
    assert copy.state_dict().keys() == model.state_dict().keys()
