"""Beam search as a tree: every candidate of every step, and its outcome.

For example, with four beams:

    trace = beam_trace(model, input_ids, num_beams=4)
    trace.steps[0][0]  # Candidate(step=0, rank=0, parent=None, token=262, status="running", ...)
    draw_beams(trace, lambda token: tokenizer.decode([token])).savefig("beams.png")
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ftcore.decoding import generate
from ftcore.decoding.beam_search import NEG_INF, Hypotheses
from ftcore.figures import Axes, Figure, new_figure
from ftcore.models import Model

Status = Literal["running", "finished", "displaced", "pruned"]
_COLORS: dict[Status, str] = {"running": "C0", "finished": "C2", "displaced": "C4", "pruned": "0.75"}


@dataclass
class Candidate:
    """A running beam extended by one token. Plain data: `dataclasses.asdict` converts it to JSON."""

    step: int  # from 0
    rank: int  # index in its step; 0 is the most likely, unless the search samples
    parent: int | None  # rank of the candidate it extends, in the previous step
    token: int
    log_prob: float  # of this token alone, after the logits processors
    score: float  # sum of log-probabilities so far
    # running: extended in the next step. finished: a returned hypothesis. displaced: finished, but replaced
    # by better ones later. pruned: not among the best.
    status: Status
    final_score: float | None = None  # of finished and displaced: score / new_tokens ** length_penalty


@dataclass
class BeamTrace:
    """The candidates of a beam search, by step, and what it returned."""

    ids: Tensor  # (num_return_sequences, length), as returned by `generate`
    steps: list[list[Candidate]]

    @property
    def finished(self) -> list[Candidate]:
        """The finished hypotheses, best first; at most num_beams."""
        ended = [candidate for step in self.steps for candidate in step if candidate.status == "finished"]
        return sorted(ended, key=lambda candidate: -(candidate.final_score or 0.0))

    def path(self, candidate: Candidate) -> list[Candidate]:
        """The candidate and all its ancestors, from the first step on."""
        path = [candidate]
        while (parent := path[-1].parent) is not None:
            path.append(self.steps[path[-1].step - 1][parent])
        return path[::-1]

    def tokens(self, candidate: Candidate) -> list[int]:
        """The generated tokens, without prompt or start token."""
        return [one.token for one in self.path(candidate)]

    def __repr__(self) -> str:
        candidates = sum(map(len, self.steps))
        head = f"{len(self.steps)} steps, {candidates} candidates; the finished hypotheses, score and tokens:"
        return "\n".join([head, *(f"{one.final_score:.4f} {self.tokens(one)}" for one in self.finished)])


def beam_trace(
    model: Model, input_ids: Tensor, attention_mask: Tensor | None = None, **arguments: Any
) -> BeamTrace:
    """Run a beam search and record all candidates.

    Args:
        input_ids: (1, S) one source; in a batch, a search would continue until the slowest source is done.
        attention_mask: (1, S)
        arguments: of `generate`, with num_beams above 1.

    Raises:
        ValueError: more than one source, num_beams=1, or invalid arguments of `generate`.
    """
    if len(input_ids) != 1:
        raise ValueError(f"input_ids has {len(input_ids)} rows, expected 1: trace one source at a time")
    recorder = _Recorder()
    ids = generate(model, input_ids, attention_mask, observer=recorder.observe, **arguments)
    return BeamTrace(ids, recorder.steps)


_Ids = tuple[int, ...]  # prompt and new tokens without padding: the identity of a hypothesis


class _Recorder:
    """Observer of `beam_search` that converts its tensors to candidates."""

    def __init__(self) -> None:
        self.steps: list[list[Candidate]] = []
        self.beams: list[Candidate | None] = []  # the running candidates, by beam index
        self.ended: dict[_Ids, Candidate] = {}  # all candidates that were ever complete

    def observe(self, length: int, candidates: Hypotheses, complete: Hypotheses, running: Hypotheses) -> None:
        prompt_length = length - int(candidates.new_tokens[0, 0])
        step: dict[_Ids, Candidate] = {}
        for i, ids in _valid(candidates, prompt_length):
            parent = self.beams[int(candidates.parents[0, i])] if self.beams else None
            step[ids] = Candidate(
                step=len(self.steps),
                rank=len(step),
                parent=None if parent is None else parent.rank,
                token=ids[-1],
                log_prob=float(candidates.token_scores[0, i, length - 1]),
                score=float(candidates.scores[0, i]),
                status="pruned",
            )
        self.steps.append(list(step.values()))

        self.beams = [None] * running.scores.shape[1]
        for i, ids in _valid(running, prompt_length):
            self.beams[i] = step[ids]
            step[ids].status = "running"

        for candidate in self.ended.values():
            candidate.status = "displaced"
        for i, ids in _valid(complete, prompt_length):
            if complete.ended[0, i]:  # otherwise an empty slot
                candidate = self.ended[ids] if ids in self.ended else step[ids]
                self.ended[ids] = candidate
                candidate.status, candidate.final_score = "finished", float(complete.scores[0, i])


def _valid(hypotheses: Hypotheses, prompt_length: int) -> Iterator[tuple[int, _Ids]]:
    """Index and ids of the hypotheses of the first source, without empty slots."""
    for i, score in enumerate(hypotheses.scores[0].tolist()):
        if score > NEG_INF / 2:
            length = prompt_length + int(hypotheses.new_tokens[0, i])
            yield i, tuple(hypotheses.ids[0, i, :length].tolist())


def draw_beams(
    trace: BeamTrace, name: Callable[[int], str], candidates: int = 8, axes: Axes | None = None
) -> Figure:
    """The search tree: one column per step, most likely candidates at the top, the best path in orange.

    Args:
        trace: of `beam_trace`.
        name: the text of a token id, such as `lambda token: tokenizer.decode([token], False)`.
        candidates: maximum number drawn per step; beams and finished hypotheses are always drawn.
        axes: to draw into, by default those of a new figure.
    """
    axes = axes or new_figure(1.5 + 1.3 * len(trace.steps), 1.4 + 0.42 * candidates).subplots()
    best = {(one.step, one.rank) for one in trace.path(trace.finished[0])} if trace.finished else set()
    drawn = [one for step in trace.steps for one in step if one.rank < candidates or one.status != "pruned"]
    for one in drawn:
        is_best = (one.step, one.rank) in best
        color = "C1" if is_best else _COLORS[one.status]
        has_ended = one.final_score is not None
        line = [one.step - 1, one.step], [one.parent or 0, one.rank]
        axes.plot(*line, color=color, lw=2 if is_best else 0.8, zorder=1 + is_best)  # below the boxes
        text = f"{name(one.token)}  {one.final_score if has_ended else one.score:.2f}"
        box = {"boxstyle": "round", "fc": "white", "ec": color, "lw": 2 if has_ended else 0.8}
        axes.text(one.step, one.rank, text, ha="center", va="center", fontsize=7, bbox=box, parse_math=False)
    for status, color in _COLORS.items():
        axes.plot([], [], color=color, label=status)
    axes.plot([], [], color="C1", lw=2, label="best hypothesis")
    axes.set_frame_on(False)
    axes.set_xlim(-1, len(trace.steps) - 0.5)
    axes.set_ylim(max(one.rank for one in drawn) + 0.6, -0.6)
    axes.set_xlabel("step; boxes: token and total log-probability, or final score of ended hypotheses")
    axes.set_xticks(range(len(trace.steps)))
    axes.set_yticks([])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=5, frameon=False, fontsize=8)
    return axes.figure
