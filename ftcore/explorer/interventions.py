"""Causal interventions on a recorded answer: ablated heads, and activations patched from a second text.

Two outcomes are measured: the new probability of each token of that answer, and the new greedy answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

import torch
from torch import Tensor

from ftcore.analysis.inputs import check_number, num_heads
from ftcore.decoding.arguments import arguments_for
from ftcore.decoding.text import up_to_end
from ftcore.explorer.recorder import (
    all_heads,
    batch_greedy_search,
    batch_logits,
    decoder_logits,
    greedy_search,
    prompt_length,
    stacks,
)
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.output import progress_bar
from ftcore.study import patch, record

OUTCOME_TOP_K = 8  # next tokens kept at each position of an outcome
# Multiply-adds that a sweep may cost when a page is recorded: about a minute of one core, for models whose
# matrices are large enough to keep it busy.
MAX_SWEEP_MACS = 1_000_000_000_000
BATCH_TOKENS = 2048  # of one forward pass of a sweep: more is hardly faster and takes memory
HEAD_WIDTH = 64  # typical of published models; for estimating the cost of attention


@dataclass(frozen=True)
class HeadAblation:
    """Zero a head's output at every position."""

    z: str  # concatenated head outputs of its attention, "decoder.z.3"
    head: int


@dataclass(frozen=True)
class ActivationPatch:
    """Replace an activation at one position by its value at a position of the second text."""

    name: str  # of an activation (B, T, D)
    position: int
    other_position: int


Intervention = HeadAblation | ActivationPatch


@dataclass(frozen=True)
class Baseline:
    """The recorded answer that interventions are compared with, and the second text."""

    source: Tensor  # (1, S)
    ids: Tensor  # (T + 1,) decoder ids: A answer tokens after the prompt's P, T + 1 = P + A
    other: Tensor | None = None  # (1, S') the second text's source
    max_new_tokens: int = 20


@torch.no_grad()
def outcome(model: Model, baseline: Baseline, interventions: Sequence[Intervention]) -> dict[str, Any]:
    """The outcome of all `interventions` together.

    Returns:
        `ids`: the new greedy answer. For each of the A tokens of the recorded answer, given those before it:
        its `log_probs` (A,), and the most likely `next_ids` and their `next_log_probs` (A, 8).

    Raises:
        ValueError: no such head, activation or position.
    """
    for change in interventions:
        check_intervention(model, baseline, change)
    values = second_text_activations(model, baseline, interventions)
    return {name: rows[0] for name, rows in _outcomes(model, baseline, [interventions], values).items()}


@torch.no_grad()
def _outcomes(
    model: Model,
    baseline: Baseline,
    rows: Sequence[Sequence[Intervention]],
    values: Mapping[str, Tensor],  # `second_text_activations`
) -> dict[str, Any]:
    """The `outcome` of each row's interventions together, with all R rows in one batch."""
    source = baseline.source.expand(len(rows), -1)
    ids = baseline.ids.expand(len(rows), -1)
    start = prompt_length(model, baseline.source)
    with intervene(model, rows, values):
        logits = batch_logits(model, source, ids[:, :-1], start - 1)  # (R, A, V)
    with intervene(model, rows, values):
        answers = batch_greedy_search(model, source, baseline.max_new_tokens)[:, start:]
    log_probs = logits.log_softmax(-1)
    top = log_probs.topk(min(OUTCOME_TOP_K, log_probs.shape[-1]))
    eos_ids = arguments_for(model, {}).eos_ids
    return {
        "ids": [up_to_end(answer, eos_ids) for answer in answers.tolist()],
        "log_probs": log_probs.gather(2, ids[:, start:, None])[..., 0],
        "next_ids": top.indices,
        "next_log_probs": top.values,
    }


def check_intervention(model: Model, baseline: Baseline, change: Intervention) -> None:
    """Raise ValueError if there is no such head, activation or position."""
    if isinstance(change, HeadAblation):
        if (change.z, change.head) not in all_heads(model):
            raise ValueError(f"there is no head {change.head} of {shown(change.z)}")
        return
    stack = next((stack for stack in stacks(model) if change.name in stack.written), None)
    if stack is None:
        raise ValueError(
            f"{shown(change.name)} cannot be patched: expected a sublayer's output or a residual"
        )
    length = baseline.source.shape[1] if stack.name == "encoder" else len(baseline.ids) - 1
    check_number("position", change.position, 0, length - 1)
    check_number("other_position", change.other_position, 0)


@contextmanager
def intervene(
    model: Model, rows: Sequence[Sequence[Intervention]], values: Mapping[str, Tensor]
) -> Iterator[None]:
    """Apply each row's interventions to that row of a batch, also while it is read with a cache.

    `values` are the activations to patch in, (1, T, ...), by name.
    """
    by_name: dict[str, list[tuple[int, Intervention]]] = {}
    for row, changes in enumerate(rows):
        for change in changes:
            name = change.z if isinstance(change, HeadAblation) else change.name
            by_name.setdefault(name, []).append((row, change))
    with ExitStack() as patches:
        for name, of_name in by_name.items():
            patches.enter_context(patch(model, name, _Changes(of_name, num_heads(model), values)))
        yield


@dataclass(eq=False)
class _Changes:
    """Changes of one activation. Counts positions over calls: with a cache, a pass has new ones only."""

    by_row: Sequence[tuple[int, Intervention]]
    heads: int
    values: Mapping[str, Tensor]  # (1, T', D) each, of the second text
    seen: int = 0

    def __call__(self, activation: Tensor) -> Tensor:  # (R, T, D) or (R, T, H * K)
        for row, change in self.by_row:
            if isinstance(change, HeadAblation):
                activation[row].unflatten(-1, (self.heads, -1))[:, change.head] = 0
            elif 0 <= change.position - self.seen < activation.shape[1]:
                value = self.values[change.name][0, change.other_position]  # (D,)
                activation[row, change.position - self.seen] = value
        self.seen += activation.shape[1]
        return activation


def second_text_activations(
    model: Model, baseline: Baseline, interventions: Sequence[Intervention]
) -> dict[str, Tensor]:
    """The activations (1, T, D) that patches take from the second text; T5's decoder reads its greedy answer.

    Raises:
        ValueError: no second text, or a position beyond its length.
    """
    patches = [change for change in interventions if isinstance(change, ActivationPatch)]
    if not patches:
        return {}
    if baseline.other is None:
        raise ValueError("there is no second text to take an activation from")
    ids = greedy_search(model, baseline.other, baseline.max_new_tokens)
    with record(model, *sorted({change.name for change in patches})) as acts:
        decoder_logits(model, baseline.other, ids[:-1])
        values = dict(acts)
    for change in patches:
        if change.other_position >= values[change.name].shape[1]:
            raise ValueError(
                f"position {change.other_position} of the second text does not exist: {change.name} has "
                f"{values[change.name].shape[1]} there"
            )
    return values


def every_head_ablation(model: Model, baseline: Baseline, *, progress: bool = False) -> dict[str, Any]:
    """The outcomes of ablating each head alone, in the order of `all_heads`; see `_sweep`."""
    changes = [HeadAblation(name, head) for name, head in all_heads(model)]
    return _sweep(model, baseline, changes, "ablations of single heads", progress)


def every_activation_patch(model: Model, baseline: Baseline, *, progress: bool = False) -> dict[str, Any]:
    """The outcomes of patching the residual stream after each block at each position (L * S); see `_sweep`.

    In T5's encoder or GPT-2's prompt, from the same position of the second text. `names`: the L activations.
    Returns {"skipped": reason} if the positions do not correspond.
    """
    if baseline.other is None:
        return {"skipped": "No second text was given (--other) when this page was recorded."}
    length, other_length = baseline.source.shape[1], baseline.other.shape[1]
    if length != other_length:
        return {
            "skipped": f"The second text has {other_length} tokens and the first {length}, so positions do "
            "not correspond; with --serve any position can be patched from any other."
        }
    names = [block[-1].residual for block in stacks(model)[0].blocks]
    changes = [ActivationPatch(name, position, position) for name in names for position in range(length)]
    return {"names": names} | _sweep(model, baseline, changes, "patches of the residual stream", progress)


@torch.no_grad()
def _sweep(
    model: Model, baseline: Baseline, changes: Sequence[Intervention], what: str, progress: bool
) -> dict[str, Any]:
    """The outcome of each change alone, several in a batch; the tensors of `outcome` have one more dimension.

    `answers` holds the distinct greedy answers, `answer` the index of each change's. Returns
    {"skipped": reason} if the sweep costs more than MAX_SWEEP_MACS.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    passes = 1 if isinstance(model, GPT2LMHeadModel) else 2
    tokens = baseline.source.shape[1] + len(baseline.ids) * passes
    attention = tokens * len(all_heads(model)) * HEAD_WIDTH  # per query
    cost = len(changes) * tokens * (weights + attention)
    if cost > MAX_SWEEP_MACS:
        times = f"{cost / MAX_SWEEP_MACS:.0f} times"
        return {
            "skipped": f"{len(changes):,} {what} were not recorded: they cost about {times} the limit of a "
            "page. With --serve each is computed on request."
        }
    values = second_text_activations(model, baseline, changes)
    size = max(1, BATCH_TOKENS // tokens)
    batches = []
    with progress_bar(total=len(changes), desc=what, unit="", disable=not progress, leave=False) as bar:
        for start in range(0, len(changes), size):
            rows = [[change] for change in changes[start : start + size]]
            batches.append(_outcomes(model, baseline, rows, values))
            bar.update(len(rows))
    ids = [answer for batch in batches for answer in batch["ids"]]
    answers = [list(answer) for answer in dict.fromkeys(map(tuple, ids))]
    return {
        "answers": answers,
        "answer": [answers.index(answer) for answer in ids],
        **{
            name: torch.cat([batch[name] for batch in batches])
            for name in ("log_probs", "next_ids", "next_log_probs")
        },
    }
