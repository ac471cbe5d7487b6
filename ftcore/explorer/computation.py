"""The vectors from which the page shows a computation step by step, each as `record` has it.

Shapes: T positions from `start` on, S key positions, H heads of width K, D model width, N neurons of F.
Recorded tensors have no batch dimension.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftcore.explorer.recorder import Sublayer, decoder_logits, stacks
from ftcore.explorer.source import sizes
from ftcore.lora.lora import features
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.models.t5 import relative_position_bucket
from ftcore.study import record
from ftcore.study.names import find_hook_points

TOP_NEURONS = 4  # of each position
MAX_NUMBERS = 2_000_000  # of a page: about 10 MB


def record_computations(
    model: Model, source: Tensor, runs: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The computations of the encoder on the source, (1, S), and of each run, see `record_computation`.

    A run is recorded from where it differs from the first run: before that, both compute the same.

    Returns:
        `encoder` (None for GPT-2) and `runs`; without what is written to the stream if all would be more than
        MAX_NUMBERS; None if the rest is, too.
    """
    for with_written in (True, False):
        if _count_numbers(model, source, runs, with_written) <= MAX_NUMBERS:
            return _record_computations(model, source, runs, with_written)
    return None


def _count_numbers(model: Model, source: Tensor, runs: Sequence[dict[str, Any]], with_written: bool) -> int:
    """An estimate from above: a neuron's weights are shared by the positions where it is active."""
    size = sizes(model)
    attention = 3 * size["H"] * size["K"] + size["D"]  # q, k, v and the residual
    feed_forward = size["D"]
    if with_written:
        attention += size["H"] * size["D"]
        feed_forward += 3 * TOP_NEURONS * size["D"]
    *encoder, decoder = (  # per token
        sum(attention if part.pattern else feed_forward for part in stack.sublayers)
        for stack in stacks(model)
    )
    tokens = sum(len(run["ids"]) - 1 - run["start"] for run in runs)
    return source.shape[1] * sum(encoder) + tokens * decoder


def _record_computations(
    model: Model, source: Tensor, runs: Sequence[dict[str, Any]], with_written: bool
) -> dict[str, Any]:
    computations: list[dict[str, Any]] = []
    for run in runs:
        ids = torch.tensor(run["ids"], device=source.device)
        start = _common_prefix(runs[0]["ids"][:-1], run["ids"][:-1]) if computations else 0
        computations.append(record_computation(model, source, ids, start, with_written=with_written))
    for computation in computations[1:]:
        for part in computation["parts"].values():
            if part.get("is_cross"):
                del part["k"], part["v"]  # of the encoder's output: those of the first run
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    encoder = None if is_gpt2 else record_computation(model, source, None, with_written=with_written)
    return {"encoder": encoder, "runs": computations}


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


@torch.no_grad()
def record_computation(
    model: Model,
    source: Tensor,
    ids: Tensor | None,
    start: int = 0,
    *,
    only: str | None = None,
    with_written: bool = True,
) -> dict[str, Any]:
    """Record the computation of T5's encoder, or of the decoder that reads `ids` (T + 1,), from `start` on.

    Args:
        ids: None for the encoder.
        only: the output of one sublayer, such as "attn.3"; by default all.
        with_written: include what heads and neurons write to the stream, most of the numbers.

    Returns:
        `start`; `input`: token and position embeddings; `final`: the final norm; `parts`: by the output of
        the sublayer, see `_attention` and `_feed_forward`.

    Raises:
        ValueError: there is no such sublayer.
    """
    stack = stacks(model)[0 if ids is None else -1]
    befores = [stack.input, *(part.residual for part in stack.sublayers)]
    chosen = [pair for pair in zip(stack.sublayers, befores, strict=False) if only in (None, pair[0].output)]
    if not chosen:
        raise ValueError(f"the {stack.name} has no sublayer {only!r}")
    prefix = stack.input.removesuffix("resid_pre.0")
    embeddings = [f"{prefix}embed"] + (["pos_embed"] if isinstance(model, GPT2LMHeadModel) else [])
    names = [*embeddings, befores[-1]]
    for part, before in chosen:
        names += [before, *_names(model, part, with_written)]
    with record(model, *names) as acts:
        if ids is None:
            assert isinstance(model, T5ForConditionalGeneration)
            model.encode(source)
        else:
            decoder_logits(model, source, ids[:-1])
        return {
            "start": start,
            "input": {name.removeprefix(prefix): acts[name][0, start:] for name in embeddings},
            "final": {"residual": acts[befores[-1]][0, start:], "norm": _norm(model, f"{prefix}norm_final")},
            "parts": {
                part.output: {"residual": acts[before][0, start:]}
                | (_attention if part.pattern else _feed_forward)(model, part, acts, start, with_written)
                for part, before in chosen
            },
        }


def _sibling(part: Sublayer, kind: str) -> str:
    """Another activation of a sublayer: "cross.q.0" for "cross.attn.0"."""
    *prefix, _, block = part.output.split(".")
    return ".".join([*prefix, kind, block])


def _module_name(model: Model, name: str) -> str:
    (point,) = find_hook_points(model, name)
    return point.module_name


def _names(model: Model, part: Sublayer, with_written: bool) -> list[str]:
    if part.pattern:
        kinds = ("q", "k", "v", "head_out") if with_written else ("q", "k", "v")
        return [_sibling(part, kind) for kind in kinds]
    layer = _module_name(model, part.output)
    gate = [f"{layer}.wi_1"] if _is_gated(model) else []
    return [f"{layer}.act@in", f"{layer}.act", *gate, _sibling(part, "neurons")]


def _is_gated(model: Model) -> bool:
    return isinstance(model, T5ForConditionalGeneration) and bool(model.config.is_gated_act)


def _norm(model: Model, name: str) -> dict[str, Any]:
    """Weight (D,), bias (D,) or None, and epsilon of a norm, by its output's name."""
    norm: Any = model.get_submodule(_module_name(model, name))
    bias = getattr(norm, "bias", None)
    return {
        "weight": norm.weight.detach(),
        "bias": None if bias is None else bias.detach(),
        "eps": norm.eps,
    }


def _attention(model: Model, part: Sublayer, acts: Any, start: int, with_written: bool) -> dict[str, Any]:
    """q (H, T, K), k and v (H, S, K), head_out (H, T, D), and what is done to the scores.

    `bias` is T5's position bias: `buckets` (2 * n - 1,) of the distances 1 - n to n - 1, key minus query, and
    the `table` (buckets, H).
    """
    attention: Any = model.get_submodule(_module_name(model, part.output))
    is_cross = part.kind == "cross-attention"
    q, k, v = (
        acts[_sibling(part, kind)][0].unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        for kind in ("q", "k", "v")
    )
    return {
        "is_cross": is_cross,
        "norm": _norm(model, _sibling(part, "norm_attn")),
        "q": q[:, start:],
        "k": k if is_cross else k[:, start:],
        "v": v if is_cross else v[:, start:],
        "head_out": acts[_sibling(part, "head_out")][0, :, start:] if with_written else None,
        "scale": getattr(attention, "scale", 1.0),
        "bias": None if is_cross else _position_bias(model, part, q.shape[1]),
    }


def _position_bias(model: Model, part: Sublayer, length: int) -> dict[str, Any] | None:
    if isinstance(model, GPT2LMHeadModel):
        return None
    encodes = part.output.startswith("encoder.")
    blocks: Any = (model.encoder if encodes else model.decoder).block
    number = int(part.output.rpartition(".")[2])
    tables = [block.layer[0].SelfAttention.relative_attention_bias for block in blocks[: number + 1]]
    table = next(table for table in reversed(tables) if table is not None)  # T5: that of block 0
    buckets = relative_position_bucket(
        torch.arange(1 - length, length),
        bidirectional=encodes,
        num_buckets=table.num_embeddings,
        max_distance=model.config.relative_attention_max_distance,
    )
    return {"buckets": buckets, "table": table.weight.detach()}


def _feed_forward(model: Model, part: Sublayer, acts: Any, start: int, with_written: bool) -> dict[str, Any]:
    """The neurons with the largest activations at each position, and their weights.

    All (T, n): `neurons`; `inputs` and `outputs` of the activation function; `gates` (T5 v1.1, else None);
    and `activations`, outputs times gates. `rows` has the N different neurons among them: `neurons` (N,), the
    input weights `into` (N, D) with `bias` (N,), the weights of the `gate`, and the output weights `out`
    (N, D); None without `with_written`.
    """
    name = _module_name(model, part.output)
    layer: Any = model.get_submodule(name)
    is_gated = _is_gated(model)
    if isinstance(model, GPT2LMHeadModel):
        into, out, function = layer.c_fc, layer.c_proj, model.config.activation_function
    else:
        into, out, function = layer.wi_0 if is_gated else layer.wi, layer.wo, str(model.config.dense_act_fn)
    activations = acts[_sibling(part, "neurons")][0, start:]  # (T, F)
    top = activations.abs().topk(min(TOP_NEURONS, activations.shape[-1])).indices  # (T, n)
    rows = top.unique()  # (N,)
    norm = _norm(model, _sibling(part, "norm_mlp"))

    def at_top(activation: str) -> Tensor:
        return acts[activation][0, start:].gather(1, top)  # (T, n)

    return {
        "norm": norm,
        "size": activations.shape[-1],
        "function": function,
        "neurons": top,
        "inputs": at_top(f"{name}.act@in"),
        "outputs": at_top(f"{name}.act"),
        "gates": at_top(f"{name}.wi_1") if is_gated else None,
        "activations": at_top(_sibling(part, "neurons")),
        "rows": {
            "neurons": rows,
            "into": _matrix(into)[:, rows].T,
            "bias": into(torch.zeros_like(norm["weight"])[None])[0, rows],
            "gate": _matrix(layer.wi_1)[:, rows].T if is_gated else None,
            "out": _matrix(out)[rows],
        }
        if with_written
        else None,
    }


def _matrix(layer: Any) -> Tensor:
    """(in, out) of a linear layer of either storage order, with its adapter."""
    width, _ = features(getattr(layer, "base_layer", layer))
    rows = torch.eye(width, dtype=layer.weight.dtype, device=layer.weight.device)
    return layer(rows) - layer(torch.zeros_like(rows[:1]))
