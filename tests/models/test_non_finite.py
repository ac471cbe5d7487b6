"""A non-finite output is traced to the weight, or else to the module, that it comes from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcore.models.attention import Softmax
from ftcore.models.non_finite import require_finite
from tests.helpers.oracle import gpt2_pair, t5_pair

IDS = torch.tensor([[3, 4, 5]])
# Without a mask PyTorch's fused CPU kernel returns finite numbers for NaN queries or keys.
MASK = torch.tensor([[1, 1, 0]])


def a_model(family: str) -> tuple[Any, Any]:
    """A model, and its forward pass."""
    if family == "gpt2":
        _, model = gpt2_pair({"n_embd": 8, "n_head": 2, "n_layer": 1}, seed=0)
        return model, lambda: model(IDS)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    _, model = t5_pair(sizes, seed=0)
    return model, lambda: model(IDS, MASK, decoder_input_ids=IDS)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")]
)
def test_every_weight_is_found(family: str, value: float, word: str) -> None:
    model, forward = a_model(family)
    for name, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[-1] = value
        with pytest.raises(FloatingPointError) as caught:
            require_finite(torch.tensor([1.0, value]), model, forward, "the loss")
        assert str(caught.value) == f"the loss is not finite: {name} holds {word}"
        with torch.no_grad():
            weight.copy_(kept)
    require_finite(forward(), model, forward, "the logits")


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_every_module_is_found(family: str) -> None:
    model, forward = a_model(family)
    called = {
        name
        for name, module in model.named_modules()
        if not any(module.children()) and not isinstance(module, Softmax) and "attn_dropout" not in name
        if not name.endswith("Attention.dropout")
    }
    for name in called:
        module = model.get_submodule(name)
        compute = module.forward

        def corrupted(*inputs: Tensor, compute: Any = compute) -> Tensor:
            return compute(*inputs) * math.nan

        module.forward = corrupted
        with pytest.raises(FloatingPointError, match=f"first in the output of {name}, whose input ranged"):
            require_finite(forward(), model, forward, "the output")
        module.forward = compute
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failure_that_does_not_recur_is_reported_as_such() -> None:
    model, forward = a_model("gpt2")
    with pytest.raises(FloatingPointError, match="all modules are finite in a second run"):
        require_finite(torch.tensor(math.nan), model, forward, "the loss")
