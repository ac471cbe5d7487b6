"""attend: fused kernel and explicit computation agree; hooks and replaced modules; masks."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore.models.attention import (
    AttentionDropout,
    Softmax,
    attend,
    attention_mask_bias,
    can_fuse,
    merge_heads,
    split_heads,
)
from tests.helpers.oracle import BOUND, distance, error, seeds


def record(softmax: nn.Module) -> dict[str, Tensor]:
    """Record a softmax's input and output; the hook makes `attend` run the explicit computation."""
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.update(scores=inputs[0], weights=output)

    softmax.register_forward_hook(keep)
    return seen


def inputs(seed: int, queries: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", BOUND)
@settings(deadline=None, max_examples=20)
@given(
    seed=seeds,
    queries=st.integers(1, 9),
    more_keys=st.integers(0, 9),
    masking=st.sampled_from(["none", "causal", "bias", "both"]),
    scale=st.sampled_from([1.0, 8**-0.5, 0.1]),
)
def test_fused_kernel_and_explicit_computation_agree(dtype, seed, queries, more_keys, masking, scale):
    causal = masking in ("causal", "both")
    keys = queries if causal else queries + more_keys
    bias = None
    if masking == "bias":
        bias = torch.randn(1, 3, queries, keys, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        bias.requires_grad_()
    elif masking == "both":  # an additive mask here, the kernel's causal flag below
        bias, causal = (
            attention_mask_bias(None, queries, keys, causal=True, like=torch.empty(0, dtype=dtype)),
            False,
        )

    results = []
    for hooked in (False, True):
        softmax = Softmax()
        if hooked:
            record(softmax)
        leaves = inputs(seed, queries, keys, dtype)
        own_bias = None if bias is None else bias.detach().requires_grad_(bias.requires_grad)
        mixed = attend(
            *leaves, bias=own_bias, causal=causal, scale=scale, softmax=softmax, dropout=AttentionDropout(0.0)
        )
        mixed.square().sum().backward()
        mixed = mixed.detach()
        learned = leaves + ([own_bias] if own_bias is not None and own_bias.requires_grad else [])
        results.append([mixed, *(leaf.grad for leaf in learned)])
    size = max(float(grad.norm()) for grad in results[1][1:])
    for fused, explicit in zip(*results, strict=True):
        # With a single key the gradients of queries and keys are zero: measure errors against the largest
        # gradient.
        assert float((fused - explicit).norm()) <= BOUND[dtype] * max(float(explicit.norm()), size)


def test_scores_weights_and_output_by_hand():
    query, key, value = (t.detach() for t in inputs(0, 2, 3))
    softmax = Softmax()
    seen = record(softmax)
    mixed = attend(query, key, value, scale=0.5, softmax=softmax, dropout=AttentionDropout(0.0))
    for row, head, place in [(0, 0, 0), (1, 2, 1)]:
        scores = torch.stack([0.5 * query[row, head, place].dot(k) for k in key[row, head]])
        weights = scores.exp() / scores.exp().sum()
        assert error(seen["scores"][row, head, place], scores) < 1e-14
        assert error(seen["weights"][row, head, place], weights) < 1e-14
        assert error(mixed[row, head, place], weights @ value[row, head]) < 1e-14


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_attention_weights(hooked, p):
    """With the identity matrix as values, the output is the attention weights after dropout."""
    keys = 200
    query, key = torch.zeros(1, 4, keys, 8), torch.zeros(1, 4, keys, 8)
    value = torch.eye(keys).expand(1, 4, keys, keys)
    softmax, dropout = Softmax(), AttentionDropout(p)
    if hooked:
        record(softmax)
    torch.manual_seed(0)
    weights = attend(query, key, value, scale=1.0, softmax=softmax, dropout=dropout)
    kept = weights > 0
    # Kept weights are scaled by 1 / (1 - p).
    assert error(weights[kept], torch.full((int(kept.sum()),), 1 / (1 - p) / keys)) < 1e-6
    # The number of kept weights is binomial; allow six standard deviations.
    n = weights.numel()
    assert abs(float(kept.sum()) - n * (1 - p)) < 6 * (n * p * (1 - p)) ** 0.5

    dropout.eval()
    undropped = attend(query, key, value, scale=1.0, softmax=softmax, dropout=dropout)
    assert error(undropped, torch.full_like(undropped, 1 / keys)) < 1e-6


@pytest.mark.parametrize("hooked", ["softmax", "dropout"])
def test_any_hook_disables_the_fused_kernel_until_removed(hooked):
    modules = {"softmax": Softmax(), "dropout": AttentionDropout(0.0)}
    assert can_fuse(**modules)
    for register in (
        modules[hooked].register_forward_hook,
        modules[hooked].register_forward_pre_hook,
        modules[hooked].register_full_backward_hook,
        modules[hooked].register_full_backward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert not can_fuse(**modules)
        handle.remove()
        assert can_fuse(**modules)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_hook_on_dropout_fires(p):
    query, key, value = (t.detach() for t in inputs(0, 3, 4))
    dropout, seen = AttentionDropout(p), []
    dropout.register_forward_hook(lambda module, args, weights: seen.extend([args[0], weights]))
    mixed = attend(query, key, value, scale=0.5, softmax=Softmax(), dropout=dropout)
    before, after = seen
    assert error(before, (0.5 * query @ key.mT).softmax(-1)) < 1e-14
    assert torch.equal(mixed, after @ value)
    assert bool((after == 0).any()) == (p > 0)


@pytest.mark.parametrize("replacement", [nn.Identity(), nn.Dropout(0.0), nn.Dropout(0.9).eval()])
def test_dropout_may_be_replaced(replacement):
    query, key, value = (t.detach() for t in inputs(0, 3, 4))
    results = [
        attend(query, key, value, scale=0.5, softmax=Softmax(), dropout=dropout)
        for dropout in (AttentionDropout(0.0), replacement)
    ]
    assert error(*results) < 1e-14


def test_a_hook_on_softmax_can_change_the_weights():
    query, key, value = (t.detach() for t in inputs(0, 4, 4))
    softmax = Softmax()
    softmax.register_forward_hook(lambda module, args, weights: torch.eye(4).to(weights).expand_as(weights))
    assert torch.equal(
        attend(query, key, value, scale=1.0, softmax=softmax, dropout=AttentionDropout(0.0)), value
    )


def test_softmax_may_be_replaced():
    class Uniform(nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return torch.full_like(scores, 1 / scores.shape[-1])

    query, key, value = (t.detach() for t in inputs(0, 4, 5))
    mixed = attend(query, key, value, scale=1.0, softmax=Uniform(), dropout=AttentionDropout(0.0))
    assert error(mixed, value.mean(-2, keepdim=True).expand_as(mixed)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_scores_and_weights_are_float32_in_half_precision(dtype, autocast):
    """Half precision rounds inputs and output, and nothing in between.

    Rounding the scores would cost half a unit in the last place at their magnitude (above 16): 0.06 in
    bfloat16.
    """
    query, key, value = (20 * t.detach().to(dtype) for t in inputs(3, 5, 6))
    softmax = Softmax()
    seen = record(softmax)
    with torch.autocast("cpu", dtype, enabled=autocast):
        hooked = attend(query, key, value, scale=0.1, softmax=softmax, dropout=AttentionDropout(0.0))
    scores = query.double() @ key.double().transpose(-2, -1) * 0.1
    assert seen["scores"].dtype == seen["weights"].dtype == torch.float32
    assert error(seen["scores"].double(), scores) < 1e-6
    # exp turns a relative error of 1e-7 in scores near 100 into 1e-5.
    assert error(seen["weights"].double(), scores.softmax(-1)) < 1e-4
    # Weights, values and output are rounded once each: 1.5 eps, plus the rounding of the sums.
    exact = scores.softmax(-1) @ value.double()
    with torch.autocast("cpu", dtype, enabled=autocast):
        fused = attend(query, key, value, scale=0.1, softmax=Softmax(), dropout=AttentionDropout(0.0))
    for mixed in (hooked, fused):
        assert mixed.dtype == dtype
        assert error(mixed.double(), exact) < 2 * torch.finfo(dtype).eps


def test_float64_stays_float64():
    softmax = Softmax()
    seen = record(softmax)
    query, key, value = (t.detach() for t in inputs(0, 3, 3))
    mixed = attend(query, key, value, scale=1.0, softmax=softmax, dropout=AttentionDropout(0.0))
    assert mixed.dtype == seen["weights"].dtype == torch.float64
    assert distance(seen["weights"], seen["scores"].softmax(-1)) == 0


# ------------------------------------------------------------------------------------------------ masks


def visible(bias: Tensor) -> list[list[bool]]:
    assert bool(((bias == 0) | (bias == float("-inf"))).all())
    return (bias[0, 0] == 0).tolist()


def test_mask_bias_by_hand():
    like = torch.empty(0)
    mask = torch.tensor([[0, 1, 1, 0]])
    assert attention_mask_bias(None, 3, 3, causal=False, like=like) is None
    assert (
        attention_mask_bias(None, 1, 4, causal=True, like=like) is None
    )  # one new token behind a cache sees all
    assert visible(attention_mask_bias(None, 2, 4, causal=True, like=like)) == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert visible(attention_mask_bias(mask, 1, 4, causal=False, like=like)) == [[0, 1, 1, 0]]
    assert visible(attention_mask_bias(mask, 4, 4, causal=True, like=like)) == [
        [1, 1, 1, 1],  # left padding: fully masked, so left unmasked; its output is unused
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
    ]
    assert visible(attention_mask_bias(0 * mask, 2, 4, causal=False, like=like)) == [[1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mask_bias_has_the_dtype_of_like(dtype):
    bias = attention_mask_bias(torch.tensor([[0, 1]]), 2, 2, causal=True, like=torch.empty(0, dtype=dtype))
    assert bias.dtype == dtype


def test_masks_may_be_bool_or_numbers():
    mask = torch.tensor([[0, 1, 1]])
    want = attention_mask_bias(mask, 3, 3, causal=True, like=torch.empty(0))
    for dtype in (torch.bool, torch.int32, torch.float32):
        assert torch.equal(attention_mask_bias(mask.to(dtype), 3, 3, causal=True, like=torch.empty(0)), want)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_mask_that_does_not_cover_the_keys_raises(length):
    """Length 1, the new token alone, would broadcast silently."""
    with pytest.raises(ValueError, match=f"attention_mask covers {length} positions, expected 4.*cache"):
        attention_mask_bias(torch.ones(2, length), 1, 4, causal=True, like=torch.empty(0))


# ------------------------------------------------------------------------------------------------ heads


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_split_and_merge_heads(rows, length, heads, width):
    states = torch.randn(rows, length, heads * width)
    split = split_heads(states, heads)
    assert split.shape == (rows, heads, length, width)
    for head in range(heads):
        assert torch.equal(split[:, head], states[..., head * width : (head + 1) * width])
    assert torch.equal(merge_heads(split), states)


def test_a_patched_softmax_is_called():
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    softmax = Softmax()
    softmax.forward = torch.zeros_like
    attended = attend(query, key, value, scale=1.0, softmax=softmax, dropout=AttentionDropout(0.0))
    assert torch.equal(attended, torch.zeros_like(query))


def test_a_hooked_softmax_can_be_copied():
    softmax = Softmax()
    record(softmax)
    assert not can_fuse(copy.deepcopy(softmax), AttentionDropout(0.0))
