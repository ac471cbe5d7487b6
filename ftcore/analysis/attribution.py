"""Direct logit attribution: how much each head and each feed-forward layer adds to a logit.

The residual stream is the sum of the embedding and the outputs of all heads, feed-forward layers and
biases. The final norm divides it by its scale. With that scale held fixed, norm and head are linear, so a
logit is the sum of one contribution per component (Elhage et al. 2021, "Logits as a sum of terms"; Wang et
al. 2023, section 2.2).

Only direct contributions are counted. The effect of one component through a later one belongs to the later
one; patching.py separates them.
"""

import torch
from torch import Tensor

from ftcore.analysis.figures import draw_head_field
from ftcore.analysis.inputs import (
    Inputs,
    activations_of,
    check_index,
    num_heads,
    stack_blocks,
    stack_parameters,
    token_ids,
)
from ftcore.analysis.results import Tensors
from ftcore.figures import Figure, new_figure
from ftcore.lora.lora import require_plain
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.models.attention import at_least_float32


@torch.no_grad()
def logit_attribution(
    model: Model, inputs: Inputs, tokens: Tensor, others: Tensor | None = None
) -> dict[str, Tensor]:
    """Contributions that add up to the logit of `tokens`, or to its difference from the logit of `others`.

    Of T5, the decoder is analyzed.

    Args:
        tokens: token ids (B, T), or a shape that broadcasts to it.
        others: the same, of the tokens to subtract.

    Returns:
        embedding: (B, T); for GPT-2 the token embedding, with `position` separate
        heads: (L, H, B, T), self-attention; `cross` for T5's cross-attention
        mlps: (L, B, T), with their biases
        biases: (B, T), GPT-2 only: of attention and of the final norm

        Summed over L and H, all together are the logit.

    Raises:
        ValueError: ids outside of the vocabulary, or the model has LoRA layers.
    """
    require_plain(model)
    weight = model.lm_head.weight  # (V, D)
    unembedding = weight[token_ids("tokens", tokens, len(weight), weight)]  # (B or 1, T or 1, D)
    if others is not None:
        unembedding = unembedding - weight[token_ids("others", others, len(weight), weight)]
    if isinstance(model, GPT2LMHeadModel):
        names = ("transformer.wte", "transformer.wpe", "z.*", "mlp.*", "resid_post.*")
        acts = activations_of(model, inputs, *names)
        direction, bias = _gpt2_direction(model, stack_blocks(acts, "resid_post")[-1], unembedding)
        outputs = stack_parameters(model, "transformer.h.*.attn.c_proj.weight")  # (L, H * K, D)
        attention_bias = stack_parameters(model, "transformer.h.*.attn.c_proj.bias").sum(0)  # (D)
        return Tensors(
            embedding=_dot(acts["transformer.wte"], direction),
            position=_dot(acts["transformer.wpe"], direction),
            heads=_head_contributions(model, stack_blocks(acts, "z"), outputs, direction),
            mlps=_dot(stack_blocks(acts, "mlp"), direction),
            biases=bias + _dot(attention_bias, direction),
        )

    names = ("decoder.resid_pre.0", "decoder.z.*", "cross.z.*", "decoder.mlp.*", "decoder.resid_post.*")
    acts = activations_of(model, inputs, *names)
    direction = _t5_direction(model, stack_blocks(acts, "decoder.resid_post")[-1], unembedding)
    shares = Tensors(embedding=_dot(acts["decoder.resid_pre.0"], direction))
    layers = (("heads", "decoder", "0.SelfAttention"), ("cross", "cross", "1.EncDecAttention"))
    for share, part, layer in layers:
        outputs = stack_parameters(model, f"decoder.block.*.layer.{layer}.o.weight").mT  # (L, H * K, D)
        shares[share] = _head_contributions(model, stack_blocks(acts, f"{part}.z"), outputs, direction)
    shares["mlps"] = _dot(stack_blocks(acts, "decoder.mlp"), direction)
    return shares


def total(shares: dict[str, Tensor]) -> Tensor:
    """The sum of all contributions, i.e. the logit: (B, T)."""
    each = [share.flatten(0, -3).sum(0) if share.dim() > 2 else share for share in shares.values()]
    return torch.stack(each).sum(0)


def _gpt2_direction(model: GPT2LMHeadModel, residual: Tensor, unembedding: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the logit with respect to the residual stream (B, T, D), and the final norm's bias term."""
    norm = model.transformer.ln_f
    std = (residual.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()  # (B, T, 1)
    direction = norm.weight * unembedding
    direction = (direction - direction.mean(-1, keepdim=True)) / std  # LayerNorm subtracts the mean
    return direction, (norm.bias * unembedding).sum(-1)


def _t5_direction(model: T5ForConditionalGeneration, residual: Tensor, unembedding: Tensor) -> Tensor:
    norm = model.decoder.final_layer_norm
    rms = (at_least_float32(residual).square().mean(-1, keepdim=True) + norm.eps).sqrt()
    scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
    return norm.weight * unembedding * scale / rms


def _dot(written: Tensor, direction: Tensor) -> Tensor:
    """(..., B, T, D) and (B, T, D) -> (..., B, T)"""
    return (written * direction).sum(-1)


def _head_contributions(model: Model, z: Tensor, outputs: Tensor, direction: Tensor) -> Tensor:
    """From z (L, B, T, H * K) and output matrices (L, H * K, D): (L, H, B, T)."""
    heads = num_heads(model)
    z, outputs = z.unflatten(-1, (heads, -1)), outputs.unflatten(1, (heads, -1))
    per_head = torch.einsum("lhkd,btd->lhbtk", outputs, direction)  # gradient with respect to z
    return torch.einsum("lbthk,lhbtk->lhbt", z, per_head)


def draw_attribution(shares: dict[str, Tensor], row: int = 0, position: int = -1) -> Figure:
    """Contributions to one logit: heads as heat maps, the others as bars. Red is positive, blue negative.

    `shares` are those of `logit_attribution`, and the logit is that of their (B, T) at `row` and `position`.
    """
    rows, length = shares["embedding"].shape
    row, position = check_index("row", row, rows), check_index("position", position, length)
    fields = {name: share[..., row, position] for name, share in shares.items()}
    heads = {name: field for name, field in fields.items() if field.dim() == 2}
    figure = new_figure(3.4 * (len(heads) + 1), 3.2)
    panels = figure.subplots(1, len(heads) + 1, squeeze=False)[0]
    high = max(float(field.abs().max()) for field in fields.values())
    for axes, (name, field) in zip(panels, heads.items(), strict=False):
        title = {"heads": "self-attention", "cross": "cross-attention"}[name]
        draw_head_field(axes, field, title, signed=True, high=high)
    bars = {name: float(field) for name, field in fields.items() if field.dim() == 0}
    bars |= {f"mlp {block}": value for block, value in enumerate(fields["mlps"].tolist())}
    colors = ["C3" if value > 0 else "C0" for value in bars.values()]
    panels[-1].barh(list(bars), list(bars.values()), color=colors)
    panels[-1].invert_yaxis()
    panels[-1].set_title("other components", fontsize=9)
    logit = float(total(shares)[row, position])
    figure.suptitle(f"contributions to the logit, which is {logit:.1f}", fontsize=10)
    return figure
