"""Head scores (attention to the previous token, induction, copying) and head ablation.

An induction head attends to the token after the last occurrence of the current token and predicts it again
(Olsson et al. 2022). Two properties are measured: where it attends (prefix matching), and whether attending
to a token raises the logit of that token (copying).
"""

from functools import partial
from itertools import product

import torch
from torch import Tensor

from ftcore.analysis.attention import attention_maps
from ftcore.analysis.figures import draw_heads
from ftcore.analysis.inputs import (
    Inputs,
    activations_by_part,
    check_dims,
    check_number,
    num_heads,
    padding_mask,
    part_prefixes,
    stack_parameters,
)
from ftcore.analysis.patching import Metric, measure
from ftcore.analysis.results import Tensors
from ftcore.figures import Figure
from ftcore.lora.lora import require_plain
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.models.non_finite import require_finite
from ftcore.output import progress_bar
from ftcore.study import patch
from ftcore.study.lens import token_mask


def repeated_tokens(
    vocab_size: int, *, rows: int = 8, length: int = 25, repeats: int = 2, seed: int = 0
) -> Tensor:
    """Draw `length` distinct tokens for each row, and repeat them: (rows, repeats * length).

    Only the repetition predicts the next token.

    Raises:
        ValueError: a size below 1, or a length above that of the vocabulary.
    """
    rows, repeats = check_number("rows", rows, 1), check_number("repeats", repeats, 1)
    length = check_number("length", length, 1, vocab_size)  # distinct tokens
    generator = torch.Generator().manual_seed(check_number("seed", seed, 0))
    once = torch.stack([torch.randperm(vocab_size, generator=generator)[:length] for _ in range(rows)])
    return once.repeat(1, repeats)


def induction_scores(model: GPT2LMHeadModel, **sizes: int) -> Tensor:
    """Prefix-matching scores on repeated random tokens: (L, H), 1 for a pure induction head.

    `sizes` are the arguments of `repeated_tokens`; repeats * length must fit into n_positions.
    """
    ids = repeated_tokens(model.config.vocab_size, **sizes).to(model.lm_head.weight.device)
    return prefix_matching_scores(attention_maps(model, {"input_ids": ids})["decoder"], ids)


def prefix_matching_scores(maps: Tensor, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Attention to tokens that follow an earlier occurrence of the current token: (L, H).

    Args:
        maps: (L, B, H, T, T) self-attention, see attention.py.
        ids: (B, T) the tokens.
        attention_mask: (B, T), 1 for a token and 0 for padding, which is neither a query nor a key here.

    Returns:
        The total attention to such tokens, averaged over the positions that have any: 0 to 1 (Olsson et al.
        2022, "prefix matching").

    Raises:
        ValueError: no position has any; shapes that do not fit together.
    """
    mask = token_mask(attention_mask, ids)
    tokens = ids.masked_fill(~mask, -1)
    previous = torch.cat([tokens.new_full((len(ids), 1), -1), tokens[:, :-1]], 1)  # the token before each key
    return _attention_to(maps, ids[:, :, None] == previous[:, None, :], mask)


def duplicate_token_scores(maps: Tensor, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Attention to earlier occurrences of the current token: (L, H).

    maps (L, B, H, T, T), ids and attention_mask (B, T) as in `prefix_matching_scores`.
    """
    mask = token_mask(attention_mask, ids)
    return _attention_to(maps, (ids[:, :, None] == ids[:, None, :]).tril(-1), mask)


def previous_token_scores(maps: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Average attention to the previous position: (L, H). Maps (L, B, H, T, T), attention_mask (B, T)."""
    check_dims("maps", maps, "L B H T T")
    mask = token_mask(attention_mask, maps[0, :, 0])
    before = mask.new_ones(maps.shape[-2:]).tril(-1).triu(-1)  # (T, T)
    return _attention_to(maps, before.expand(len(mask), -1, -1), mask)


def _attention_to(maps: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Attention to selected past keys (B, T, T), averaged over the queries that have any: (L, H)."""
    check_dims("maps", maps, "L B H T T")
    if (maps.shape[1], *maps.shape[3:]) != keys.shape:
        rows, length = mask.shape
        raise ValueError(f"maps is {tuple(maps.shape)}, expected (L, {rows}, H, {length}, {length})")
    keys = keys.tril() & mask[:, :, None] & mask[:, None, :]
    queries = keys.any(-1)  # (B, T)
    if not queries.any():
        raise ValueError("no position has a token to attend to, such as an earlier occurrence of its own")
    weight = (maps * keys[None, :, None]).sum(-1)  # (L, B, H, T)
    return weight.transpose(2, 3)[:, queries].mean(1)


@torch.no_grad()
def copy_scores(model: Model) -> dict[str, Tensor]:
    """Whether attending to a token raises the logit of that token: by part (L, H), from -1 to 1.

    A head that attends to a token adds one row of W_E W_V W_O W_U (V, V) to the logits. The score is the
    sum of the real parts of its eigenvalues divided by the sum of their absolute values; positive
    eigenvalues mean copying (Elhage et al. 2021, "Summarizing OV/QK matrices").

    Norm weights are included, other blocks are not: for T5's `cross`, the encoder's output is taken to be its
    embeddings. T5's encoder has no score, since it has no logits.

    Raises:
        ValueError: the model has LoRA layers.
    """
    require_plain(model)
    if isinstance(model, GPT2LMHeadModel):
        circuit = (model.lm_head.weight * model.transformer.ln_f.weight).T @ model.transformer.wte.weight
        circuit = circuit - circuit.mean(0, keepdim=True)  # LayerNorms subtract the mean: the final one,
        circuit = circuit - circuit.mean(1, keepdim=True)  # and the one before attention
        norms = stack_parameters(model, "transformer.h.*.ln_1.weight")  # (L, D)
        values = stack_parameters(model, "transformer.h.*.attn.c_attn.weight").chunk(3, dim=-1)[2]
        outputs = stack_parameters(model, "transformer.h.*.attn.c_proj.weight")
        return Tensors(decoder=_positive_share(model, circuit * norms[:, None], values, outputs))

    circuit = (model.lm_head.weight * model.decoder.final_layer_norm.weight).T @ model.shared.weight
    norm_weights = {
        "decoder": stack_parameters(model, "decoder.block.*.layer.0.layer_norm.weight"),
        "cross": model.encoder.final_layer_norm.weight.expand(len(model.decoder.block), -1),
    }
    scores = Tensors()
    for part, layer in (("decoder", "0.SelfAttention"), ("cross", "1.EncDecAttention")):
        values = stack_parameters(model, f"decoder.block.*.layer.{layer}.v.weight").mT
        outputs = stack_parameters(model, f"decoder.block.*.layer.{layer}.o.weight").mT
        scores[part] = _positive_share(model, circuit * norm_weights[part][:, None], values, outputs)
    return scores


def _positive_share(model: Model, circuit: Tensor, values: Tensor, outputs: Tensor) -> Tensor:
    """Sum over absolute sum of the eigenvalues of each head's circuit: (L, H), 0 where all are 0.

    The nonzero eigenvalues of W_E W_V W_O W_U (V, V) are those of the cyclic product W_O W_U W_E W_V (K, K).

    Args:
        circuit: (L, D, D) W_U W_E, with norm weights.
        values: (L, D, H * K)
        outputs: (L, H * K, D)
    """
    values = values.unflatten(2, (num_heads(model), -1)).transpose(1, 2)  # (L, H, D, K)
    outputs = outputs.unflatten(1, (num_heads(model), -1))  # (L, H, K, D)
    product = outputs @ circuit[:, None] @ values  # (L, H, K, K)
    require_finite(product, model, lambda: None, "the circuit of a head")
    eigenvalues = torch.linalg.eigvals(product)  # (L, H, K)
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1).clamp_min(torch.finfo(product.dtype).tiny)


@torch.no_grad()
def head_ablation(
    model: Model, inputs: Inputs, metric: Metric, *, mean: bool = False, progress: bool = True
) -> dict[str, Tensor]:
    """The change of a metric when a head's output z is replaced: by part, (L, H, *shape of the metric).

    Zero ablation takes z out of its distribution; mean ablation keeps its average and removes only what
    depends on the text (Michel et al. 2019; Wang et al. 2023, section 2.1).

    Args:
        metric: of the logits; see patching.py.
        mean: replace z by its mean over all rows and positions except padding, instead of by 0.
    """
    heads, prefixes = num_heads(model), part_prefixes(model)
    before = measure(metric, model, inputs)
    changes = Tensors()
    for part, z in activations_by_part(model, inputs, "z").items():  # (L, B, T, H * K)
        tokens = z[:, padding_mask(model, inputs, part)]  # (L, tokens, H * K)
        replacements = tokens.mean(1) if mean else torch.zeros_like(tokens[:, 0])
        sweep = list(product(range(len(z)), range(heads)))
        after = []
        for block, head in progress_bar(sweep, desc=f"ablation, {part}", leave=False, disable=not progress):
            replace = partial(_replace_head, head, replacements[block].unflatten(0, (heads, -1)))
            with patch(model, f"{prefixes[part]}z.{block}", replace):
                after.append(measure(metric, model, inputs) - before)
        changes[part] = torch.stack(after).unflatten(0, (len(z), heads))
    return changes


def _replace_head(head: int, replacement: Tensor, z: Tensor) -> Tensor:
    z.unflatten(-1, replacement.shape)[..., head, :] = replacement[head]  # (B, T, H, K)
    return z


def draw_ablation(
    changes: dict[str, Tensor], title: str = "change of the metric without each head"
) -> Figure:
    """A heat map for each part, (L, H), of the `changes` of `head_ablation`; batches are averaged."""
    fields = {part: change.reshape(*change.shape[:2], -1).mean(-1) for part, change in changes.items()}
    return draw_heads(fields, title, signed=True)
