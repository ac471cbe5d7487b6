"""What kind of head it is: does it look back by position, by content, does it copy?

An induction head looks for what came after the present token the last time, and says it again (Olsson et
al. 2022). Two things are measured: where it looks (prefix matching), and whether what it reads raises the
logit of the very token that it read (copying).
"""

import torch
from torch import Tensor

from ftcore.analysis.attention import attention_maps
from ftcore.analysis.reading import num_heads
from ftcore.lora.lora import require_plain
from ftcore.models import GPT2LMHeadModel, Model


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
