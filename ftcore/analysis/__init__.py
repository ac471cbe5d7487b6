"""What a model does inside, in figures and pictures. Each analysis is a short page that can be read alone.

Read `reading.py` first: what every analysis is given. Then where heads look (`attention.py`), what each part
wrote into a logit (`attribution.py`), what carries the difference between two inputs (`patching.py`), what is
lost without a head (`ablation.py`) and what kind of head it is (`heads.py`); T5's distances
(`relative_bias.py`), the residual stream (`residual.py`), neurons over a data set (`neurons.py`), the loss of
each token (`losses.py`), the logit lens drawn (`lens.py`), and beam search as a tree (`beams.py`).

They see and change activations through `record` and `patch` of ftcore.study. The functions that begin with
`draw_` need the extra `plot`; they return matplotlib's figures.
"""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
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
    from ftcore.analysis.figures import draw_heads, save_figure
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

__all__ = [
    "activation_patching",
    "attention_maps",
    "attention_while_generating",
    "beam_trace",
    "copy_scores",
    "draw_ablation",
    "draw_attention",
    "draw_attribution",
    "draw_beams",
    "draw_heads",
    "draw_lens",
    "draw_patched",
    "draw_relative_bias",
    "draw_residual_norms",
    "draw_token_losses",
    "draw_top_activations",
    "duplicate_token_scores",
    "head_ablation",
    "hidden_states",
    "induction_scores",
    "inputs_of",
    "logit_attribution",
    "logit_difference",
    "path_patching",
    "prefix_matching_scores",
    "previous_token_scores",
    "relative_bias_curves",
    "residual_norms",
    "save_figure",
    "token_losses",
    "token_names",
    "top_activations",
]

__getattr__ = lazily(
    __name__,
    {
        "activation_patching": "ftcore.analysis.patching",
        "attention_maps": "ftcore.analysis.attention",
        "attention_while_generating": "ftcore.analysis.attention",
        "beam_trace": "ftcore.analysis.beams",
        "copy_scores": "ftcore.analysis.heads",
        "draw_ablation": "ftcore.analysis.heads",
        "draw_attention": "ftcore.analysis.attention",
        "draw_attribution": "ftcore.analysis.attribution",
        "draw_beams": "ftcore.analysis.beams",
        "draw_heads": "ftcore.analysis.figures",
        "draw_lens": "ftcore.analysis.residual",
        "draw_patched": "ftcore.analysis.patching",
        "draw_relative_bias": "ftcore.analysis.attention",
        "draw_residual_norms": "ftcore.analysis.residual",
        "draw_token_losses": "ftcore.analysis.tokens",
        "draw_top_activations": "ftcore.analysis.tokens",
        "duplicate_token_scores": "ftcore.analysis.heads",
        "head_ablation": "ftcore.analysis.heads",
        "hidden_states": "ftcore.analysis.attention",
        "induction_scores": "ftcore.analysis.heads",
        "inputs_of": "ftcore.analysis.inputs",
        "logit_attribution": "ftcore.analysis.attribution",
        "logit_difference": "ftcore.analysis.patching",
        "path_patching": "ftcore.analysis.patching",
        "prefix_matching_scores": "ftcore.analysis.heads",
        "previous_token_scores": "ftcore.analysis.heads",
        "relative_bias_curves": "ftcore.analysis.attention",
        "residual_norms": "ftcore.analysis.residual",
        "save_figure": "ftcore.analysis.figures",
        "token_losses": "ftcore.analysis.tokens",
        "token_names": "ftcore.analysis.inputs",
        "top_activations": "ftcore.analysis.tokens",
    },
)
