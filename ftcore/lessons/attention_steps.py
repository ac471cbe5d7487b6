"""Checks of steps 1 to 4: softmax, attention, masks, heads.

`wrong` maps the sentence of a known mistake to what it computes. The student's functions get copies of the
inputs, since they may change them in place.
"""

from math import inf, log, nan
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.lessons.step import same, same_module
from ftcore.models import GPT2Config
from ftcore.models.attention import split_heads
from ftcore.models.gpt2 import GPT2Attention
from ftcore.study import randomize_weights
from ftcore.study.attention_call import AttentionCall
from ftcore.study.attention_mistakes import attention_mistakes


def softmax(module: ModuleType) -> None:
    """Step 1."""
    for shape in ((5,), (3, 4), (2, 3, 3)):
        scores = torch.randn(shape)
        exps = scores.exp(), (scores - scores.amax(-1, keepdim=True)).exp()
        wrong: dict[str, Any] = {
            "The exponentials are not divided by their sum.": exps,
            "The sum is that of the whole tensor. Each row has its own: dim=-1.": tuple(
                exp / exp.sum() for exp in exps
            ),
            "The logarithm of the probabilities is returned.": scores.log_softmax(-1),
        }
        for dim in range(len(shape) - 1):
            sentence = f"The sum runs over dimension {dim}, expected the last one: dim=-1."
            wrong[sentence] = tuple(exp / exp.sum(dim, keepdim=True) for exp in exps)
        same(f"softmax of scores {shape}", module.softmax(scores.clone()), scores.softmax(-1), wrong)

    scores = torch.tensor([[100.0, 99.0, 0.0], [0.0, 1.0, 2.0]])
    exp, exp_of_all = scores.exp(), (scores - scores.max()).exp()
    overflow = exp / exp.sum(-1, keepdim=True)
    underflow = exp_of_all / exp_of_all.sum(-1, keepdim=True)
    wrong = {
        "exp(100) is infinite. Subtract the row's largest score first.": overflow,
        "The largest score of all rows is subtracted. Each row needs its own: dim=-1.": underflow,
    }
    same("softmax([[100, 99, 0], [0, 1, 2]])", module.softmax(scores.clone()), scores.softmax(-1), wrong)
    _cross_entropy(module)


def _cross_entropy(module: ModuleType) -> None:
    def check(what: str, logits: Tensor, labels: Tensor, wrong: dict[str, Tensor]) -> None:
        got = module.cross_entropy(logits.clone(), labels.clone())
        same(f"cross_entropy{what}", got, F.cross_entropy(logits, labels), wrong)

    for rows, words in ((6, 7), (9, 120)):
        logits, labels = torch.randn(rows, words), torch.randint(words, (rows,))
        losses = F.cross_entropy(logits, labels, reduction="none")
        log_p, p = logits.log_softmax(-1), (-losses).exp()  # of all words; of the labels
        wrong = {
            "The sum of the losses is returned, expected their mean.": losses.sum(),
            "The minus of -log p is missing.": -losses.mean(),
            "The logarithm is missing.": p.mean(),
            "The mean of p is taken before the logarithm. Average the losses.": -p.mean().log(),
            "The logarithm has base 2. torch.log is the natural one.": losses.mean() / log(2),
            "Softmax is missing: the logits are used as if they were log p.": F.nll_loss(logits, labels),
            "Softmax is applied twice.": F.cross_entropy(logits.softmax(-1), labels),
            "log p is averaged over all words. Only that of the label counts.": -log_p.mean(),
        }
        check("(logits, labels)", logits, labels, wrong)

        labels[1::3] = -100
        kept = losses[labels != -100].sum()
        wrong = {
            "The sum is divided by the number of all rows, expected of those with a label.": kept / rows,
            "Rows with the label -100 are counted too.": F.cross_entropy(logits, labels % words),
            "The sum of the losses is returned, expected their mean.": kept,
        }
        check(" where some labels are -100", logits, labels, wrong)

    wrong = {
        "p is rounded to 0, and log(0) is -inf. Compute log p from the scores.": torch.tensor(inf),
        "exp(200) is infinite. Subtract the row's largest score first.": torch.tensor(nan),
    }
    logits, labels = torch.tensor([[200.0, 0.0], [1.0, 1.0]]), torch.tensor([1, 0])
    check("([[200, 0], [1, 1]], [1, 0])", logits, labels, wrong)


def attention(module: ModuleType) -> None:
    """Step 2."""
    for *batch, queries, keys, width in ((4, 4, 9), (2, 5, 5, 16), (2, 3, 4, 6, 8), (1, 2, 7, 3, 5)):
        query = torch.randn(*batch, queries, width)
        key, value = torch.randn(2, *batch, keys, width)
        same(
            f"attention of query {tuple(query.shape)}, key and value {tuple(key.shape)}",
            module.attention(query.clone(), key.clone(), value.clone()),
            F.scaled_dot_product_attention(query, key, value),
            _wrong_attention(query, key, value),
        )


def _wrong_attention(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """What known mistakes compute from (..., T, K) and (..., S, K)."""
    queries, keys, width = query.shape[-2], *key.shape[-2:]
    products = query @ key.mT  # (..., T, S)
    scores = products / width**0.5
    weights = scores.softmax(-1)

    def mix(scores: Tensor, dim: int = -1) -> Tensor:
        return scores.softmax(dim) @ value

    wrong = {
        "The scores are not divided by sqrt(K).": mix(products),
        "The scores are multiplied by sqrt(K), expected divided.": mix(scores * width),
        "The scores are divided by K, expected sqrt(K).": mix(products / width),
        "The scores are divided by the square root of S, expected of K.": mix(products / keys**0.5),
        "The scores are divided by the square root of T, expected of K.": mix(products / queries**0.5),
        "The division by sqrt(K) comes after the softmax, expected before.": mix(products) / width**0.5,
        "Softmax runs over the queries, dim=-2, expected the keys, dim=-1.": mix(scores, dim=-2),
        "Softmax is missing: the scores themselves are the weights.": scores @ value,
        "The keys are mixed, expected the values.": weights @ key,
    }
    if queries == keys:
        wrong |= {
            "Query and key are swapped: a row of scores belongs to a query.": mix(scores.mT),
            "The weights are transposed.": weights.mT @ value,
            "The queries are mixed, expected the values.": weights @ query,
        }
    if query.dim() > 3:
        wrong["Softmax runs over dimension 1, expected the keys, dim=-1."] = mix(scores, dim=1)
    return wrong


def masks(module: ModuleType) -> None:
    """Step 3."""
    reversed_mask = "It is reversed: True means that a key may be seen."
    for length in (4, 7, 1):
        ones = torch.ones(length, length, dtype=torch.bool)
        wrong = {
            reversed_mask: ~ones.tril(),
            "It is transposed: a row belongs to a query, which sees the keys before it.": ones.triu(),
            "A position sees the one after it too.": ones.tril(1),
            "A position does not see itself.": ones.tril(-1),
            "All keys may be seen.": ones,
        }
        same(f"causal_mask({length})", module.causal_mask(length), ones.tril(), wrong)

    for lengths in ([3, 5], [1, 6, 4]):
        is_word = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, S)
        padding = is_word[:, None, None]
        got = module.padding_mask(is_word.long())
        same(f"padding_mask of texts of {lengths} words", got, padding, {reversed_mask: ~padding})

        batch, keys = is_word.shape
        query, key, value = torch.randn(3, batch, 2, keys, 8)
        causal = torch.ones(keys, keys, dtype=torch.bool).tril()
        for name, visible in (("causal", causal), ("padding", padding), ("combined", causal & padding)):
            same(
                f"masked_attention with a {name} mask",
                module.masked_attention(query.clone(), key.clone(), value.clone(), visible.clone()),
                F.scaled_dot_product_attention(query, key, value, visible),
                _wrong_masks(query, key, value, visible),
            )


def _wrong_masks(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> dict[str, Any]:
    """What the known mistakes of ftcore.study compute from q, k, v (B, H, T, K) and a mask."""
    visible = visible.expand(len(query), 1, query.shape[2], -1)
    call = AttentionCall(query, key, value, visible, None, None, scale=query.shape[-1] ** -0.5)
    wrong: dict[str, Any] = {"0 * -inf is NaN. Use masked_fill or torch.where.": torch.full_like(query, nan)}
    for mistake in attention_mistakes(max_distance=128):
        if mistake.applies(call):
            sentence = f"{mistake.name}: {mistake.sentence.format(**call.shapes)}"
            wrong[sentence] = (*wrong.get(sentence, ()), mistake.compute(call))
    return wrong


def heads(module: ModuleType) -> None:
    """Step 4."""
    for batch, length, count, width in ((2, 6, 3, 4), (3, 4, 2, 8), (1, 5, 4, 4)):
        states = torch.randn(batch, length, count * width)  # (B, T, D)
        split = split_heads(states, count)  # (B, H, T, K)
        viewed = states.view(split.shape)
        alternating = states.unflatten(-1, (width, count)).permute(0, 3, 1, 2)
        wrong = {
            "`view` alone does not move numbers. Cut the last dimension, then transpose.": viewed,
            "Head 0 gets every H-th number, expected the first K.": alternating,
            "The heads are behind the positions: transpose(1, 2) is missing.": split.transpose(1, 2),
        }
        what = f"split_heads of {tuple(states.shape)} in {count} heads"
        same(what, module.split_heads(states.clone(), count), split, wrong)
        viewed, alternating = split.reshape(states.shape), split.permute(0, 2, 3, 1).flatten(2)
        wrong = {
            "The positions are not moved back in front of the heads: transpose first.": viewed,
            "The numbers of the heads alternate, expected one head after the other.": alternating,
        }
        same(f"merge_heads of {tuple(split.shape)}", module.merge_heads(split.clone()), states, wrong)

    for count, width in ((3, 5), (4, 8)):
        layer = randomize_weights(GPT2Attention(GPT2Config(n_embd=count * width, n_head=count), layer=0))
        hidden, visible = torch.randn(2, 7, count * width), padded_causal_mask([7, 5])
        same_module(
            "SelfAttention",
            module.SelfAttention(count * width, count),
            layer,
            (hidden, visible),
            reference_inputs=(hidden, mask_bias(visible), None),
        )


def padded_causal_mask(lengths: list[int]) -> Tensor:
    """A causal mask for rows padded to the longest of these lengths: (B, 1, T, T), True = visible."""
    longest = max(lengths)
    is_token = torch.arange(longest) < torch.tensor(lengths)[:, None, None, None]  # (B, 1, 1, T)
    return torch.ones(longest, longest, dtype=torch.bool).tril() & is_token


def mask_bias(visible: Tensor) -> Tensor:
    """The mask as ftcore's layers take it, added to the scores, same shape: 0 = visible, -inf = masked."""
    return torch.zeros(visible.shape).masked_fill(~visible, -inf)
