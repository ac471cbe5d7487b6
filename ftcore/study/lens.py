"""The logit lens: what a model would predict after each of its blocks."""

from functools import partial

import torch
from torch import Tensor

from ftcore.decoding.state import eval_mode
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.models.non_finite import require_finite
from ftcore.study.hooks import record


@torch.no_grad()
def logit_lens(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
) -> Tensor:
    """Apply the final norm and the head to the residual stream after every block (nostalgebraist 2020).

    Args:
        model: GPT-2, or T5, whose decoder is read. It runs in eval mode; its mode is restored.
        input_ids: (B, T) text of GPT-2, or (B, S) source of T5.
        attention_mask: of input_ids, 1 for a token and 0 for padding.
        decoder_input_ids: (B, T) target of T5, shifted right.
        decoder_attention_mask: of decoder_input_ids.

    Returns:
        (blocks, B, T, V) logits. Those of the last block equal the model's output bit for bit.

    Raises:
        ValueError: arguments of T5's decoder given for GPT-2, or decoder_input_ids missing for T5; a mask of
            another shape than its ids.
        FloatingPointError: logits that are NaN or infinite.
    """
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    target = () if is_gpt2 else (decoder_input_ids, decoder_attention_mask)
    if is_gpt2 and (decoder_input_ids is not None or decoder_attention_mask is not None):
        raise ValueError("decoder_input_ids is for T5; pass GPT-2's whole text as input_ids")
    token_mask(attention_mask, input_ids)
    if decoder_input_ids is not None:
        token_mask(decoder_attention_mask, decoder_input_ids, "decoder_attention_mask")
    with eval_mode(model), record(model, "resid_post.*" if is_gpt2 else "decoder.resid_post.*") as acts:
        forward = partial(model.last_hidden, input_ids, attention_mask, *target)
        forward()
        lens = torch.stack([readout(model, residual) for residual in acts.values()])
        require_finite(lens, model, forward, "the logit lens")
        return lens


def readout(model: Model, residual: Tensor) -> Tensor:
    """Apply the final norm and the head: (B, T, D) residual stream -> (B, T, V) logits."""
    if isinstance(model, GPT2LMHeadModel):
        return model.lm_head(model.transformer.ln_f(residual))
    hidden = model.decoder.final_layer_norm(residual)
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.config.d_model**-0.5
    return model.lm_head(hidden)


def token_mask(attention_mask: Tensor | None, like: Tensor, argument: str = "attention_mask") -> Tensor:
    """(B, T) bool: False at padding; all True without a mask. `like` is (B, T, ...).

    Raises:
        ValueError: a mask of another shape.
    """
    if attention_mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    mask = torch.as_tensor(attention_mask, device=like.device)
    if mask.shape != like.shape[:2]:
        raise ValueError(f"{argument} is {tuple(mask.shape)}, expected {tuple(like.shape[:2])}")
    return mask.bool()
