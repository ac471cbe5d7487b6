"""What kind of head it is: does it look back by position, by content, does it copy?

An induction head looks for what came after the present token the last time, and says it again (Olsson et
al. 2022). Two things are measured: where it looks (prefix matching), and whether what it reads raises the
logit of the very token that it read (copying).
"""

from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from ftcore.analysis.attention import attention_maps
from ftcore.analysis.figures import Figure, draw_heads
from ftcore.analysis.inputs import Inputs, activations_of, logits_of, num_heads, parts_of
from ftcore.analysis.patching import Metric
from ftcore.lora.lora import require_plain
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.study import patch
from ftcore.study.names import find_hook_points


def repeated_tokens(
    vocab_size: int, *, rows: int = 8, length: int = 25, repeats: int = 2, seed: int = 0
) -> Tensor:
    """(rows, repeats * length) random tokens, none twice in a row's first `length`, said over and over.

    Nothing but the repetition says what comes next.
    """
    generator = torch.Generator().manual_seed(seed)
    once = torch.stack([torch.randperm(vocab_size, generator=generator)[:length] for _ in range(rows)])
    return once.repeat(1, repeats)


def induction_scores(model: GPT2LMHeadModel, **sizes: int) -> Tensor:
    """Prefix matching on random tokens said twice, (L, H): 1 for a head that does nothing else.

    `sizes` are those of `repeated_tokens`. Rows and repeats have to fit into the model's positions.
    """
    ids = repeated_tokens(model.config.vocab_size, **sizes)
    return prefix_matching_scores(attention_maps(model, {"input_ids": ids})["decoder"], ids)


def prefix_matching_scores(maps: Tensor, ids: Tensor) -> Tensor:
    """How much each head looks at tokens that came after an earlier occurrence of the present one: (L, H).

    Args:
        maps: (L, B, H, T, T) self-attention, see attention.py.
        ids: (B, T) the tokens.

    Returns:
        The attention to all such places, over the positions that have any: 0 to 1 (Olsson et al. 2022,
        "prefix matching").
    """
    before = torch.cat([ids.new_full((len(ids), 1), -1), ids[:, :-1]], 1)  # what stands before each key
    return _attention_to(maps, ids[:, :, None] == before[:, None, :])


def duplicate_token_scores(maps: Tensor, ids: Tensor) -> Tensor:
    """How much each head looks at earlier occurrences of the present token itself: (L, H); as above."""
    return _attention_to(maps, (ids[:, :, None] == ids[:, None, :]).tril(-1))


def previous_token_scores(maps: Tensor) -> Tensor:
    """How much each head looks at the position just before, on average: (L, H)."""
    return maps.diagonal(-1, dim1=-2, dim2=-1).mean((1, 3))


def _attention_to(maps: Tensor, wanted: Tensor) -> Tensor:
    """The weight on `wanted` places (B, T, S) up to the query, over the queries that have one: (L, H)."""
    wanted = wanted.tril()
    asked = wanted.any(-1)  # (B, T)
    found = (maps * wanted[None, :, None]).sum(-1)  # (L, B, H, T)
    return found.transpose(2, 3)[:, asked].mean(1)


@torch.no_grad()
def copy_scores(model: Model) -> dict[str, Tensor]:
    """Does what a head reads raise the logit of the token that it read? By part, (L, H) each, from -1 to 1.

    A head that looks at a token adds one row of W_E W_V W_O W_U (V, V) to the logits. Where all eigenvalues
    of this matrix are positive, tokens raise their own logits. The score is the sum of their real parts over
    the sum of their sizes (Elhage et al. 2021, "Summarizing OV/QK matrices").

    The norms' weights are counted in, and the blocks on the way are not: for T5's `cross` it is as if the
    encoder added nothing to its embeddings. T5's encoder has no score, for it writes no logits.

    Raises:
        ValueError: the model has LoRA layers.
    """
    require_plain(model)
    if isinstance(model, GPT2LMHeadModel):
        bridge = _bridge(model.lm_head.weight, model.transformer.ln_f.weight, model.transformer.wte.weight)
        bridge = bridge - bridge.mean(0, keepdim=True)  # LayerNorms take the mean away: the last one's,
        bridge = bridge - bridge.mean(1, keepdim=True)  # and the one's before the head
        blocks = [f"transformer.h.{block}" for block in range(model.config.n_layer)]
        return {
            "decoder": torch.stack(
                [
                    _positive_share(
                        bridge * model.get_parameter(f"{block}.ln_1.weight"),
                        model.get_parameter(f"{block}.attn.c_attn.weight").chunk(3, dim=1)[2],
                        model.get_parameter(f"{block}.attn.c_proj.weight"),
                        num_heads(model),
                    )
                    for block in blocks
                ]
            )
        }

    bridge = _bridge(model.lm_head.weight, model.decoder.final_layer_norm.weight, model.shared.weight)
    blocks = [f"decoder.block.{block}.layer" for block in range(len(model.decoder.block))]
    norms = {
        "decoder": [model.get_parameter(f"{block}.0.layer_norm.weight") for block in blocks],
        "cross": [model.encoder.final_layer_norm.weight] * len(blocks),
    }
    layers = {"decoder": "0.SelfAttention", "cross": "1.EncDecAttention"}
    return {
        part: torch.stack(
            [
                _positive_share(
                    bridge * norm,
                    model.get_parameter(f"{block}.{layer}.v.weight").T,
                    model.get_parameter(f"{block}.{layer}.o.weight").T,
                    num_heads(model),
                )
                for block, norm in zip(blocks, norms[part], strict=True)
            ]
        )
        for part, layer in layers.items()
    }


def _bridge(head: Tensor, final_norm: Tensor, embedding: Tensor) -> Tensor:
    """From what a head writes to the logits, and on from the tokens' embeddings to what it reads: (D, D)."""
    return (head * final_norm).T @ embedding


def _positive_share(bridge: Tensor, values: Tensor, outputs: Tensor, heads: int) -> Tensor:
    """For each head (H): how positive the eigenvalues of its circuit are.

    (V, V) has only K eigenvalues that are not 0, and they are those of the same product begun in its middle:
    W_O W_U W_E W_V is (K, K). `values` is (D, H * K), `outputs` (H * K, D).
    """
    reads = values.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, D, K)
    writes = outputs.unflatten(0, (heads, -1))  # (H, K, D)
    eigenvalues = torch.linalg.eigvals(writes @ bridge @ reads)  # (H, K)
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)


@torch.no_grad()
def head_ablation(
    model: Model, inputs: Inputs, metric: Metric, *, mean: bool = False, progress: bool = True
) -> dict[str, Tensor]:
    """How much the metric changes without each head, by part: (L, H, and the metric's own shape) each.

    Args:
        model: GPT-2 or T5.
        inputs: see reading.py.
        metric: of the logits; see patching.py.
        mean: put the mean over all rows and positions but padding in place of what a head gives, not 0.
        progress: show a bar.
    """
    before = metric(logits_of(model, inputs))
    names = {
        part: [place.name for place in find_hook_points(model, f"{prefix}z.*")]
        for part, prefix in parts_of(model).items()
    }
    acts = activations_of(model, inputs, *(name for of_part in names.values() for name in of_part))
    heads = num_heads(model)
    bar = tqdm(total=len(acts) * heads, desc="ablation", unit="head", leave=False, disable=not progress)
    changes: dict[str, Tensor] = {}
    with bar:
        for part, of_part in names.items():
            after = []
            for name in of_part:
                replacement = (
                    _mean(acts[name], _mask(inputs, part, model)) if mean else acts[name].new_zeros(())
                )
                for head in range(heads):
                    without = partial(_without, head=head, heads=heads, replacement=replacement)
                    with patch(model, name, without):
                        after.append(metric(logits_of(model, inputs)) - before)
                    bar.update()
            changes[part] = torch.stack(after).unflatten(0, (len(of_part), heads))
    return changes


def _mask(inputs: Inputs, part: str, model: Model) -> Tensor | None:
    """(B, T) of the positions at which a part's heads write."""
    is_target = model.config.is_encoder_decoder and part != "encoder"
    return inputs.get("decoder_attention_mask" if is_target else "attention_mask")


def _mean(mixed: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, H * K) -> (H * K)"""
    return mixed.flatten(0, 1).mean(0) if mask is None else mixed[mask.bool()].mean(0)


def _without(mixed: Tensor, head: int, heads: int, replacement: Tensor) -> Tensor:
    own = slice(head * (width := mixed.shape[-1] // heads), (head + 1) * width)
    mixed[..., own] = replacement[own] if replacement.dim() else replacement
    return mixed


def draw_ablation(
    changes: dict[str, Tensor], title: str = "change of the metric without each head"
) -> Figure:
    """A field for each part, blocks below one another. Of batches the mean."""
    fields = {part: change.flatten(2).mean(-1) for part, change in changes.items()}
    return draw_heads(fields, title, signed=True)
