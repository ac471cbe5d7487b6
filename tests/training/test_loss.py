"""The chunked loss equals transformers' and the plain formula, and stores at most one chunk of logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ftcore.training import loss as loss_module
from ftcore.training.loss import batch_loss, count_targets, linear_cross_entropy
from tests.helpers import oracle

FAMILIES = ("t5", "t5-tied", "gpt2", "gpt2-untied")
DTYPES = (torch.float32, torch.float64)
properties = settings(deadline=None, max_examples=25)


def pair(family: str, seed: int = 0) -> tuple[Any, Any]:
    """transformers' model and ours with the same weights."""
    if family.startswith("t5"):
        kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": "tied" in family}
        sizes = {
            "d_model": 24,
            "d_kv": 8,
            "d_ff": 40,
            "num_heads": 3,
            "num_layers": 2,
            "num_decoder_layers": 1,
        }
        return oracle.t5_pair(sizes | kind, seed)
    sizes = {"n_embd": 24, "n_head": 3, "n_layer": 2}
    return oracle.gpt2_pair(sizes | {"tie_word_embeddings": family == "gpt2"}, seed)


def random_batch(family: str, seed: int, rows: int, length: int, side: str = "right") -> dict[str, Tensor]:
    """A batch as from the loader: rows of different lengths, -100 at padding and in GPT-2's sources."""
    input_ids = oracle.tokens(seed, rows, length)
    attention_mask = oracle.padding(seed, rows, length, side)
    if family.startswith("t5"):
        labels = oracle.tokens(seed + 1, rows, max(2, length // 2))
        kept = oracle.padding(seed + 2, *labels.shape, "right")
    else:
        labels = input_ids.clone()
        kept = attention_mask * (torch.arange(length) >= length // 4)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels.masked_fill(kept == 0, -100),
    }


def reference_loss(reference: Any, batch: dict[str, Tensor]) -> Tensor:
    """transformers' loss: the mean over labels other than -100."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    if not reference.config.is_encoder_decoder:
        mask = inputs["attention_mask"]
        inputs["position_ids"] = oracle.positions(mask)
        # Under left padding, transformers would predict a row's first token from the last pad token.
        is_first = (mask.cumsum(-1) == 1) & (mask == 1)
        inputs["labels"] = inputs["labels"].masked_fill(is_first, -100)
    output = reference(**inputs)
    if output.logits.dtype == torch.float32:
        return output.loss
    # transformers rounds logits to float32 before the loss. This is the same without rounding.
    shift = 0 if reference.config.is_encoder_decoder else 1
    logits = output.logits[:, : output.logits.shape[1] - shift]
    return F.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, shift:].flatten())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_equal_transformers(family: str, side: str, dtype: torch.dtype) -> None:
    reference, model = pair(family)
    reference, model = reference.to(dtype), model.to(dtype)
    batch = random_batch(family, seed=3, rows=4, length=20, side=side)
    with oracle.float64_reference():
        wanted = reference_loss(reference, batch)
        wanted.backward()
    got = batch_loss(model, batch)
    (got.total / got.tokens).backward()

    assert got.tokens == count_targets(model, batch)
    assert oracle.error(got.total / got.tokens, wanted) < oracle.BOUND[dtype]
    gradients = {name: weight.grad for name, weight in reference.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert oracle.distance(weight.grad, gradients[name]) < oracle.BOUND[dtype], name


@pytest.mark.parametrize("family", FAMILIES)
def test_label_smoothing_equals_torchs_on_transformers_logits(family: str) -> None:
    reference, model = pair(family)
    reference, model = reference.double(), model.double()
    batch = random_batch(family, seed=4, rows=4, length=20)
    with oracle.float64_reference():
        logits, labels = reference(**batch).logits, batch["labels"]
    if family.startswith("gpt2"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    wanted = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100, label_smoothing=0.1
    )
    wanted.backward()
    got = batch_loss(model, batch, 0.1)
    got.total.backward()
    torch.testing.assert_close(got.total, wanted)
    gradients = {name: weight.grad for name, weight in reference.named_parameters()}
    for name, weight in model.named_parameters():
        assert oracle.distance(weight.grad, gradients[name]) < oracle.BOUND[torch.float64], name


@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy_counts_the_most_likely_tokens(family: str) -> None:
    reference, model = pair(family)
    batch = random_batch(family, seed=5, rows=4, length=20)
    labels = batch["labels"]
    logits = reference(**batch).logits
    if family.startswith("gpt2"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    assert int(batch_loss(model, batch).correct) == int((logits.argmax(-1) == labels).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str) -> None:
    """The losses of single rows without padding sum to that of the batch, with padding on either side."""
    _, model = pair(family)
    model.double()
    for side in ("left", "right"):
        batch = random_batch(family, seed=7, rows=5, length=16, side=side)
        alone = []
        for row in range(5):
            real = batch["attention_mask"][row].bool()
            labels = batch["labels"][row]
            labels = labels[real] if family.startswith("gpt2") else labels[labels != -100]
            one = {
                "input_ids": batch["input_ids"][row, real],
                "labels": labels,
                "attention_mask": real[real].long(),
            }
            alone.append(batch_loss(model, {name: tensor[None] for name, tensor in one.items()}))
        together = batch_loss(model, batch)
        assert together.tokens == sum(loss.tokens for loss in alone)
        assert int(together.correct) == sum(int(loss.correct) for loss in alone)
        torch.testing.assert_close(together.total, sum(loss.total for loss in alone))


# --- the function itself


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, labels, reduction="sum", label_smoothing=label_smoothing)


def random_problem(
    rows: int, width: int, vocabulary: int, seed: int = 0, dtype=torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype, requires_grad=True)
    return [hidden, weight, torch.randint(vocabulary, (rows,), generator=generator)]


@properties
@given(
    st.integers(0, 20),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 200),
    st.just(0.0) | st.floats(0, 0.99),
    oracle.seeds,
)
def test_any_chunk_size_gives_the_plain_formula(
    rows: int, width: int, vocabulary: int, chunk_size: int, smoothing: float, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK", chunk_size)
        inputs = random_problem(rows, width, vocabulary, seed)
        total, correct = linear_cross_entropy(*inputs, smoothing)
        gradients = torch.autograd.grad(3 * total, inputs[:2])
    wanted = plain(*inputs, smoothing)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * wanted, inputs[:2]))
    assert int(correct) == int(((inputs[0] @ inputs[1].T).argmax(-1) == inputs[2]).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", 20)
    hidden, weight, labels = random_problem(5, 3, 7)

    def total() -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, smoothing)[0]

    total().backward()
    for inputs in (hidden, weight):
        entries, step = inputs.detach().view(-1), 1e-5
        differences = torch.zeros_like(entries)
        for index in range(len(entries)):
            for sign in (1, -1):
                entries[index] += sign * step
                differences[index] += sign * total().item() / (2 * step)
                entries[index] -= sign * step
        torch.testing.assert_close(inputs.grad, differences.view_as(inputs), rtol=1e-6, atol=1e-8)


def test_a_second_backward_pass_is_refused() -> None:
    """The first one scales the gradient in place."""
    hidden, weight, labels = random_problem(5, 3, 7)
    total, _ = linear_cross_entropy(hidden, weight, labels)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        total.backward()


def test_extreme_logits_do_not_overflow() -> None:
    hidden, weight, labels = random_problem(6, 4, 9, dtype=torch.float32)
    total, _ = linear_cross_entropy(hidden * 1e4, weight, labels)
    total.backward()
    torch.testing.assert_close(total, plain(hidden * 1e4, weight, labels))
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_a_constant_added_to_all_logits_costs_no_precision() -> None:
    """GPT-2's logits are all near -100. Softmax is invariant to a constant added to all logits, so an input
    that adds one has no gradient. exp(logits - logsumexp) would give it one: at 100, rounding is 2^-18.
    """
    hidden, weight, labels = random_problem(40, 16, 500, dtype=torch.float32)
    with torch.no_grad():
        hidden[:, -1], weight[:, -1] = 1.0, -100.0
    linear_cross_entropy(hidden, weight, labels)[0].backward()
    # The exact gradient is a sum of 500 terms that is 0; rounding errors add like a random walk.
    assert hidden.grad is not None
    assert hidden.grad[:, -1].abs().max() < 100 * 2**-24 * 500**0.5


@pytest.mark.parametrize("frozen", ["head", "body"])
def test_a_frozen_part_gets_no_gradient(frozen: str) -> None:
    hidden, weight, labels = random_problem(6, 4, 9)
    (weight if frozen == "head" else hidden).requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels)[0].backward()
    trained, fixed = (hidden, weight) if frozen == "head" else (weight, hidden)
    assert fixed.grad is None
    torch.testing.assert_close(trained.grad, torch.autograd.grad(plain(hidden, weight, labels), trained)[0])


def test_a_batch_without_targets_has_loss_zero() -> None:
    """Its gradients are zero too, so it adds nothing to its step."""
    for family in ("t5", "gpt2"):
        _, model = pair(family)
        batch = random_batch(family, seed=1, rows=2, length=8)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        loss = batch_loss(model, batch)
        loss.total.backward()
        assert (loss.total.item(), int(loss.correct), loss.tokens) == (0.0, 0, 0)
        assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_bfloat16_computes_logits_in_bfloat16_and_the_sum_in_float32() -> None:
    hidden, weight, labels = random_problem(40, 16, 50, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight, labels)
    total.backward()
    assert total.dtype == torch.float32 and weight.grad.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    torch.testing.assert_close(total, F.cross_entropy(logits, labels, reduction="sum"))
    exact = torch.autograd.grad(plain(hidden, weight, labels), (hidden, weight))
    for got, wanted in zip((hidden.grad, weight.grad), exact, strict=True):
        # Rounding errors of 2^-9: two inputs, logits (4 times, for their magnitude), softmax, result.
        assert oracle.distance(got, wanted) < 8 * 2**-9


# --- memory


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor created in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **kwargs or {})
        for tensor in outputs if isinstance(outputs, tuple | list) else [outputs]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return outputs


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_most_one_chunk_of_logits_is_stored(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    rows, width, vocabulary, chunk_size = 64, 4, 100, 800
    monkeypatch.setattr(loss_module, "CHUNK", chunk_size)
    hidden, weight, labels = random_problem(rows, width, vocabulary)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, labels, smoothing)[0].backward()
    assert largest.elements == chunk_size < rows * vocabulary


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_computed_under_no_grad(mode: Any) -> None:
    hidden, weight, labels = random_problem(6, 4, 9)
    wanted = plain(hidden, weight, labels)
    with mode(), torch.profiler.profile() as profile:
        total, _ = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(total, wanted)
    assert not total.requires_grad
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::mm") == 1
