"""Interpretability analyses of GPT-2 and T5. Each is a short module of functions that return tensors.

    inputs.py       inputs of an analysis, and running a model on them; read this first
    attention.py    attention maps, hidden states, T5's relative position bias
    attribution.py  direct logit attribution
    patching.py     activation patching, path patching
    heads.py        head scores (induction, copying, ...), head ablation
    residual.py     norms of the residual stream, the logit lens as a figure
    tokens.py       losses of tokens, top activations of neurons over a data set
    beams.py        beam search as a tree
    figures.py      heat maps and their labels
    results.py      how results print

They read and change activations by `record` and `patch` of ftcore.study. Functions named `draw_...` return
matplotlib figures and require the extra `plot`.
"""

# ruff: noqa: F401

from ftcore.analysis.attention import (
    attention_maps,
    attention_while_generating,
    draw_attention,
    draw_relative_bias,
    hidden_states,
    relative_bias_curves,
)
from ftcore.analysis.attribution import draw_attribution, logit_attribution
from ftcore.analysis.beams import beam_trace, draw_beams
from ftcore.analysis.figures import draw_heads
from ftcore.analysis.heads import (
    copy_scores,
    draw_ablation,
    duplicate_token_scores,
    head_ablation,
    induction_scores,
    prefix_matching_scores,
    previous_token_scores,
)
from ftcore.analysis.inputs import inputs_of, token_names
from ftcore.analysis.patching import activation_patching, draw_patched, logit_difference, path_patching
from ftcore.analysis.residual import draw_lens, draw_residual_norms, residual_norms
from ftcore.analysis.tokens import draw_token_losses, draw_top_activations, token_losses, top_activations
from ftcore.figures import save_figure
