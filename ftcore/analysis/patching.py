"""Activation patching and path patching: which activations cause the different outputs of two inputs?

A clean and a corrupted input of the same shape have different answers. One activation of the clean run is
patched into the corrupted run: if the clean answer returns, that activation carries the difference (Vig et
al. 2020; Meng et al. 2022, "causal tracing"; on pitfalls: Zhang and Nanda 2024).

    difference = logit_difference(right, wrong)
    patched = activation_patching(model, clean, corrupted, difference, "resid_pre.*", over=["positions"])
    patched.restored  # (L, T), 0: as corrupted, 1: as clean
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from ftcore.analysis.figures import draw_matrix
from ftcore.analysis.inputs import (
    Inputs,
    activations_of,
    check_index,
    logits_of,
    num_heads,
    token_ids,
)
from ftcore.analysis.results import one_per_line
from ftcore.figures import Figure, new_figure
from ftcore.models import Model
from ftcore.output import progress_bar
from ftcore.study import patch
from ftcore.study.lens import token_mask
from ftcore.study.names import HookPoint, find_hook_points, kind_of, short_names

Metric = Callable[[Tensor], Tensor]  # from logits (B, T, V) to a scalar, (), or one value per row, (B)
Axis = Literal["heads", "positions"]


def logit_difference(
    right: Tensor, wrong: Tensor, position: int = -1, attention_mask: Tensor | None = None
) -> Metric:
    """A metric: logit of the tokens `right` minus that of `wrong`, at one position: (B).

    Args:
        right, wrong: token ids, (B), or one for all rows.
        position: number of the position among the tokens of its row, from the end if negative.
        attention_mask: (B, T), the decoder's; needed if rows are padded.

    The metric raises ValueError for ids outside of the vocabulary, a row without that position, and tensors
    that do not fit the logits.
    """

    def metric(logits: Tensor) -> Tensor:
        rows, _, vocab_size = logits.shape
        mask = token_mask(attention_mask, logits)
        counts = mask.sum(1)  # (B) tokens
        number = check_index("position", position, int(counts.min())) % counts
        at = (mask.cumsum(1) > number[:, None]).int().argmax(1)  # (B)
        picked = []
        for argument, tokens in (("right", right), ("wrong", wrong)):
            ids = token_ids(argument, tokens, vocab_size, logits)
            if ids.numel() not in (1, rows):
                raise ValueError(f"{argument} has {ids.numel()} token ids, expected 1 or {rows}")
            picked.append(logits[torch.arange(rows, device=logits.device), at, ids.flatten()])
        return picked[0] - picked[1]

    return metric


def measure(metric: Metric, model: Model, inputs: Inputs) -> Tensor:
    """The metric of the model's logits, as a tensor; a metric may return a number."""
    return torch.as_tensor(metric(logits_of(model, inputs)))


@dataclass
class Patched:
    """The metric after every patch of a sweep, and of the runs without patches."""

    values: Tensor  # (activations, *axes of the sweep, *shape of the metric)
    clean: Tensor  # shape of the metric
    corrupted: Tensor

    def __repr__(self) -> str:
        return one_per_line(vars(self))

    @property
    def restored(self) -> Tensor:
        """The share of the difference that each patch restores: 0 corrupted, 1 clean. The shape of the sweep.

        Over several rows it is a ratio of means (Wang et al. 2023): the share of a single row,
        (values - corrupted) / (clean - corrupted), is unbounded where clean and corrupted agree.

        Raises:
            ValueError: the mean of the metric is equal in both runs.
        """
        rows = tuple(range(-self.clean.dim(), 0))
        changes, difference = self.values - self.corrupted, (self.clean - self.corrupted).mean()
        if difference == 0:
            raise ValueError("the metric is equal on clean and corrupted: there is no difference to restore")
        return (changes.mean(rows) if rows else changes) / difference


@torch.no_grad()
def activation_patching(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    name: str,
    *,
    over: Sequence[Axis] = (),
    progress: bool = True,
) -> Patched:
    """Patch activations of the clean run into the corrupted run, one at a time.

    Args:
        clean, corrupted: see inputs.py; of equal shapes.
        metric: of the logits.
        name: activations by name or pattern (see ftcore/study/names.py): "resid_pre.*", "cross.z.*".
        over: patch one position at a time, one head at a time (of z, pattern or scores), or one head at one
            position: ["heads", "positions"]. By default whole activations.

    Raises:
        ValueError: inputs of different shapes or masks; a name that matches nothing, or activations of
            different sizes; "heads" of an activation without.
    """
    if not set(over) <= set(get_args(Axis)):
        raise ValueError(f"over is {over!r}, expected a list of {' and '.join(map(repr, get_args(Axis)))}")
    _check_alignment(clean, corrupted)
    points = find_hook_points(model, name)
    acts = activations_of(model, clean, *(point.long_name for point in points))
    views = [_with_axes(model, point, acts[point.long_name]) for point in points]
    for point, (_, dims) in zip(points, views, strict=True):
        if not dims.keys() >= set(over):
            raise ValueError(f"{point.name} has no heads: only z, pattern and scores have")
    sizes, *others = {tuple(view.shape[dims[axis]] for axis in over) for view, dims in views}
    if others:
        raise ValueError(f"{name!r} matches activations of different sizes: patch one kind at a time")
    sweep = list(product(points, *map(range, sizes)))
    values = []
    for point, *index in progress_bar(sweep, desc=f"patching {name}", leave=False, disable=not progress):
        write = partial(_write, model, point, acts[point.long_name], dict(zip(over, index, strict=True)))
        with patch(model, point.long_name, write):
            values.append(measure(metric, model, corrupted))
    return Patched(
        torch.stack(values).unflatten(0, [len(points), *sizes]),
        measure(metric, model, clean),
        measure(metric, model, corrupted),
    )


@torch.no_grad()
def path_patching(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    senders: str,
    receiver: str,
    *,
    columns: slice = slice(None),
    progress: bool = True,
) -> Patched:
    """The direct effect of each sending head on the metric through one receiver.

    In a first pass over the corrupted input, one sender has its clean value, and all other heads and
    feed-forward layers are held at their corrupted values. The receiver's activation of this pass is then
    patched into a second corrupted run (Wang et al. 2023, section 3.1; Goldowsky-Dill et al. 2023). Unlike in
    Wang et al., feed-forward layers are held too: the path is the residual stream alone.

    Args:
        clean, corrupted, metric: as for `activation_patching`.
        senders: outputs of heads: "z.*", "cross.z.1".
        receiver: an activation that reads the residual stream: "transformer.h.2.attn.c_attn" (queries, keys
            and values of a GPT-2 block), "decoder.block.1.layer.1.EncDecAttention.q",
            "transformer.h.2.mlp@in"; or the last `resid_post`, for the path to the logits.
        columns: of the receiver's last dimension, to patch a part of it, such as one head's queries.

    Returns:
        Patched, with values (activations, H, *shape of the metric).

    Raises:
        ValueError: inputs of different shapes or masks; senders other than z; a receiver that matches several
            activations, or is itself held.
    """
    _check_alignment(clean, corrupted)
    points = find_hook_points(model, senders)
    if any(_kind(model, point) != "z" for point in points):
        raise ValueError(f"{senders!r} is not the output of heads: expected names such as 'z.*'")
    held = [name for name in short_names(model) if kind_of(name) in ("z", "mlp")]
    (target, *others) = find_hook_points(model, receiver)
    if others or target.long_name in {short_names(model)[name] for name in held}:
        problem = "matches several activations" if others else "is held fixed"
        raise ValueError(f"receiver {receiver!r} {problem}: expected one that reads the residual stream")

    new = activations_of(model, clean, *(point.long_name for point in points))
    old = activations_of(model, corrupted, *held)
    sweep = list(product(points, range(num_heads(model))))
    values = []
    for point, head in progress_bar(sweep, desc=f"paths to {receiver}", leave=False, disable=not progress):
        with ExitStack() as patches:
            for name in held:
                patches.enter_context(patch(model, name, old[name]))
            write = partial(_write, model, point, new[point.long_name], {"heads": head})
            patches.enter_context(patch(model, point.long_name, write))
            received = activations_of(model, corrupted, target.long_name)[target.long_name]
        with patch(model, target.long_name, partial(_write_columns, received, columns)):
            values.append(measure(metric, model, corrupted))
    return Patched(
        torch.stack(values).unflatten(0, [len(points), -1]),
        measure(metric, model, clean),
        measure(metric, model, corrupted),
    )


def _check_alignment(clean: Inputs, corrupted: Inputs) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in inputs.items()} for inputs in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"clean is {shapes[0]}, corrupted {shapes[1]}: expected equal shapes, token for token"
        )
    for name in clean:
        if name.endswith("attention_mask") and not torch.equal(clean[name].bool(), corrupted[name].bool()):
            raise ValueError(f"clean and corrupted differ in {name}: expected equal padding, token for token")


def _kind(model: Model, point: HookPoint) -> str:
    """The kind of a short name, such as "z"; "" for an activation without one."""
    return next((kind_of(short) for short, long in short_names(model).items() if long == point.long_name), "")


def _with_axes(model: Model, point: HookPoint, tensor: Tensor) -> tuple[Tensor, dict[Axis, int]]:
    """A view of an activation that separates its heads, and the dimension of each axis."""
    if tensor.dim() == 4:  # attention, (B, H, T, S)
        return tensor, {"heads": 1, "positions": 2}
    if _kind(model, point) == "z":
        return tensor.unflatten(-1, (num_heads(model), -1)), {"positions": 1, "heads": 2}  # (B, T, H, K)
    return tensor, {"positions": 1}


def _write(model: Model, point: HookPoint, new: Tensor, index: dict[Axis, int], old: Tensor) -> Tensor:
    """Copy `new` into `old` at one index of the given axes."""
    (target, dims), (source, _) = _with_axes(model, point, old), _with_axes(model, point, new)
    where: list[slice | int] = [slice(None)] * target.dim()
    for axis, number in index.items():
        where[dims[axis]] = number
    target[tuple(where)] = source[tuple(where)]
    return old


def _write_columns(new: Tensor, columns: slice, old: Tensor) -> Tensor:
    old[..., columns] = new[..., columns]
    return old


def draw_patched(
    patched: Patched, rows: Sequence[str], columns: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """`patched.restored` of a sweep over one axis, one row per activation; red is 1, the clean run.

    `rows` are the names of the activations, and `columns` those of the axis.

    Raises:
        ValueError: a sweep over several axes.
    """
    restored = patched.restored
    if restored.dim() != 2:
        raise ValueError(f"restored is {tuple(restored.shape)}, expected two dimensions: take a part of it")
    is_small = restored.numel() <= 60
    figure = new_figure(1.5 + (0.5 if is_small else 0.16) * restored.shape[1], 1.4 + 0.35 * len(restored))
    axes = figure.subplots()
    texts = [[f"{value:.2f}" for value in line] for line in restored.tolist()] if is_small else None
    draw_matrix(axes, restored, rows=rows, columns=columns, texts=texts, signed=True, high=1.0)
    axes.set_title(title, fontsize=10)
    return figure
