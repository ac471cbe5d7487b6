"""Fast layers leave attention's dropout in place, so that attention keeps the fused kernel."""

import copy

import pytest

from ftcore.fast.decoding import prepare_for_decoding
from ftcore.fast.training import use_fast_layers
from ftcore.models.attention import can_fuse
from ftcore.models.gpt2 import GPT2Attention
from ftcore.models.t5 import T5Attention
from tests.helpers.small_models import model_of


@pytest.mark.parametrize("name", ["gpt2", "t5, relu, tied"])
def test_fast_models_keep_the_fused_kernel(name: str) -> None:
    trained = copy.deepcopy(model_of(name))
    use_fast_layers(trained)
    for model in (trained, prepare_for_decoding(model_of(name))):
        attentions = [part for part in model.modules() if isinstance(part, GPT2Attention | T5Attention)]
        dropouts = [part.attn_dropout if name == "gpt2" else part.dropout for part in attentions]
        assert attentions
        assert all(can_fuse(part.softmax, drop) for part, drop in zip(attentions, dropouts, strict=True))
