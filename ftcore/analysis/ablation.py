"""What is lost without a head: its mixed values are replaced, and the metric is taken again.

By 0, which the model has never met, or by their mean, which leaves what the head always says and takes away
what it says about this text (Michel et al. 2019; Wang et al. 2023, section 2.1).
"""

from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from ftcore.analysis.figures import Figure, draw_heads
from ftcore.analysis.patching import Metric
from ftcore.analysis.reading import Inputs, activations_of, logits_of, num_heads, parts_of
from ftcore.models import Model
from ftcore.study import patch
from ftcore.study.names import find_places


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
        part: [place.name for place in find_places(model, f"{prefix}z.*")]
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
