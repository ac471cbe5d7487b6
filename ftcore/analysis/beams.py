"""Beam search made visible: every candidate of every step, and what became of it.

trace = beam_trace(model, input_ids, num_beams=4)
trace.steps[0][0]  # Candidate(step=0, rank=0, parent=None, token=262, fate="running", ...)
draw_beams(trace, lambda token: tokenizer.decode([token])).savefig("beams.png")
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ftcore.analysis.figures import Axes, Figure, new_figure
from ftcore.decoding import generate
from ftcore.decoding.search import NEG_INF, Hypotheses
from ftcore.models import Model

Fate = Literal["running", "finished", "displaced", "pruned"]


@dataclass
class Candidate:
    """One token more behind a running beam. Plain data: `dataclasses.asdict` makes JSON of it."""

    step: int  # from 0
    rank: int  # its place in the step: 0 is the likeliest, unless the search samples
    parent: int | None  # the rank of the candidate of the step before that it goes on from
    token: int
    log_prob: float  # of this token alone, after the rules of `processors.py`
    score: float  # sum of the log-probabilities so far
    # running: it went on. finished: it ended, and is one of the answers. displaced: it was, until better ones
    # came. pruned: others were better.
    fate: Fate
    final_score: float | None = None  # of those that ended in time: score / new_tokens ** length_penalty


@dataclass
class BeamTrace:
    ids: Tensor  # (num_return_sequences, length) what `generate` returns
    steps: list[list[Candidate]]

    @property
    def finished(self) -> list[Candidate]:
        """The answers, best first; as many as there are beams, or fewer where so few came to an end."""
        ended = [candidate for step in self.steps for candidate in step if candidate.fate == "finished"]
        return sorted(ended, key=lambda candidate: -(candidate.final_score or 0.0))

    def path(self, candidate: Candidate) -> list[Candidate]:
        """The candidates that it goes on from, the first step's first, and itself."""
        path = [candidate]
        while (parent := path[-1].parent) is not None:
            path.append(self.steps[path[-1].step - 1][parent])
        return path[::-1]

    def tokens(self, candidate: Candidate) -> list[int]:
        """All that it says, without prompt or start token."""
        return [one.token for one in self.path(candidate)]


def beam_trace(
    model: Model, input_ids: Tensor, attention_mask: Tensor | None = None, **arguments: Any
) -> BeamTrace:
    """Run a beam search, and keep what it looked at.

    Args:
        model: GPT-2 or T5.
        input_ids: (1, S) one source. The beams of several would go on for as long as the slowest.
        attention_mask: (1, S)
        arguments: those of `generate`, with num_beams above 1.

    Raises:
        ValueError: more than one source, num_beams=1, or what `generate` refuses.
    """
    if len(input_ids) != 1:
        raise ValueError(f"input_ids has {len(input_ids)} rows, expected 1: trace one source at a time")
    trace = _Trace()
    ids = generate(model, input_ids, attention_mask, observer=trace.see, **arguments)
    return BeamTrace(ids, trace.steps)


class _Trace:
    """An observer of `beam_search`: out of tensors with a place for each beam it makes a tree."""

    def __init__(self) -> None:
        self.steps: list[list[Candidate]] = []
        self.beams: list[Candidate | None] = []  # the running ones, in the search's places
        self.answers: dict[_Ids, Candidate] = {}  # all that ever were among the complete

    def see(self, length: int, candidates: Hypotheses, complete: Hypotheses, running: Hypotheses) -> None:
        prompt_length = length - int(candidates.new_tokens[0, 0])
        step: dict[_Ids, Candidate] = {}
        for place, ids in _real(candidates, prompt_length):
            parent = self.beams[int(candidates.parents[0, place])] if self.beams else None
            score = float(candidates.scores[0, place])
            step[ids] = Candidate(
                step=len(self.steps),
                rank=len(step),
                parent=None if parent is None else parent.rank,
                token=ids[-1],
                log_prob=score - (0.0 if parent is None else parent.score),
                score=score,
                fate="pruned",
            )
        self.steps.append(list(step.values()))

        self.beams = [None] * running.scores.shape[1]
        for place, ids in _real(running, prompt_length):
            self.beams[place] = step[ids]
            step[ids].fate = "running"

        for candidate in self.answers.values():
            candidate.fate = "displaced"
        for place, ids in _real(complete, prompt_length):
            if complete.ended[0, place]:  # else a place that is still free
                answer = self.answers[ids] if ids in self.answers else step[ids]
                self.answers[ids] = answer
                answer.fate, answer.final_score = "finished", float(complete.scores[0, place])


_Ids = tuple[int, ...]  # prompt and tokens, without the padding behind them: no two hypotheses share them


def _real(hypotheses: Hypotheses, prompt_length: int) -> Iterator[tuple[int, _Ids]]:
    """The places of a source's hypotheses and their ids, without those that only fill a place."""
    for place, score in enumerate(hypotheses.scores[0].tolist()):
        if score > NEG_INF / 2:
            length = prompt_length + int(hypotheses.new_tokens[0, place])
            yield place, tuple(hypotheses.ids[0, place, :length].tolist())


def draw_beams(trace: BeamTrace, name: Callable[[int], str], candidates: int = 8) -> Figure:
    """The search as a tree: a column a step, the likeliest above, and the path to the best answer in orange.

    Args:
        trace: of `beam_trace`.
        name: the text of a token, such as `lambda token: tokenizer.decode([token], False)`.
        candidates: how many of each step are drawn; beams and answers always are.
    """
    figure = new_figure(1.5 + 1.3 * len(trace.steps), 1.4 + 0.42 * candidates)
    plot_beams(figure.subplots(), trace, name, candidates)
    return figure


def plot_beams(axes: Axes, trace: BeamTrace, name: Callable[[int], str], candidates: int = 8) -> None:
    """As `draw_beams`, into a panel of a figure."""
    best = {(one.step, one.rank) for one in trace.path(trace.finished[0])} if trace.finished else set()
    everything = (one for step in trace.steps for one in step)
    drawn = [one for one in everything if one.rank < candidates or one.fate != "pruned"]
    for one in drawn:
        is_best = (one.step, one.rank) in best
        colour = "C1" if is_best else _COLOURS[one.fate]
        is_answer = one.final_score is not None
        # The lines pass below the boxes.
        ends = [one.step - 1, one.step], [one.parent or 0, one.rank]
        axes.plot(*ends, color=colour, lw=2 if is_best else 0.8, zorder=1 + is_best)
        text = f"{name(one.token)}  {one.final_score if is_answer else one.score:.2f}"
        edge = {"boxstyle": "round", "fc": "white", "ec": colour, "lw": 2 if is_answer else 0.8}
        axes.text(one.step, one.rank, text, ha="center", va="center", fontsize=7, bbox=edge, parse_math=False)
    for fate, colour in _COLOURS.items():
        axes.plot([], [], color=colour, label=fate)
    axes.plot([], [], color="C1", lw=2, label="the best answer")
    axes.set_frame_on(False)
    axes.set_xlim(-1, len(trace.steps) - 0.5)
    axes.set_ylim(max(one.rank for one in drawn) + 0.6, -0.6)
    axes.set_xlabel("step; in a box the token and its log-probability so far, of answers the final score")
    axes.set_xticks(range(len(trace.steps)))
    axes.set_yticks([])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=5, frameon=False, fontsize=8)


_COLOURS: dict[Fate, str] = {"running": "C0", "finished": "C2", "displaced": "C4", "pruned": "0.75"}
