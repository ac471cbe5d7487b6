"""What becomes of an answer when something inside is changed: a head is knocked out, or patched.

Two things are measured against the answer that was recorded: what the model thinks of each of its tokens now,
and what it writes instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ftcore.explorer.recorder import greedy, head_masks, heads, logits_of, prompt_length, stacks
from ftcore.explorer.serialize import packed, token_ids
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.study import patch, record

TOP = 8  # next tokens that are kept of each outcome
# Multiplications with weights that recording a page may spend on interventions nobody has asked for yet:
# about a minute of one core for models whose matrices fill it.
MOST_WORK = 1_000_000_000_000
HEAD_WIDTH = 64  # about that of all published models


@dataclass(frozen=True)
class KnockOut:
    """A head adds nothing to the stream, at no position."""

    z: str  # the heads of its attention, "decoder.z.3"
    head: int


@dataclass(frozen=True)
class Transplant:
    """At one position, an activation is what it is at a position of the other text."""

    name: str  # of the activation, (B, T, D)
    position: int
    other_position: int


Intervention = KnockOut | Transplant


@dataclass(frozen=True)
class Case:
    """An answer that was recorded, and the text to take activations from."""

    source: Tensor  # (1, S)
    ids: Tensor  # (T + 1,) what the decoder has read, and the token that it wrote last
    other: Tensor | None = None  # (1, S') the other text's source
    max_new_tokens: int = 20


@torch.no_grad()
def outcome(model: Model, case: Case, interventions: Sequence[Intervention]) -> dict[str, Any]:
    """What the model makes of a case with all of these at once, as JSON.

    Returns:
        `ids`: the tokens that it writes now, greedily. For each of the A tokens that it wrote at first,
        `log_probabilities` (A,) now and `divergence` (A,), the Kullback-Leibler divergence in nats of what
        the model thinks now from what it thought at first; `next_ids` and `next_log_probabilities` (A, 8).
    """
    given = other_activations(model, case, interventions)
    before = expectations(model, case)
    return {
        name: _as_json(value) for name, value in _outcome(model, case, interventions, given, before).items()
    }


def _outcome(
    model: Model,
    case: Case,
    interventions: Sequence[Intervention],
    given: Mapping[str, Tensor],
    before: Tensor,
) -> dict[str, Any]:
    with applied(model, interventions, given):
        now = expectations(model, case)  # (A, V)
    with applied(model, interventions, given):
        written = greedy(model, case.source, case.max_new_tokens)[prompt_length(model, case.source) :]
    top = now.topk(min(TOP, now.shape[-1]))
    said = case.ids[prompt_length(model, case.source) :]  # (A,)
    return {
        "ids": written.tolist(),
        "log_probabilities": now.gather(1, said[:, None])[:, 0],
        "divergence": (before.exp() * (before - now)).nansum(-1).clamp(min=0),
        "next_ids": top.indices,
        "next_log_probabilities": top.values,
    }


def expectations(model: Model, case: Case) -> Tensor:
    """(A, V) log-probabilities of what follows, at the positions that wrote the answer's A tokens."""
    logits = logits_of(model, case.source, case.ids[:-1])
    return logits[prompt_length(model, case.source) - 1 :].log_softmax(-1)


@contextmanager
def applied(
    model: Model, interventions: Sequence[Intervention], given: Mapping[str, Tensor]
) -> Iterator[None]:
    """Interventions on all that the model reads inside the block: one text, in one pass or in steps."""
    with ExitStack() as patches:
        for change in interventions:
            if isinstance(change, KnockOut):
                patches.enter_context(patch(model, change.z, _Without(model, change.head)))
            else:
                vector = given[change.name][0, change.other_position]  # (D,)
                patches.enter_context(patch(model, change.name, _Replacing(change.position, vector)))
        yield


class _Without:
    def __init__(self, model: Model, head: int):
        self.model = model
        self.head = head

    def __call__(self, z: Tensor) -> Tensor:  # (B, T, H * K)
        return z * (1 - head_masks(self.model, z)[self.head])


class _Replacing:
    """One position, wherever it turns up in the passes that read a text."""

    def __init__(self, position: int, vector: Tensor):
        self.position = position
        self.vector = vector  # (D,)
        self.read = 0

    def __call__(self, activation: Tensor) -> Tensor:  # (B, T, D)
        place = self.position - self.read
        self.read += activation.shape[1]
        if 0 <= place < activation.shape[1]:
            activation[:, place] = self.vector
        return activation


def other_activations(model: Model, case: Case, interventions: Sequence[Intervention]) -> dict[str, Tensor]:
    """What the transplants need of the other text: (1, T, D) each.

    T5's decoder reads the other text's own answer there.

    Raises:
        ValueError: there is no other text, or a position that it does not have.
    """
    names = sorted({change.name for change in interventions if isinstance(change, Transplant)})
    if not names:
        return {}
    if case.other is None:
        raise ValueError("there is no second text to take an activation from")
    ids = greedy(model, case.other, case.max_new_tokens)
    with record(model, *names) as acts:
        logits_of(model, case.other, ids[:-1])
        found = {name: acts[name] for name in names}
    for change in interventions:
        if isinstance(change, Transplant) and change.other_position >= found[change.name].shape[1]:
            raise ValueError(
                f"position {change.other_position} of the second text does not exist: {change.name} has "
                f"{found[change.name].shape[1]} there"
            )
    return found


# All of them, for a page that cannot compute


def every_knock_out(model: Model, case: Case, *, progress: bool = False) -> dict[str, Any]:
    """The outcome of every head's knock-out: arrays with a first dimension of heads, as in `structure.heads`.

    Where that is too much work, {"missing": a sentence that says so}.
    """
    changes = [KnockOut(str(sublayer.z), head) for sublayer, head in heads(model)]
    if missing := _too_much(model, case, len(changes), "knock-outs of single heads"):
        return {"missing": missing}
    return _every(model, case, [[change] for change in changes], {}, "knock-outs", progress)


@torch.no_grad()
def every_transplant(model: Model, case: Case, *, progress: bool = False) -> dict[str, Any]:
    """The outcome of every patch of the residual stream from the other text, at the same position.

    Of the encoder, in T5; of the prompt, in GPT-2. Arrays have a first dimension of blocks times positions.
    Where that cannot be done or is too much work, {"missing": a sentence that says so}.
    """
    if case.other is None:
        return {"missing": "No second text was given (--other) when this page was recorded."}
    length, other_length = case.source.shape[1], case.other.shape[1]
    if length != other_length:
        return {
            "missing": f"The second text has {other_length} tokens and the first {length}, so that positions "
            "do not correspond; patches of one position by another need --serve."
        }
    names = [block[-1].after for block in stacks(model)[0].blocks]
    changes = [Transplant(name, position, position) for name in names for position in range(length)]
    if missing := _too_much(model, case, len(changes), "patches of the residual stream"):
        return {"missing": missing}
    given = other_activations(model, case, changes)
    return {"names": names} | _every(
        model, case, [[change] for change in changes], given, "patches", progress
    )


def _every(
    model: Model,
    case: Case,
    sweep: Sequence[Sequence[Intervention]],
    given: Mapping[str, Tensor],
    unit: str,
    progress: bool,
) -> dict[str, Any]:
    """Outcomes, each kind of number as one array; answers that are the same are kept once."""
    with torch.no_grad():
        before = expectations(model, case)
        shown = tqdm(sweep, desc=unit, unit="", disable=not progress, leave=False)
        outcomes = [_outcome(model, case, changes, given, before) for changes in shown]
    answers: list[list[int]] = []
    for one in outcomes:
        if one["ids"] not in answers:
            answers.append(one["ids"])
    arrays = [name for name, value in outcomes[0].items() if isinstance(value, Tensor)]
    return {
        "answers": answers,
        "answer": [answers.index(one["ids"]) for one in outcomes],
        **{name: _as_json(torch.stack([one[name] for one in outcomes])) for name in arrays},
    }


def _too_much(model: Model, case: Case, count: int, what: str) -> str:
    """A sentence where `count` outcomes are more work than a page is worth, else nothing."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    tokens = case.source.shape[1] + len(case.ids) * (1 if isinstance(model, GPT2LMHeadModel) else 2)
    attention = tokens * len(heads(model)) * HEAD_WIDTH  # of one token to all
    work = count * tokens * (weights + attention)
    if work <= MOST_WORK:
        return ""
    return (
        f"{count:,} {what} were not recorded: about {work / MOST_WORK:.0f} times the work that a page may "
        "take. With --serve each is computed when you ask for it."
    )


def _as_json(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return packed(value.float() if value.is_floating_point() else token_ids(value))
