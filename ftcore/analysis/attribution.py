"""Direct logit attribution: how much of a logit each head and each block wrote into the residual stream.

The residual stream is a sum of what its parts wrote: the embedding, every head, every feed-forward layer, the
biases. The final norm divides that sum by its size. With this divisor held at what it is, norm and head are
linear, and so a logit is the sum of one share a part (Elhage et al. 2021, "Logits as a sum of terms"; Wang et
al. 2023, section 2.2).

The shares are of what is written directly. What one part does by way of a later one counts as the later
one's; patching.py tells the two apart.
"""

import torch
from torch import Tensor

from ftcore.analysis.figures import Figure, draw_head_field, new_figure
from ftcore.analysis.inputs import Inputs, activations_of, num_heads, of_all_blocks
from ftcore.lora.lora import require_plain
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.models.attention import at_least_float32


@torch.no_grad()
def logit_attribution(
    model: Model, inputs: Inputs, tokens: Tensor, others: Tensor | None = None
) -> dict[str, Tensor]:
    """The shares that add up to the logit of `tokens`, or to how far it is above that of `others`.

    Args:
        model: GPT-2, or T5, whose decoder is taken apart.
        inputs: see reading.py.
        tokens: (B, T) at each position, the token whose logit is asked for; or what broadcasts to that.
        others: the same, of the tokens to compare with.

    Returns:
        embedding: (B, T); of GPT-2 that of the token alone, beside `position`
        heads: (L, H, B, T), of T5's self-attention; `cross` has those of its attention to the source
        mlps: (L, B, T)
        biases: (B, T), GPT-2's only: those of attention and of the final norm. Each feed-forward layer's own
            is in `mlps`.

        Summed over L and H they are the logit.

    Raises:
        ValueError: the model has LoRA layers.
    """
    require_plain(model)
    if isinstance(model, GPT2LMHeadModel):
        names = ("transformer.wte", "transformer.wpe", "z.*", "mlp.*", "resid_post.*")
        acts = activations_of(model, inputs, *names)
        direction, bias = _gpt2_direction(model, of_all_blocks(acts, "resid_post")[-1], tokens, others)
        projections = [f"transformer.h.{block}.attn.c_proj" for block in range(model.config.n_layer)]
        outputs = torch.stack(
            [model.get_parameter(f"{name}.weight") for name in projections]
        )  # (L, H * K, D)
        attention_bias = torch.stack([model.get_parameter(f"{name}.bias") for name in projections]).sum(
            0
        )  # (D)
        return {
            "embedding": _dot(acts["transformer.wte"], direction),
            "position": _dot(acts["transformer.wpe"], direction),
            "heads": _head_shares(model, of_all_blocks(acts, "z"), outputs, direction),
            "mlps": _dot(of_all_blocks(acts, "mlp"), direction),
            "biases": bias + _dot(attention_bias, direction),
        }

    names = ("decoder.resid_pre.0", "decoder.z.*", "cross.z.*", "decoder.mlp.*", "decoder.resid_post.*")
    acts = activations_of(model, inputs, *names)
    direction = _t5_direction(model, of_all_blocks(acts, "decoder.resid_post")[-1], tokens, others)
    shares = {"embedding": _dot(acts["decoder.resid_pre.0"], direction)}
    for share, part, layer in (
        ("heads", "decoder", "0.SelfAttention"),
        ("cross", "cross", "1.EncDecAttention"),
    ):
        outputs = torch.stack(
            [
                model.get_parameter(f"decoder.block.{block}.layer.{layer}.o.weight").T  # (H * K, D)
                for block in range(len(model.decoder.block))
            ]
        )
        shares[share] = _head_shares(model, of_all_blocks(acts, f"{part}.z"), outputs, direction)
    return shares | {"mlps": _dot(of_all_blocks(acts, "decoder.mlp"), direction)}


def total(shares: dict[str, Tensor]) -> Tensor:
    """All shares together: the logit, (B, T)."""
    each = [share.flatten(0, -3).sum(0) if share.dim() > 2 else share for share in shares.values()]
    return torch.stack(each).sum(0)


def _readout(model: Model, tokens: Tensor, others: Tensor | None) -> Tensor:
    """What the head multiplies the normed stream with to get the logit: (B or 1, T or 1, D)."""
    weight = model.lm_head.weight  # (V, D)
    return weight[tokens] if others is None else weight[tokens] - weight[others]


def _gpt2_direction(
    model: GPT2LMHeadModel, residual: Tensor, tokens: Tensor, others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The direction (B, T, D) in which the stream adds to the logit, and what the final norm's bias adds."""
    norm, readout = model.transformer.ln_f, _readout(model, tokens, others)
    deviation = (residual.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()  # (B, T, 1)
    direction = norm.weight * readout
    direction = (direction - direction.mean(-1, keepdim=True)) / deviation  # a LayerNorm takes the mean away
    return direction, (norm.bias * readout).sum(-1)


def _t5_direction(
    model: T5ForConditionalGeneration, residual: Tensor, tokens: Tensor, others: Tensor | None
) -> Tensor:
    norm = model.decoder.final_layer_norm
    size = (at_least_float32(residual).square().mean(-1, keepdim=True) + norm.eps).sqrt()
    scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
    return norm.weight * _readout(model, tokens, others) * scale / size


def _dot(written: Tensor, direction: Tensor) -> Tensor:
    """(..., B, T, D) and (B, T, D) -> (..., B, T)"""
    return (written * direction).sum(-1)


def _head_shares(model: Model, mixed: Tensor, outputs: Tensor, direction: Tensor) -> Tensor:
    """What each head wrote: mixed values (L, B, T, H * K) by its rows of the output matrix (L, H * K, D)."""
    heads = num_heads(model)
    mixed, outputs = mixed.unflatten(-1, (heads, -1)), outputs.unflatten(1, (heads, -1))
    seen = torch.einsum("lhkd,btd->lhbtk", outputs, direction)  # the direction, as each head's values see it
    return torch.einsum("lbthk,lhbtk->lhbt", mixed, seen)


def draw_attribution(shares: dict[str, Tensor], row: int = 0, position: int = -1) -> Figure:
    """The shares of one logit: heads as fields, the others as bars. Red is for it, blue against."""
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
    colours = ["C3" if value > 0 else "C0" for value in bars.values()]
    panels[-1].barh(list(bars), list(bars.values()), color=colours)
    panels[-1].invert_yaxis()
    panels[-1].set_title("the rest", fontsize=9)
    figure.suptitle(f"shares of the logit, which is {float(total(shares)[row, position]):.1f}", fontsize=10)
    return figure
