"""Which activations carry what makes the difference between two inputs: activation patching, path patching.

A clean input has one answer, a corrupted one of the same shape another. Put one activation of the clean run
into the corrupted run: if the clean answer comes back, what makes the difference was in that activation (Vig
et al. 2020; Meng et al. 2022, "causal tracing"; for what to beware of: Zhang and Nanda 2024).

    difference = logit_difference(right, wrong)
    patched = activation_patching(model, clean, corrupted, difference, "resid_pre.*", over=["positions"])
    patched.restored  # (L, T), 0: as corrupted, 1: as clean
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ftcore.analysis.figures import Figure, draw_matrix, new_figure
from ftcore.analysis.inputs import Inputs, activations_of, logits_of, num_heads
from ftcore.models import Model
from ftcore.study import patch
from ftcore.study.names import HookPoint, find_hook_points, short_names

Metric = Callable[[Tensor], Tensor]  # from logits (B, T, V) to one number, (), or one a row, (B)
Axis = Literal["heads", "positions"]


def logit_difference(right: Tensor, wrong: Tensor, position: int = -1) -> Metric:
    """How far the logit of the tokens `right` (B) is above that of `wrong` (B), at one position: (B)."""

    def metric(logits: Tensor) -> Tensor:
        asked = logits[:, position]  # (B, V)
        return (asked.gather(1, right[:, None]) - asked.gather(1, wrong[:, None]))[:, 0]

    return metric


@dataclass
class Patched:
    """What a metric says after every patch of a sweep, and without any."""

    values: Tensor  # (places, and what the sweep went over, and the metric's own shape)
    clean: Tensor  # of the metric's own shape
    corrupted: Tensor

    @property
    def restored(self) -> Tensor:
        """How much of the difference each patch brings back: 0 as corrupted, 1 as clean. Of rows the mean."""
        share = (self.values - self.corrupted) / (self.clean - self.corrupted)
        return share.mean(-1) if self.clean.dim() else share


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
    """Patch what `name` means, one place after the other, from the clean run into the corrupted one.

    Args:
        model: GPT-2 or T5.
        clean, corrupted: see reading.py; of equal shapes.
        metric: of the logits.
        name: activations by name or pattern, see names.py of study: "resid_pre.*", "cross.z.*".
        over: patch one position at a time, one head at a time (of z, pattern or scores), or one head at one
            position: ["heads", "positions"]. Otherwise each place is patched whole.
        progress: show a bar.

    Raises:
        ValueError: inputs of different shapes; a name that means nothing; heads of what has none.
    """
    _check_shapes(clean, corrupted)
    places = find_hook_points(model, name)
    names = [place.long_name for place in places]
    acts = activations_of(model, clean, *names)
    sweep = [
        (place, index) for place in places for index in _indices(model, place, acts[place.long_name], over)
    ]
    values = []
    for place, index in tqdm(sweep, desc=f"patching {name}", unit="patch", leave=False, disable=not progress):
        write = partial(_write, new=acts[place.long_name], heads=_heads(model, place), index=index)
        with patch(model, place.long_name, write):
            values.append(metric(logits_of(model, corrupted)))
    sizes = [len(places)] + [_size(model, acts[names[0]], places[0], axis) for axis in over]
    return Patched(
        torch.stack(values).unflatten(0, sizes),
        metric(logits_of(model, clean)),
        metric(logits_of(model, corrupted)),
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
    """For each head among `senders`: what does it tell the receiver directly, and what does that do?

    The sender is as in the clean run, all other heads and all feed-forward layers are held at what they are
    in the corrupted run, and what the receiver reads in this way is kept. It is then patched into the
    corrupted run (Wang et al. 2023, section 3.1; Goldowsky-Dill et al. 2023). Wang et al. let feed-forward
    layers go on; here they are held too, so that the path is the residual stream and nothing else.

    Args:
        model, clean, corrupted, metric, progress: as for `activation_patching`.
        senders: heads by their mixed values: "z.*", "cross.z.1".
        receiver: what reads the residual stream: "transformer.h.2.attn.c_attn" (queries, keys and values of a
            GPT-2 block), "decoder.block.1.layer.1.EncDecAttention.q", "transformer.h.2.mlp@in"; or the last
            `resid_post`, for what goes to the logits.
        columns: of the receiver's last dimension, the part that is patched: one head's queries, say.

    Returns:
        Patched; its values are (places, H, and the metric's own shape).

    Raises:
        ValueError: inputs of different shapes; senders that are no heads; a receiver that means several
            activations, or one of those that are held.
    """
    _check_shapes(clean, corrupted)
    places = find_hook_points(model, senders)
    if any(_kind(model, place) != "z" for place in places):
        raise ValueError(f"{senders!r} is not the mixed values of heads: expected names such as 'z.*'")
    held = [name for name in short_names(model) if name.split(".")[-2] in ("z", "mlp")]
    (target, *others) = find_hook_points(model, receiver)
    if others or target.long_name in {short_names(model)[name] for name in held}:
        problem = "means several activations" if others else "is held still"
        raise ValueError(f"receiver {receiver!r} {problem}: expected one that reads the residual stream")

    new = activations_of(model, clean, *(place.long_name for place in places))
    old = activations_of(model, corrupted, *held)
    heads = num_heads(model)
    sweep = list(product(places, range(heads)))
    values = []
    for place, head in tqdm(
        sweep, desc=f"paths to {receiver}", unit="path", leave=False, disable=not progress
    ):
        with ExitStack() as patches:
            for name in held:
                patches.enter_context(patch(model, name, old[name]))
            write = partial(_write, new=new[place.long_name], heads=heads, index={"heads": head})
            patches.enter_context(patch(model, place.long_name, write))
            told = activations_of(model, corrupted, receiver)[receiver]
        with patch(model, receiver, partial(_write_columns, new=told, columns=columns)):
            values.append(metric(logits_of(model, corrupted)))
    return Patched(
        torch.stack(values).unflatten(0, (len(places), heads)),
        metric(logits_of(model, clean)),
        metric(logits_of(model, corrupted)),
    )


def _check_shapes(clean: Inputs, corrupted: Inputs) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in inputs.items()} for inputs in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"clean is {shapes[0]}, corrupted {shapes[1]}: expected equal shapes, token for token"
        )


def _kind(model: Model, place: HookPoint) -> str:
    """ "z" for every name of a z; "" for what has no short name."""
    short = next((short for short, long in short_names(model).items() if long == place.long_name), "..")
    return short.split(".")[-2]


def _heads(model: Model, place: HookPoint) -> int:
    """How many heads stand side by side in the last dimension: those of z, otherwise one."""
    return num_heads(model) if _kind(model, place) == "z" else 1


def _by_axis(tensor: Tensor, heads: int) -> tuple[Tensor, dict[Axis, int]]:
    """The tensor with its heads in a dimension of their own, and which dimensions these are."""
    if tensor.dim() == 4:  # attention, (B, H, T, S)
        return tensor, {"heads": 1, "positions": 2}
    return tensor.unflatten(-1, (heads, -1)), {"positions": 1, "heads": 2}  # (B, T, H, K)


def _size(model: Model, tensor: Tensor, place: HookPoint, axis: Axis) -> int:
    parted, axes = _by_axis(tensor, _heads(model, place))
    return parted.shape[axes[axis]]


def _indices(model: Model, place: HookPoint, tensor: Tensor, over: Sequence[Axis]) -> Iterator[dict[Axis, int]]:
    if "heads" in over and _kind(model, place) not in ("z", "pattern", "scores"):
        raise ValueError(f"{place.name} has no heads: only z, pattern and scores have")
    for chosen in product(*(range(_size(model, tensor, place, axis)) for axis in over)):
        yield dict(zip(over, chosen, strict=True))


def _write(old: Tensor, new: Tensor, heads: int, index: dict[Axis, int]) -> Tensor:
    """`new` in place of `old` at these heads and positions."""
    into, axes = _by_axis(old, heads)
    out_of, _ = _by_axis(new, heads)
    where: list[slice | int] = [slice(None)] * into.dim()
    for axis, number in index.items():
        where[axes[axis]] = number
    into[tuple(where)] = out_of[tuple(where)]
    return old


def _write_columns(old: Tensor, new: Tensor, columns: slice) -> Tensor:
    old[..., columns] = new[..., columns]
    return old


def draw_patched(
    patched: Patched, rows: Sequence[str], columns: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """What a sweep over one axis brought back, a row a place: red as much as 1, the clean run."""
    restored = patched.restored
    if restored.dim() != 2:
        raise ValueError(f"restored is {tuple(restored.shape)}, expected two dimensions: take a part of it")
    few = restored.numel() <= 60
    figure = new_figure(1.5 + (0.5 if few else 0.16) * restored.shape[1], 1.4 + 0.35 * restored.shape[0])
    axes = figure.subplots()
    texts = [[f"{value:.2f}" for value in line] for line in restored.tolist()] if few else None
    draw_matrix(axes, restored, rows=rows, columns=columns, texts=texts, signed=True, high=1.0)
    axes.set_title(title, fontsize=10)
    return figure
