"""Cross-entropy of the target tokens, without ever holding all of their logits.

GPT-2's logits for 8 rows of 1024 tokens are 1.6 GB, and their gradient as much again: nearly all of the
memory that training a small model takes. Positions without a label are dropped before the head. The others
go through head and softmax in chunks whose gradient is computed during the forward pass, so nothing is
computed twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftcore.data.packing import position_ids, same_segment, segment_starts
from ftcore.data.tokenizer import IGNORED_LABEL
from ftcore.models import Model, T5ForConditionalGeneration
from ftcore.models.attention import at_least_float32

CHUNK = 2**24  # logits held at a time: 64 MB in float32

Batch = dict[str, Tensor]  # from the loader, see `batch_loss`
Product = Callable[[Tensor, Tensor], Tensor]  # inputs (N, in), weight (out, in) -> (N, out)


class TokenLoss(NamedTuple):
    """Sums over target tokens, so that batches of different lengths add up exactly."""

    total: Tensor  # scalar: sum of cross-entropies in nats, at least float32, differentiable
    correct: Tensor  # scalar: tokens whose most likely prediction is the label
    tokens: int  # target tokens, see `count_targets`


Loss = Callable[[Model, Batch, float], TokenLoss]  # as `batch_loss`


def batch_loss(model: Model, batch: Batch, label_smoothing: float = 0.0) -> TokenLoss:
    """Compute the cross-entropy of a batch from the loader. A loss of your own has the same form.

    Args:
        model: T5 or GPT-2; in training mode, dropout is on.
        batch: input_ids and attention_mask (B, S), labels; packed rows have segment_ids too. T5's labels
            (B, T) are the target, which the decoder reads shifted right. GPT-2's labels (B, S) are aligned
            with input_ids; position s predicts label s + 1.
        label_smoothing: see `linear_cross_entropy`; 0 in validations.

    Returns:
        Sums over the batch's target tokens, not means: a training step divides the sums of its micro-batches
        by the target tokens of all of them.
    """
    hidden, labels = _target_hidden(model, batch)
    product = getattr(model.lm_head, "product", F.linear)  # a layer of ftcore.fast brings its own
    total, correct = linear_cross_entropy(hidden, model.lm_head.weight, labels, label_smoothing, product)
    return TokenLoss(total, correct, len(labels))


def target_logits(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute the logits that predict a batch's target tokens, for a loss of your own.

    All of them are in memory at once; `batch_loss` takes them in chunks.

    Args:
        model, batch: see `batch_loss`.

    Returns:
        Logits (N, V), at least float32, and labels (N,) of the N target tokens.
    """
    hidden, labels = _target_hidden(model, batch)
    return at_least_float32(model.lm_head(hidden)), labels


def _target_hidden(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """The head's inputs (N, D) at the positions of the target tokens (N,)."""
    labels = target_labels(model, batch)
    hidden = _hidden_of_packed(model, batch) if "segment_ids" in batch else _hidden(model, batch)
    hidden = hidden[:, : labels.shape[1]]  # GPT-2: the last position has no next-token label
    is_target = labels != IGNORED_LABEL
    return hidden[is_target], labels[is_target]


def _hidden(model: Model, batch: Batch) -> Tensor:
    """The head's input, (B, T, D)."""
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    if isinstance(model, T5ForConditionalGeneration):
        return model.last_hidden(input_ids, attention_mask, model.shift_right(batch["labels"]))
    # Right padding needs no mask, since attention is causal; attention without a mask is faster.
    pads_left = not bool(attention_mask[:, 0].all())
    return model.last_hidden(input_ids, attention_mask if pads_left else None)


def _hidden_of_packed(model: Model, batch: Batch) -> Tensor:
    """The head's input for packed rows: an example attends to itself alone."""
    input_ids, segment_ids = batch["input_ids"], batch["segment_ids"]
    within = same_segment(segment_ids, segment_ids)  # (B, S, S)
    if isinstance(model, T5ForConditionalGeneration):
        target_ids = batch["decoder_segment_ids"]
        shifted = model.shift_right(batch["labels"])
        # Every example begins with the start token, not with the last label of the one before it.
        decoder_input_ids = torch.where(segment_starts(target_ids), shifted[:, :1], shifted)
        return model.decode_hidden(
            decoder_input_ids,
            model.encode(input_ids, within),
            same_segment(target_ids, segment_ids),
            same_segment(target_ids, target_ids),
        )
    return model.last_hidden(input_ids, within, position_ids(segment_ids))


def target_labels(model: Model, batch: Batch) -> Tensor:
    """The labels to predict: all of T5's (B, T); of GPT-2's (B, S - 1) all but the first, which no position
    predicts. -100 where there is none.
    """
    if model.config.is_encoder_decoder:
        return batch["labels"]
    is_padding = batch["attention_mask"][:, :-1] == 0  # left padding predicts a row's first token
    return batch["labels"][:, 1:].masked_fill(is_padding, IGNORED_LABEL)


def count_targets(model: Model, batch: Batch) -> int:
    """Number of target tokens of a batch, without a forward pass."""
    return int((target_labels(model, batch) != IGNORED_LABEL).sum())


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float = 0.0, product: Product = F.linear
) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropies of `labels` (N,) under logits = hidden (N, D) @ weight (V, D) transposed.

    With `label_smoothing` X (Szegedy et al. 2016, section 7), the target distribution is (1 - X) on the label
    plus X spread evenly over the V tokens, as in torch's `F.cross_entropy`.

    Returns:
        The sum, at least float32 and differentiable, and how many labels are the most likely token.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    wants_grad = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(hidden, weight, labels, label_smoothing, dtype, wants_grad, product)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradient during the forward pass, chunk by chunk; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        label_smoothing: float,
        dtype: torch.dtype,
        wants_grad: bool,
        product: Product,
    ) -> tuple[Tensor, Tensor]:
        head = weight.to(dtype)
        sum_dtype = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=sum_dtype, device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        # needs_input_grad is True for a parameter under no_grad too
        wants_hidden, wants_weight = (wants_grad and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None

        rows = max(1, CHUNK // len(weight))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            inputs, targets = hidden[chunk].to(dtype), labels[chunk, None]  # (N', D), (N', 1)
            logits = at_least_float32(product(inputs, head))  # (N', V)
            correct += (logits.argmax(-1, keepdim=True) == targets).sum()
            # log_softmax, not logits - logsumexp: a difference of two large numbers would lose digits
            log_probs = logits.log_softmax(-1)
            del logits  # as large as log_probs
            target_log_prob = log_probs.gather(1, targets)  # (N', 1)
            if label_smoothing:
                target_log_prob = target_log_prob.lerp(log_probs.mean(-1, keepdim=True), label_smoothing)
            total -= target_log_prob.sum()
            if not wants_hidden and not wants_weight:
                continue
            # d cross-entropy / d logits = softmax(logits) - target, computed in place of log_probs.
            # The target is one_hot(label) or, smoothed, (1 - X) one_hot(label) + X / V.
            grad_logits = log_probs.exp_()
            if label_smoothing:
                grad_logits.sub_(label_smoothing / len(weight))
            on_label = torch.full_like(targets, label_smoothing - 1, dtype=grad_logits.dtype)
            grad_logits.scatter_add_(1, targets, on_label)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = product(grad_logits, head.T)
            if wants_weight:
                # In place and without zeros first: writing a (V, D) matrix takes as long as the product.
                if grad_weight is None:
                    grad_weight = (grad_logits.T @ inputs).to(sum_dtype)
                elif dtype == sum_dtype:
                    grad_weight.addmm_(grad_logits.T, inputs)
                else:
                    grad_weight += grad_logits.T @ inputs
        if wants_weight and grad_weight is None:  # no target at all
            grad_weight = torch.zeros_like(weight, dtype=sum_dtype)

        ctx.gradients = grad_hidden, grad_weight
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward was called twice on one loss: compute the loss again")
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        # In place: a second (V, D) matrix would be the peak of a step's memory.
        if grad_hidden is not None:
            grad_hidden.mul_(grad_total)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_total).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None
