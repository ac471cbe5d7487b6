"""The logit lens (nostalgebraist 2020): what a model would say if it stopped after an earlier block."""

import torch
from torch import Tensor

from ftcore.models import GPT2LMHeadModel, Model
from ftcore.study.hooks import record
from ftcore.study.recording import eval_mode


@torch.no_grad()
def logit_lens(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
) -> Tensor:
    """The residual stream after every block, read by the model's final norm and head.

    Args:
        model: GPT-2, or T5, whose decoder is read. It runs in eval mode and gets its mode back.
        input_ids: (B, T) GPT-2's text, or (B, S) T5's source.
        attention_mask: of input_ids, 1 for a token and 0 for padding.
        decoder_input_ids: (B, T) T5's target behind the start token.

    Returns:
        (blocks, B, T, V) logits. The last block's are the model's own, bit for bit.

    Raises:
        ValueError: decoder_input_ids for GPT-2, or none for T5.
    """
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    if is_gpt2 and decoder_input_ids is not None:
        raise ValueError("decoder_input_ids is for T5; a GPT-2 text is all in input_ids")
    target = () if is_gpt2 else (decoder_input_ids,)
    with eval_mode(model), record(model, "resid_post.*" if is_gpt2 else "decoder.resid_post.*") as acts:
        model.last_hidden(input_ids, attention_mask, *target)
        return torch.stack([_read(model, residual) for residual in acts.values()])


def _read(model: Model, residual: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, V), as both models end."""
    if isinstance(model, GPT2LMHeadModel):
        return model.lm_head(model.transformer.ln_f(residual))
    hidden = model.decoder.final_layer_norm(residual)
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.config.d_model**-0.5
    return model.lm_head(hidden)
