"""What is measured: a case is a kind of work and its sizes."""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["convert", "load", "ready", "generate", "train"]


@dataclass(frozen=True)
class Case:
    """One row of the table, of one family."""

    name: str
    kind: Kind
    rows: int = 1
    beams: int = 1
    source: int = 0  # tokens of GPT-2's prompt or T5's input; when training the most of them
    target: int = 0  # new tokens; when training the most of the target
    steps: int = 0  # of training in a round
    padded: tuple[str, ...] = ()  # the sides that pad every batch to `source` and `target`
    learning_rate: float = 0.0  # of training
    plain: bool = False  # transformers' optimizer is not the fused one
    axis: str = ""  # what there is more and more of; see growth.py

    def fitted(self, positions: int) -> "Case":
        """The same for a model of fewer positions."""
        target = min(self.target, positions // 2) if self.target else 0
        return replace(self, source=min(self.source, positions - target), target=target)

    def short(self) -> "Case":
        """The same in a fraction of the time, to see that it works."""
        steps = min(self.steps, 2)
        if self.kind != "generate":
            return replace(self, steps=steps)
        return replace(self, source=max(1, self.source // 4), target=-(-self.target // 8))


BOTH = ("ftcore", "transformers")


def _cases(
    prefill: int, source: int, target: int, batch: int, limits: tuple[int, int], learning_rate: float
) -> list[Case]:
    longest, answer = limits
    train = Case("train", "train", batch, source=longest, target=answer, steps=4, learning_rate=learning_rate)
    return [
        Case("load", "load"),
        Case("ready", "ready"),
        Case("prefill", "generate", source=prefill, target=1),
        Case("greedy", "generate", source=source, target=target),
        Case("greedy-b8", "generate", rows=8, source=source, target=target),
        Case("beam4", "generate", beams=4, source=source, target=target),
        Case("beam4-b8", "generate", rows=8, beams=4, source=source, target=target),
        train,
        replace(train, name="train-tutorial", padded=("transformers",), plain=True),
        replace(train, name="train-padded", padded=BOTH, plain=True),
    ]


# Batches, limits and rates of training are as in the best-known tutorials: messages about feelings, SQuAD.
GPT2_CASES = _cases(prefill=512, source=16, target=84, batch=4, limits=(64, 64), learning_rate=5e-5)
T5_CASES = _cases(prefill=512, source=256, target=64, batch=8, limits=(512, 128), learning_rate=1e-5)
ROWS = [case.name for case in T5_CASES]
