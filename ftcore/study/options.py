"""The options of `python -m ftcore.compare`."""

from dataclasses import dataclass


@dataclass
class CompareOptions:
    """Compare ftcore with transformers, module by module, forward and backward.

    Both are built from the same checkpoint, or with the same random weights, and given the same padded rows.
    Exit status 0: equal; 1: not; 2: something is wrong with what was asked for. Needs transformers.
    """

    model: str | None = None  # directory or hub name of a checkpoint
    config: str | None = None  # file of a model's configuration, as config.json: random weights

    # [Input]
    batch: int = 2  # rows; all but the first are padded
    # tokens a row (default: 140, beyond the distances that T5 tells apart, or what GPT-2's n_positions
    length: int | None = None  # allows)
    seed: int = 0  # of the random tokens and weights

    # [Output]
    forward_only: bool = False  # leave the gradients out
    json: bool = False  # print a JSON object instead of the table

    def __post_init__(self) -> None:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either --model or --config" + (", not both" if self.model else ""))
        for name in ("batch", "length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected at least 1")
