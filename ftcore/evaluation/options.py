"""The options of `python -m ftcore.evaluate`."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class EvaluateOptions:
    """Score a checkpoint on a file: loss, token accuracy, perplexity and, where the task has gold answers,
    exact match and F1 of the answers that the model writes."""

    # [What to score, on what]
    model: str  # directory or hub name of a checkpoint
    data: str  # file of records
    # how a file becomes examples
    task: Literal["qa", "emotion", "lm", "text2text", "span-corruption"] = "qa"
    limit: int | None = None  # score only this many records from the start of the file
    max_source_length: int = 512  # tokens of the source; longer ones are cut
    max_target_length: int = 128  # tokens of the target, and the most that an answer may have
    num_beams: int = 1  # beams of the generation

    # [Output]
    predictions: str | None = None  # file to write the answers to: a JSON object a line
    json: bool = False  # print the scores as one JSON object

    # [Machine]
    batch_size: int = 16  # examples at a time
    device: str | None = None  # cpu, cuda or cuda:N (default: cuda where there is one)

    def __post_init__(self) -> None:
        for name in ("limit", "max_source_length", "max_target_length", "num_beams", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
